"""Time and memory of SMLClusterer against the number of classes K and of images N, and the paper's headline.

    python benchmarks/paper_speed.py [--jobs 2] [--quick]
    python benchmarks/paper_speed.py --full --folder DIR [--share 0.1] [--iterations 30]

The paper: 117,471 images of 160 pixels, 1,000 classes, 30 iterations, 228 minutes on 512 cores.

Every fit runs in a process of its own, on particles that stay in their file, with CTFs with astigmatism.
Features are prepared anew in each pass ("streamed"), or kept in files (`cache_folder`; "files", writing them
included); none are kept in memory. With 4 folds a fit is as by default, cross-fitted first; with 1 it is
ordinary EM. "Bare products" are the matrix products of Eq. (3.1)-(3.2) alone, of the same shapes and as often
as the fit needs them, frequency marching included, timed in the same process by the same workers after the
fit; products with c^2 have one column for each shell in cross-fitted passes, and one for each coefficient in
others. The fit counts whole: reading, preparing, measuring the prior, the start, EM and class averages.
Seconds are those of the processor, summed over workers; on a busy machine the wall-clock time beside them
means little.

The extrapolation times passes over 2,048 images of the paper's size, streamed and from files, all
sums dense, and M-steps, at the first and last stage of frequency marching, and adds them up over 30
iterations, in between by the number of features. `--full` prints it first, then does the whole thing from a
simulated stack of 6 GB (float16) and 13 GB of features (`--share`: with a share of the images) in `--folder`,
where a stack that is there is used again. Simulating is not part of the time.
"""

import argparse
import dataclasses
import itertools
import logging
import multiprocessing
import pickle
import resource
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem._core import memory
from sklearn_cryoem._core.memory import format_bytes
from sklearn_cryoem._core.parallel import ordered_map
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import sml_clusterer
from sklearn_cryoem.manifold import blocks as manifold_blocks
from sklearn_cryoem.manifold.blocks import BLOCK_SIZE
from sklearn_cryoem.manifold.derived_blocks import ShellNorms
from sklearn_cryoem.manifold.em import Schedule, cross_fitted_iterations
from sklearn_cryoem.manifold.expectation import Matcher
from sklearn_cryoem.manifold.expectation import sweep as sweep_once
from sklearn_cryoem.manifold.grid import LatentBasis, nearest_grid
from sklearn_cryoem.manifold.maximisation import Coupling, solve_weights, update_noise
from sklearn_cryoem.manifold.prior import TURN
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import half_plane

PAPER = {"n": 117_471, "box": 160, "nodes": 1000, "iterations": 30, "folds": 4}
PAPER_MINUTES = 228
BASIS_WIDTH = 0.5  # of the ordinary basis, in its spacings
SNR = 0.05
FOLDS = 4
REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="number of workers")
    parser.add_argument(
        "--iterations", type=int, help="EM iterations: 20 of the small fits and 30 of --full by default"
    )
    parser.add_argument("--quick", action="store_true", help="fewer and smaller fits: a minute")
    parser.add_argument("--full", action="store_true", help="the paper's headline for real")
    parser.add_argument("--share", type=float, default=1.0, help="share of its images, for --full")
    parser.add_argument("--folder", type=Path, help="of particles and features; by default temporary")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.full:
            headline(folder, options)
        else:
            sweep(folder, options)


def sweep(folder, options):
    """Small fits against K and N, then the extrapolation."""
    nodes, images, n = (100, 225, 400, 1000), (4000, 32_000), 16_000
    if options.quick:
        nodes, images, n = (100, 225), (4000,), 2000
    report_title()
    small = {"box": 64, "iterations": options.iterations or 20}
    cases = [{"n": n, "nodes": k, "folds": folds} for k in nodes for folds in (1, FOLDS)]
    cases += [{"n": n, "nodes": 225, "folds": FOLDS} for n in images]
    for case in cases:
        for mode in ("streamed", "files"):
            alone(one_fit, folder, {**small, **case, "mode": mode}, options.jobs)
    size = {"n": 4 * BLOCK_SIZE, "nodes": nodes[-1], "iterations": options.iterations or PAPER["iterations"]}
    alone(extrapolate, folder, {**PAPER, **size}, options.jobs)


def headline(folder, options):
    """Estimate, then simulate and fit."""
    case = dict(PAPER, n=round(options.share * PAPER["n"]), mode="files", tells=True)
    case["iterations"] = options.iterations or PAPER["iterations"]
    layout_bytes = 4.0 * np.pi * (case["box"] / 2) ** 2 * 1.5  # features and c^2 of an image
    needed = case["n"] * (2.0 * case["box"] ** 2 + layout_bytes)
    free = shutil.disk_usage(folder).free
    say(f"{folder}: about {format_bytes(needed)} are needed, {format_bytes(free)} are free")
    if needed > free and not tables_of(folder, case).exists():
        sys.exit("Name another --folder, or ask for a smaller --share.")
    alone(extrapolate, folder, {**case, "n": 4 * BLOCK_SIZE, "of": case["n"]}, options.jobs)
    report_title()
    alone(one_fit, folder, case, options.jobs)
    say(f"paper: {PAPER['n']:,} images, {PAPER_MINUTES} minutes on 512 cores")


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


