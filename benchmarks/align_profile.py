"""Where the time and the memory of an alignment go: the kernels one by one, at several resolutions.

    python benchmarks/align_profile.py [--box 64] [--classes 20] [--images 256]

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

from sklearn_cryoem import MAPAligner
from sklearn_cryoem._core.parallel import TaskPool
from sklearn_cryoem.alignment.expectation import expect
from sklearn_cryoem.alignment.features import FeatureCache, SharedFeatures
from sklearn_cryoem.alignment.maximisation import accumulate
from sklearn_cryoem.alignment.model import masked_references
from sklearn_cryoem.alignment.passes import run_pass
from sklearn_cryoem.alignment.products import reference_bank
from sklearn_cryoem.alignment.start import starting_model
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators.map_aligner import alignment_images
from sklearn_cryoem.physics.polar import polar_transform


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--box", type=int, default=64, help="pixels")
    parser.add_argument("--classes", type=int, default=20, help="number of classes")
    parser.add_argument("--images", type=int, default=256, help="number of images")
    options = parser.parse_args()
    common = {"box": options.box, "pixel_size": 4.0 * 64 / options.box, "n_views": options.classes}
    stack = make_particles("ribosome", options.images, snr=0.05, max_shift=16.0, random_state=0, **common)
    views = make_particles(
        "ribosome", 20 * options.classes, snr=None, defocus=None, in_plane=False, random_state=0, **common
    )
    first = np.unique(views.truth["view"], return_index=True)[1]
    settings = MAPAligner(len(first), n_references=len(first))._settings_for(stack)
    images = alignment_images(stack, settings)
    features = SharedFeatures(images, TaskPool(), 256e6)
    scale = np.float32(np.sqrt(0.05))
    references = masked_references(scale * views.read(first), settings)
    model = starting_model(features, settings, np.random.RandomState(0))
    n = len(references)
    model = replace(
        model,
        references=references,
        noise=np.ones_like(model.noise),  # as simulated
        weight=np.full(n, 1.0 / n),
        balance=np.zeros(n),
    )
    sys.stdout.write(
        " k_max shifts angles | features  E-step  M-step adaptive us/image  same |  bank ms    MB | cells\n"
    )
    for k_max in (settings.k_start, 0.5 * settings.k_limit, 0.75 * settings.k_limit, settings.k_limit):
        measure(features, settings, model, k_max)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write("* no coarse search: too little to gain\n")
    sys.stdout.write(f"peak memory {memory:.0f} MB\n")


def measure(shared, settings, model, k_max):
    """Time every kernel once it is warm."""
    images = shared.images
    space, cache = settings.space(images.box, k_max), FeatureCache(images, 256e6)
    rows, shift_px = np.arange(images.n_images), images.known.shift_px
    values = polar_transform(model.references, space.grid)
    features, t_features = timed(lambda: cache(rows, shift_px, space.n_rings, space.n_orders))
    bank, t_bank = timed(lambda: reference_bank(values, space, images.n_even))
    precision, prior = model.precision(space.n_rings), model.log_prior(space)
    posterior, t_expect = timed(lambda: expect(features, precision, bank, space, prior))
    n_references = len(model.references)
    _, t_sums = timed(lambda: accumulate(features, posterior, space, n_references, images.n_even))
    search, t_pass = timed(lambda: run_pass(shared, rows, shift_px, model, space))
    same = np.mean(search.label == posterior.best_row // space.n_shifts)
    per_image = 1e6 / images.n_images
    sys.stdout.write(
        f"{k_max:6.1f} {space.n_shifts:6d} {space.n_angles:6d} | {t_features * per_image:8.0f} "
        f"{t_expect * per_image:7.0f} {t_sums * per_image:7.0f} "
        f"{t_pass * per_image:8.0f}{' ' if space.coarse else '*'}        {same:5.3f} | {1e3 * t_bank:8.1f} "
        f"{bank.orders.nbytes / 2**20:5.0f} | {len(posterior.weight) / images.n_images:5.0f}\n"
    )


def timed(function):
    """Result and CPU seconds of the second of two calls."""
    function()
    start = time.process_time()
    result = function()
    return result, time.process_time() - start


if __name__ == "__main__":
    main()
