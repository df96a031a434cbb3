"""SMLClusterer's kernels against ugtm on plain vectors: the same EM, the same fixed point, and the time.

    pip install ugtm
    python benchmarks/versus_ugtm.py [--n 5000] [--features 2000] [--side 20] [--iterations 10]

Both start from ugtm's initial map, with its grid of nodes and basis functions, and do the same number of EM
iterations; ugtm (2.x, Gaspar 2018) works in float64, we in float32 with sums in float64. ugtm puts its prior
on the bias too, we do not: with the data centred and a weak prior that changes nothing that can be seen.
Times are processor seconds of one thread.
"""

import argparse
import functools
import sys
import time

import numpy as np
from threadpoolctl import threadpool_limits

from sklearn_cryoem.manifold.blocks import ArrayBlocks
from sklearn_cryoem.manifold.em import MStep, Schedule, em
from sklearn_cryoem.manifold.expectation import sweep
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.state import Start, first_state

ALPHA = 1e-4
WIDTH = 1.0  # of the basis functions, in units of their spacing
NOISE = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=5000, help="number of vectors")
    parser.add_argument("--features", type=int, default=2000, help="their length")
    parser.add_argument("--side", type=int, default=20, help="nodes along each side of the map")
    parser.add_argument("--basis-side", type=int, default=10, help="basis functions along each side")
    parser.add_argument("--iterations", type=int, default=10, help="EM iterations")
    options = parser.parse_args()
    try:
        from ugtm import ugtm_core, ugtm_gtm
    except ImportError:
        sys.exit("ugtm is not installed. Run: pip install ugtm")
    data = curved_sheet(np.random.default_rng(0), options.n, options.features)
    initial = ugtm_gtm.initialize(data, options.side, options.basis_side, WIDTH**2)
    with threadpool_limits(limits=1):
        theirs, their_seconds = timed(
            lambda: ugtm_gtm.optimize(data, initial, ALPHA, options.iterations, verbose=False)
        )
        ours, seconds = timed(lambda: fit(data.astype(np.float32), initial, options))
    # ugtm's own likelihood leaves out what cancels; this one is Eq. (2.5), of its parameters
    their_templates = ugtm_core.createYMatrix(theirs.matW, initial.matPhiMPlusOne).T  # (K, P)
    compare(data, ours, their_templates, float(theirs.betaInv), theirs.matR.argmax(axis=1))
    sys.stdout.write(
        f"{options.n:,} x {options.features:,}, K = {options.side**2}, {options.iterations} iterations: "
        f"ugtm {their_seconds:.1f} s, ours {seconds:.2f} s, {their_seconds / seconds:.0f} times faster\n"
    )


def curved_sheet(rng, n, n_features):
    """A curved two-dimensional sheet in `n_features` dimensions, with noise, centred; float64."""
    position = rng.uniform(-1, 1, (n, 2))
    waves = np.concatenate([np.sin(position * f) for f in (1.0, 2.0, 3.0)], axis=1)  # (n, 6)
    data = waves @ rng.standard_normal((6, n_features)) + NOISE * rng.standard_normal((n, n_features))
    return data - data.mean(axis=0)


def fit(data, initial, options):
    """Run our EM from ugtm's initial map."""
    basis = LatentBasis((options.side,) * 2, (options.basis_side,) * 2, WIDTH)
    weights = np.linalg.lstsq(basis.phi, initial.matY.T, rcond=None)[0]
    start = Start(weights, np.array([float(initial.betaInv)]))
    blocks, alpha = ArrayBlocks(data), np.array([ALPHA])
    m_step = MStep(basis=basis, alpha=alpha, layout=blocks.layout, noise="shell", dtype=np.float32, n_jobs=1)
    schedule = Schedule(1, 1, 0, options.iterations, tol=0.0)
    *_, state = em(functools.partial(sweep, blocks), m_step, schedule, first_state(start, basis, 1, 1))
    return state.manifold(basis, alpha, blocks.layout)


def timed(function):
    """Result of a function and the processor seconds it took."""
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


def compare(data, ours, their_templates, their_variance, their_labels):
    """Print how far the two maps lie apart."""
    scale = np.sqrt(np.mean(their_templates**2))
    difference = np.sqrt(np.mean((ours.templates - their_templates) ** 2)) / scale
    mine, theirs = (
        mean_log_likelihood(data, templates, variance)
        for templates, variance in (
            (ours.templates, float(ours.noise_variance[0])),
            (their_templates, their_variance),
        )
    )
    labels = nearest(data, ours.templates)
    sys.stdout.write(
        f"templates differ by {difference:.2g} of their size, noise variance by "
        f"{abs(float(ours.noise_variance[0]) / their_variance - 1):.2g}; same node for "
        f"{np.mean(labels == their_labels):.2%} of the vectors\n"
        f"log likelihood of a vector: ours {mine:.4f}, ugtm {theirs:.4f}\n"
    )


def squared_distances(data, templates):
    """|y - mu|^2; (n, K)."""
    return (data**2).sum(axis=1)[:, None] - 2 * data @ templates.T + (templates**2).sum(axis=1)


def nearest(data, templates):
    """Most probable node of each vector; (n,)."""
    return squared_distances(data, templates).argmin(axis=1)


def mean_log_likelihood(data, templates, variance):
    """Mean of Eq. (2.5), in float64."""
    exponent = -0.5 * squared_distances(data, templates) / variance
    largest = exponent.max(axis=1)
    mean = np.log(np.exp(exponent - largest[:, None]).mean(axis=1)) + largest
    return float(mean.mean() - 0.5 * data.shape[1] * np.log(2 * np.pi * variance))


if __name__ == "__main__":
    main()
