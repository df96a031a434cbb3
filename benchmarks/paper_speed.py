"""Time and memory of SMLClusterer against the number of classes K and of images N, and the paper's headline.

    python benchmarks/paper_speed.py [--jobs 2] [--quick]
    python benchmarks/paper_speed.py --full [--share 0.1] [--folder DIR]

The paper: 117,471 images of 160 pixels, 1,000 classes, 30 iterations, 228 minutes on 512 cores.

Every fit runs in a process of its own, on particles that stay in their file, with CTFs with astigmatism.
"Bare products" are the four matrix products of Eq. (3.1)-(3.2) alone, of the same shapes and as often as the
fit needs them, frequency marching included, timed in the same process by the same workers after the fit.
The fit counts whole: reading, preparing, measuring the prior, the start, EM and class averages. Seconds are
those of the processor, summed over workers; on a busy machine the wall-clock time beside them means little.

The extrapolation times E-steps on 1,024 and 2,048 images of the paper's size, features prepared anew and all
sums dense, and M-steps, at some stages of frequency marching, and adds them up over 30 iterations. `--full`
does the whole thing from a simulated stack of 12 GB (`--share`: with a share of the images); `--folder` says
where that may lie.
"""

import argparse
import dataclasses
import multiprocessing
import pickle
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem._core.workers import ordered_map
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.manifold.blocks import BLOCK_SIZE
from sklearn_cryoem.manifold.expectation import Matcher, e_step
from sklearn_cryoem.manifold.grid import LatentBasis, nearest_grid
from sklearn_cryoem.manifold.maximisation import solve_weights, update_noise
from sklearn_cryoem.manifold.schedule import Schedule
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import half_plane

