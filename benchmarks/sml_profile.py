"""Where one EM iteration of SMLClusterer spends its time: matrix products, the rest, the M-step.

    python benchmarks/sml_profile.py [--n 4000] [--box 64] [--nodes 225]

One worker, all frequencies, CTF with astigmatism. Matrix products are timed alone, on the blocks of the
E-step. Sums over images are sparse where each image has few nodes, so the E-step is given for both extremes.
Preparation, which is paid again in each iteration for images beyond the cache, and the M-step are given
beside them. Times are processor seconds of one thread.
"""

import argparse
import dataclasses
import sys
import time

import numpy as np
from threadpoolctl import threadpool_limits

from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.manifold.expectation import Matcher, sweep
from sklearn_cryoem.manifold.grid import LatentBasis, nearest_grid
from sklearn_cryoem.manifold.maximisation import solve_weights, update_noise
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import half_plane

REPEATS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=4000, help="number of images")
    parser.add_argument("--box", type=int, default=64, help="side in pixels")
    parser.add_argument("--nodes", type=int, default=225, help="number of classes")
    options = parser.parse_args()
    stack = aligned_to_truth(make_particles("ribosome", options.n, box=options.box, snr=0.05, random_state=0))
    with threadpool_limits(limits=1):
        profile(stack, options)


def profile(stack, options):
    """Time every part of an iteration and print it."""
    blocks = FeatureBlocks(stack, half_plane(options.box), cache_bytes=2**34)
    layout, grid = blocks.layout, nearest_grid(options.nodes, 2)
    n_nodes, indices = int(np.prod(grid)), range(len(blocks))
    start = time.process_time()
    prepared = [blocks.load(index, layout.n_shells) for index in indices]
    preparation = time.process_time() - start
    templates = 0.3 * np.random.default_rng(0).standard_normal((n_nodes, layout.n_features))
    matcher = Matcher.of(templates, np.ones(layout.n_shells), layout)
    # every node has a share in every image, or one has all of it
    spread, sharp = (dataclasses.replace(matcher, temperature=t) for t in (1e4, 1e-2))
    products = sum(best(lambda b=b: matrix_products(b, matcher)) for b in prepared)
    whole_pass = best(lambda: sweep(blocks, [spread]))
    decided = best(lambda: sweep(blocks, [sharp]))
    basis = LatentBasis(grid, tuple(max(1, round(0.8 * side)) for side in grid), 0.75)
    statistics = sweep(blocks, [matcher]).total()
    maximisation = best(lambda: m_step(statistics, basis, layout), repeats=1)
    n_flops = 4.0 * options.n * n_nodes * (layout.n_features + layout.n_norms)
    write = sys.stdout.write
    write(
        f"{options.n:,} images of {options.box} px, {n_nodes} nodes, "
        f"P = {layout.n_features}, Q = {layout.n_norms}\n"
    )
    write(f"matrix products             {products:7.3f} s   {n_flops / products / 1e9:.0f} GFlop/s\n")
    write(f"E-step, prepared blocks     {whole_pass:7.3f} s   {products / whole_pass:.0%} of it products\n"
          f"  one node for each image   {decided:7.3f} s   sparse sums over images\n")  # fmt: skip
    write(f"M-step                      {maximisation:7.3f} s\n")
    write(f"preparation of the blocks   {preparation:7.3f} s   {1e3 * preparation / options.n:.2f} ms an "
          f"image, once if cached ({blocks.cache_bytes / 1e6:.0f} MB), else each iteration\n")  # fmt: skip
    streamed = products / (whole_pass + maximisation + preparation)
    cached = products / (whole_pass + maximisation)
    write(
        f"products in a whole iteration: {cached:.0%} with cached blocks, {streamed:.0%} with streamed ones\n"
    )


def matrix_products(block, matcher):
    """Do the four products of Eq. (3.1)-(3.2) and nothing else."""
    match = block.data @ matcher.factors.scaled.T
    norms = block.norm @ matcher.factors.half_norms.T
    return match.T @ block.data, norms.T @ block.norm


def m_step(statistics, basis, layout):
    """Weights and noise."""
    ones = np.ones(layout.n_shells)
    weights = solve_weights(statistics.numerator, statistics.denominator, basis, ones, ones, layout)
    return update_noise(statistics, basis.phi @ weights, layout, "shell", 1e-6 * ones)


def best(function, repeats=REPEATS):
    """Shortest of several times, in seconds of this process: a busy machine changes it little."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        function()
        times.append(time.process_time() - start)
    return min(times)


if __name__ == "__main__":
    main()
