"""Where the time and the memory of an alignment go: the kernels one by one, at several resolutions.

    python benchmarks/align_profile.py [--box 64] [--classes 20] [--images 256] [--jobs 1]

Microseconds an image for features, exhaustive E-step and M-step, and for a whole pass with the adaptive
search, with the part of the images whose class is that of the exhaustive one; milliseconds an iteration for
shifting the references, and peak memory. References are fixed projections of a phantom, so that posteriors
are as narrow as late in a fit.
"""

import argparse
import resource
import sys
import time
from dataclasses import replace

import numpy as np
from sklearn_cryoem.alignment.references import reference_bank
from sklearn_cryoem.alignment.update import masked_references
from sklearn_cryoem.estimators._map_settings import alignment_settings, feature_source

from sklearn_cryoem import MAPAligner
from sklearn_cryoem.alignment.expectation import expect
from sklearn_cryoem.alignment.maximisation import accumulate
from sklearn_cryoem.alignment.passes import run_pass
from sklearn_cryoem.alignment.start import starting_model
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.physics.polar import polar_transform


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--box", type=int, default=64, help="pixels")
    parser.add_argument("--classes", type=int, default=20, help="number of classes")
    parser.add_argument("--images", type=int, default=256, help="number of images")
    parser.add_argument("--shift-step", type=float, default=None, help="Angstrom")
    parser.add_argument("--jobs", type=int, default=1, help="number of workers of bank and M-step")
    options = parser.parse_args()
    common = {"box": options.box, "pixel_size": 4.0 * 64 / options.box, "n_views": options.classes}
    stack = make_particles("ribosome", options.images, snr=0.05, max_shift=16.0, random_state=0, **common)
    views = make_particles(
        "ribosome", 20 * options.classes, snr=None, defocus=None, in_plane=False, random_state=0, **common
    )
    first = np.unique(views.truth["view"], return_index=True)[1]
    aligner = MAPAligner(len(first), shift_step=options.shift_step)
    settings = alignment_settings(aligner, stack)
    source = feature_source(stack, settings)
    scale = np.float32(np.sqrt(0.05))
    references = masked_references(scale * views.read(first), settings)
    model = starting_model(source, settings, np.random.RandomState(0))
    n = len(references)
    model = replace(
        model,
        references=references,
        noise=np.ones_like(model.noise),  # as simulated
        class_weight=np.full(n, 1.0 / n),
        balance=np.zeros(n),
    )
    sys.stdout.write(
        " k_max shifts angles | features  E-step  M-step adaptive us/image  same |  bank ms    MB | cells\n"
    )
    for k_max in (settings.k_start, 0.5 * settings.k_limit, 0.75 * settings.k_limit, settings.k_limit):
        measure(source, settings, model, k_max, options)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write("* no coarse search: too little to gain\n")
    sys.stdout.write(f"peak memory {memory:.0f} MB\n")


def measure(source, settings, model, k_max, options):
    """Time every kernel once it is warm."""
    space = settings.space(source.box, k_max)
    rows = np.arange(source.n_images)
    precision = np.broadcast_to((1.0 / model.noise[: space.n_rings]).astype(np.float32), (1, space.n_rings))
    values = polar_transform(model.references, space.grid)
    features, t_features = timed(lambda: source(rows, space.n_rings, space.n_orders))
    bank, t_bank = timed(lambda: reference_bank(values, space, source.n_even, options.jobs))
    each = np.broadcast_to(precision, features.power.shape)
    posterior, t_expect = timed(lambda: expect(features, each, bank, space, model.log_prior(space)))
    n_clusters = len(model.references)
    _, t_sums = timed(lambda: accumulate(features, posterior, space, n_clusters, source.n_even, options.jobs))
    search, t_pass = timed(lambda: run_pass(source, rows, model, space))
    same = np.mean(search.label == posterior.best_row // space.n_shifts)
    per_image = 1e6 / source.n_images
    sys.stdout.write(
        f"{k_max:6.1f} {space.n_shifts:6d} {space.n_angles:6d} | {t_features * per_image:8.0f} "
        f"{t_expect * per_image:7.0f} {t_sums * per_image:7.0f} "
        f"{t_pass * per_image:8.0f}{' ' if space.coarse else '*'}        {same:5.3f} | {1e3 * t_bank:8.1f} "
        f"{bank.orders.nbytes / 2**20:5.0f} | {len(posterior.weight) / source.n_images:5.0f}\n"
    )


def timed(function):
    """Result and CPU seconds of the second of two calls."""
    function()
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


if __name__ == "__main__":
    main()