def tables_of(folder, case):
    """Where the stack of a case is, its pixels beside it."""
    return folder / f"{case['n']}_{case['box']}.pickle"


def simulate(folder, case, jobs):
    """Write particles to a file, and the stack that reads them beside it, unless they are there."""
    tables = tables_of(folder, case)
    if tables.exists():
        return
    start = time.perf_counter()
    stack = aligned_to_truth(
        make_particles(
            "ribosome", case["n"], box=case["box"], snr=SNR, max_shift=5.0, random_state=0, n_jobs=jobs,
            path=tables.with_suffix(".mrcs"), dtype="float16", overwrite=True,
        )
    )  # fmt: skip
    tables.write_bytes(pickle.dumps(stack))  # its pixels stay in the file
    if stack.nbytes > 2**30:
        say(f"simulated {len(stack):,} images of {stack.box} px in {time.perf_counter() - start:.0f} s")


def read(folder, case):
    """Stack written by `simulate`."""
    return pickle.loads(tables_of(folder, case).read_bytes())


def report_title():
    """Head of the table."""
    say(
        "      K        N   box  folds  iterations  features   wall s   processor s   bare products s   ratio"
        "   GFlop/s   peak GB"
    )


class Elapsed(logging.Formatter):
    """Minutes since the process began, and the message."""

    def format(self, record):  # noqa: D102
        return f"  {record.relativeCreated / 6e4:6.1f} min  {record.getMessage()}"


def one_fit(folder, case, jobs):
    """Fit, and print a row of the table."""
    stack, keeps = read(folder, case), case["mode"] == "files"
    logger, handler = logging.getLogger("sklearn_cryoem"), logging.StreamHandler(sys.stdout)
    handler.setFormatter(Elapsed())
    if case.get("tells"):
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    else:
        memory.CACHE_SHARE = 0.0  # no features are kept in memory
        logger.setLevel(logging.ERROR)
    sml_clusterer.MANY_FOLDS = sml_clusterer.FEW_FOLDS = case["folds"]
    with tempfile.TemporaryDirectory(dir=folder) as features:
        model = SMLClusterer(
            case["nodes"], max_iter=case["iterations"], tol=0.0, n_jobs=jobs,
            cache_folder=features if keeps else None, random_state=0, verbose=1,
        )  # fmt: skip
        wall, processor = time.perf_counter(), time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(stack)
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    n_nodes, layout = int(np.prod(model.grid_shape_)), FeatureBlocks(stack, half_plane(stack.box)).layout
    products, n_flops = bare_products(layout, passes_of(model, stack), len(stack), n_nodes, jobs)
    say(
        f"{n_nodes:7,} {len(stack):8,} {stack.box:5} {case['folds']:6} {model.n_iter_:11} {case['mode']:>9} "
        f"{wall:8.1f} {processor:13.1f} {products:17.1f} {processor / products:7.2f} "
        f"{n_flops / products / 1e9:9.0f} {peak:9.2f}"
    )


def passes_of(model, stack):
    """Passes of a fit: shells compared, shells summed, and whether they were cross-fitted."""
    n_shells = np.rint(stack.box * stack.pixel_size / model.iteration_resolution_).astype(int)
    n_all, n_cross = int(n_shells[-1]), int(model.held_out_.sum())
    # a pass compares images at one stage and sums at the next; that of the last objective sums in vain
    crossed = [(first, second, True) for first, second in zip(n_shells, [*n_shells[1:], n_all], strict=True)]
    ordinary = [n_shells[n_cross], *n_shells[n_cross:], n_all]
    em = [(first, second, False) for first, second in itertools.pairwise(ordinary)]
    return [*crossed[:n_cross], *em, (n_all, n_all, False)]  # and class averages