PAPER = {"n": 117_471, "box": 160, "nodes": 1000, "iterations": 30}
PAPER_MINUTES = 228
BASIS_PER_NODE, BASIS_WIDTH = 0.8, 0.75
SNR = 0.05
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="number of workers")
    parser.add_argument("--iterations", type=int, default=20, help="EM iterations of the small fits")
    parser.add_argument("--quick", action="store_true", help="fewer and smaller fits: a minute")
    parser.add_argument("--full", action="store_true", help="the paper's headline for real")
    parser.add_argument("--share", type=float, default=1.0, help="share of its images, for --full")
    parser.add_argument(
        "--folder", type=Path, help="where --full keeps its particles; a temporary one by default"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.full:
            headline = dict(PAPER, n=round(options.share * PAPER["n"]))
            report_title()
            alone(one_fit, folder, headline, options.jobs)
            say(f"paper: {PAPER['n']:,} images, {PAPER_MINUTES} minutes on 512 cores")
        else:
            sweep(folder, options)


def sweep(folder, options):
    """Small fits against K and N, then the extrapolation."""
    nodes, images, n = (100, 300, 1000), (4000, 16_000, 32_000), 16_000
    if options.quick:
        nodes, images, n = (100, 225), (1000, 4000), 1000
    report_title()
    for n_nodes in nodes:
        alone(
            one_fit,
            folder,
            {"n": n, "box": 64, "nodes": n_nodes, "iterations": options.iterations},
            options.jobs,
        )
    for n_images in images:
        case = {"n": n_images, "box": 64, "nodes": 225, "iterations": options.iterations}
        alone(one_fit, folder, case, options.jobs)
    alone(extrapolate, folder, dict(PAPER, n=4 * BLOCK_SIZE, nodes=nodes[-1]), options.jobs)


def say(line):
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def alone(function, folder, case, jobs):
    """Simulate, then run `function`, each in a process of its own: memory peaks are its own."""
    context = multiprocessing.get_context("spawn")
    for step in (simulate, function):
        process = context.Process(target=step, args=(folder, case, jobs))
        process.start()
        process.join()
        if process.exitcode:
            sys.exit(process.exitcode)


def simulate(folder, case, jobs):
    """Write particles to a file, and the stack that reads them beside it, unless they are there."""
    tables = folder / f"{case['n']}_{case['box']}.pickle"
    if tables.exists():
        return
    start = time.perf_counter()
    stack = aligned_to_truth(
        make_particles(
            "ribosome", case["n"], box=case["box"], snr=SNR, max_shift=5.0, random_state=0, n_jobs=jobs,
            path=tables.with_suffix(".mrcs"), overwrite=True,
        )
    )  # fmt: skip
    tables.write_bytes(pickle.dumps(stack))  # its pixels stay in the file
    if stack.nbytes > 2**30:
        say(f"simulated {len(stack):,} images of {stack.box} px in {time.perf_counter() - start:.0f} s")


def read(folder, case):
    """Stack written by `simulate`."""
    return pickle.loads((folder / f"{case['n']}_{case['box']}.pickle").read_bytes())


def report_title():
    """Head of the table."""
    say(
        "      K        N   box  iterations   wall s   processor s   bare products s   ratio   GFlop/s"
        "   peak GB"
    )


def one_fit(folder, case, jobs):
    """Fit, and print a row of the table."""
    stack = read(folder, case)
    model = SMLClusterer(case["nodes"], max_iter=case["iterations"], tol=0.0, n_jobs=jobs, random_state=0)
    wall, processor = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(stack)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    n_nodes, layout = int(np.prod(model.grid_shape_)), FeatureBlocks(stack, half_plane(stack.box)).layout
    n_shells = np.rint(stack.box * stack.pixel_size / model.resolution_).astype(int)
    # iteration i compares images at stage i and sums at stage i + 1; class averages are one more pass
    stages = [*zip([n_shells[0], *n_shells], [*n_shells, n_shells[-1]], strict=True), (n_shells[-1],) * 2]
    products, n_flops = bare_products(layout, stages, len(stack), n_nodes, jobs)
    say(
        f"{n_nodes:7,} {len(stack):8,} {stack.box:5} {model.n_iter_:11} {wall:8.1f} {processor:13.1f} "
        f"{products:17.1f} {processor / products:7.2f} {n_flops / products / 1e9:9.0f} {peak:9.2f}"
    )


def bare_products(layout, stages, n, n_nodes, jobs):
    """Processor seconds, and operations, of the matrix products of whole passes over `n` images.

    `stages` holds, for each pass, the shells of the comparison with the templates and those of the sums.
    """
    seconds = {s: products_of_block(layout.truncate(s), n_nodes, jobs) for s in set(np.ravel(stages))}
    n_values = {s: layout.truncate(s).n_features + layout.truncate(s).n_norms for s in seconds}
    total = sum(seconds[first][0] + seconds[second][1] for first, second in stages)
    n_flops = sum(2.0 * n * n_nodes * n_values[s] for pair in stages for s in pair)
    return total * n / BLOCK_SIZE, n_flops


def products_of_block(layout, n_nodes, jobs):
    """Seconds of the two pairs of products of one block, by all workers at the same time."""
    rng = np.random.default_rng(0)
    data = rng.random((BLOCK_SIZE, layout.n_features), dtype=np.float32)
    norm = rng.random((BLOCK_SIZE, layout.n_norms), dtype=np.float32)
    weights = rng.random((BLOCK_SIZE, n_nodes), dtype=np.float32)
    templates, squares = weights.T @ data, weights.T @ norm

    def match(_):
        return (data @ templates.T + norm @ squares.T)[0, 0]

    def add(_):
        return (weights.T @ data)[0, 0] + (weights.T @ norm)[0, 0]

    return [best(lambda f=f: list(ordered_map(f, range(jobs), n_jobs=jobs))) / jobs for f in (match, add)]


def best(function):
    """Least processor seconds of several calls."""
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


def extrapolate(folder, case, jobs):
    """Print what the headline would take, from steps at some of its stages on a few images."""
    stack = read(folder, case)
    plane, grid = half_plane(stack.box), nearest_grid(case["nodes"], 2)
    half, whole = (FeatureBlocks(some, plane, cache_bytes=0) for some in (stack[: len(stack) // 2], stack))
    layout, n_all = whole.layout, whole.layout.n_shells
    basis = LatentBasis(grid, tuple(round(BASIS_PER_NODE * side) for side in grid), BASIS_WIDTH)
    first = max(6, int(stack.box * stack.pixel_size / 40.0))  # the default initial resolution
    schedule = Schedule.of(first, n_all, 1.0, case["iterations"])
    measured = sorted({int(s) for s in np.linspace(first, n_all, 4)})
    costs = (
        np.array([stage_costs(half, whole, basis, s, jobs) for s in measured]) / jobs
    )  # seconds of them all
    stages = [schedule.stage(i).n_shells for i in range(case["iterations"])]
    passes = [*stages, n_all, n_all]  # the last objective, and class averages
    sizes, of_stage, of_pass = (
        [layout.truncate(s).n_features for s in some] for some in (measured, stages, passes)
    )
    e_steps = PAPER["n"] * np.interp(of_pass, sizes, costs[:, 0]).sum()
    fixed = np.interp(of_pass, sizes, costs[:, 1]).sum() + np.interp(of_stage, sizes, costs[:, 2]).sum()
    products, n_flops = bare_products(layout, [(s, s) for s in passes], PAPER["n"], len(basis.nodes), jobs)
    minutes = (e_steps + fixed) / 60
    say(
        f"\nheadline: {PAPER['n']:,} images of {stack.box} px, {len(basis.nodes)} classes, "
        f"{case['iterations']} iterations, {jobs} workers, extrapolated from {len(stack):,} images\n"
        f"E-steps with preparation {e_steps / 60:.0f} min, M-steps and what else does not grow with N "
        f"{fixed / 60:.1f} min, together {minutes:.0f} min\n"
        f"bare products {products / jobs / 60:.0f} min at {n_flops / products / 1e9:.0f} GFlop/s a worker: "
        f"ratio {minutes * 60 * jobs / products:.2f}; {n_flops / 1e15:.2f} PFlop\n"
        f"paper: {PAPER_MINUTES} min on 512 cores, {PAPER_MINUTES * 512 / (minutes * jobs):,.0f} times as "
        "much processor time"
    )


def stage_costs(half, whole, basis, n_shells, jobs):
    """Processor seconds of E-steps: for each image, and whatever their number; and of an M-step."""
    layout = whole.layout.truncate(n_shells)
    ones, rng = np.ones(n_shells), np.random.default_rng(0)
    templates = 0.1 * rng.standard_normal((len(basis.nodes), layout.n_features))
    # flattened, so that no sum over images is sparse: the cost at the start of a fit
    matcher = dataclasses.replace(Matcher.of(templates, ones, layout), temperature=1e3)
    moments = [time.process_time()]
    for blocks in (half, whole):
        statistics = e_step(blocks, matcher, n_jobs=jobs)
        moments.append(time.process_time())
    weights = solve_weights(statistics, basis, ones, ones, layout, n_jobs=jobs)
    update_noise(statistics, basis.phi @ weights, layout, "shell", 1e-6 * ones)
    Matcher.of(basis.phi @ weights, ones, layout)
    moments.append(time.process_time())
    of_half, of_whole, m_step = np.diff(moments)
    image = (of_whole - of_half) / (whole.n_samples - half.n_samples)
    return image, of_whole - image * whole.n_samples, m_step


if __name__ == "__main__":
    main()