def bare_products(layout, passes, n, n_nodes, jobs):
    """Processor seconds, and operations, of the matrix products of whole `passes` over `n` images."""
    layouts = {True: dataclasses.replace(layout, norm_index=layout.shell), False: layout}
    used = {(int(s), is_cross) for *shells, is_cross in passes for s in shells}
    cut = {key: layouts[key[1]].truncate(key[0]) for key in used}
    seconds = {key: products_of_block(cut[key], n_nodes, jobs) for key in used}
    total = sum(seconds[first, c][0] + seconds[second, c][1] for first, second, c in passes)
    n_values = {key: cut[key].n_features + cut[key].n_norms for key in used}
    n_flops = sum(2.0 * n * n_nodes * n_values[s, c] for *shells, c in passes for s in shells)
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
    """Print what the headline would take, from passes at some of its stages over a few images."""
    stack, n_all_images = read(folder, case), case.get("of", PAPER["n"])
    plane, grid = half_plane(stack.box), nearest_grid(case["nodes"], 2)
    streamed = FeatureBlocks(stack, plane, cache_bytes=0)
    layout, n_shells = streamed.layout, streamed.layout.n_shells
    basis = LatentBasis(grid, grid, BASIS_WIDTH)
    first = max(6, int(stack.box * stack.pixel_size / 40.0))  # the default initial resolution
    # an upper bound: cross-fitted iterations of a fit leave out the shells that tell little
    n_cross = cross_fitted_iterations(case["iterations"]) if case["folds"] > 1 else 0
    schedule = Schedule.ordinary(first, n_shells, case["iterations"], 0.0)
    if n_cross:
        schedule = Schedule.cross_fitted(first, n_shells, n_cross)
    measured, manifold_blocks.N_SHARDS = (first, n_shells), jobs  # so that tasks have several blocks
    sizes = [layout.truncate(s).n_features for s in measured]
    stages = [schedule.shells_at(i) for i in range(case["iterations"])]
    passes = [(s, s, True) for s in stages[:n_cross]]
    passes += [(s, s, False) for s in [*stages[n_cross:], n_shells, n_shells]]  # objective, class averages
    products, n_flops = bare_products(layout, passes, n_all_images, len(basis.nodes), jobs)
    say(
        f"\nheadline: {n_all_images:,} images of {stack.box} px, {len(basis.nodes)} classes, "
        f"{case['iterations']} iterations ({n_cross} cross-fitted), {jobs} workers, extrapolated from "
        f"{len(stack):,} images\nbare products {products / jobs / 60:.0f} min at "
        f"{n_flops / products / 1e9:.0f} GFlop/s a worker, {n_flops / 1e15:.2f} PFlop"
    )
    with tempfile.TemporaryDirectory(dir=folder) as features:
        kept, start = streamed.kept_in(features), time.process_time()
        sweep_once(kept, [flat_matcher(kept, basis, first)], n_jobs=jobs)
        writing = (time.process_time() - start) / len(stack)
        for mode, blocks in (("files", kept), ("streamed", streamed)):
            costs = {
                c: np.array([stage_costs(blocks, basis, s, c, jobs) for s in measured]) for c in (True, False)
            }
            seconds = writing * n_all_images if mode == "files" else 0.0
            for s, _, c in passes:
                size = layout.truncate(s).n_features
                image, m_step = (np.interp(size, sizes, values) for values in costs[c].T)
                seconds += image * n_all_images + m_step
            minutes = seconds / jobs / 60
            say(
                f"{mode:9} {minutes:4.0f} min, {seconds / products:.2f} times the bare products; paper: "
                f"{PAPER_MINUTES} min on 512 cores for {PAPER['n']:,} images"
            )


def flat_matcher(blocks, basis, n_shells):
    """Templates at random, and posteriors so flat that no sum over images is sparse: as a fit begins."""
    layout, rng = blocks.layout.truncate(n_shells), np.random.default_rng(0)
    templates = 0.1 * rng.standard_normal((len(basis.nodes), layout.n_features))
    return Matcher.of(templates, np.full(n_shells, 1e3), layout)


def stage_costs(blocks, basis, n_shells, is_cross, jobs):
    """Processor seconds of a pass for each image, and of the M-steps after it."""
    if is_cross:
        blocks = ShellNorms(blocks)
    matcher = flat_matcher(blocks, basis, n_shells)
    layout, ones = matcher.layout, np.ones(n_shells)
    start = time.process_time()
    if is_cross:
        statistics = sweep_once(blocks, [matcher] * FOLDS, "folds", n_jobs=jobs)
    else:
        statistics = sweep_once(blocks, [matcher], n_jobs=jobs)
    image, start = (time.process_time() - start) / blocks.n_samples, time.process_time()
    if is_cross:
        coupling = Coupling.of(basis, ones, layout, np.zeros(layout.n_features), TURN)
        total = statistics.total()
        start = time.process_time()  # the coupling is made once
        parts = [statistics.part(fold) for fold in range(FOLDS)]
        for part, mu in zip(parts, coupling.templates(total, parts, ones, layout, n_jobs=jobs), strict=True):
            update_noise(part, mu, layout, "shell", 1e-6 * ones)
            Matcher.of(mu, ones, layout)
    else:
        total = statistics.total()
        weights = solve_weights(total.numerator, total.denominator, basis, ones, ones, layout, n_jobs=jobs)
        update_noise(total, basis.phi @ weights, layout, "shell", 1e-6 * ones)
        Matcher.of(basis.phi @ weights, ones, layout)
    return image, time.process_time() - start


if __name__ == "__main__":
    main()
