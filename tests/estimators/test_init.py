"""An alignment that begins with given references: averages of another fit, or projections of a map."""

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from sklearn_cryoem import MAPAligner
from sklearn_cryoem._core.parallel import task_pool
from sklearn_cryoem.alignment.features import SharedFeatures
from sklearn_cryoem.alignment.start import given_model
from sklearn_cryoem.datasets import make_particles, make_ribosome_phantom, project
from sklearn_cryoem.estimators.map_aligner import alignment_images


@pytest.fixture(scope="module")
def particles():
    """Five views, faint enough that random references do not find them all, and their projections."""
    volume = make_ribosome_phantom(32, 10.0)
    stack = make_particles(volume, 300, box=32, snr=0.1, n_views=5, max_shift=15.0, random_state=1)
    truth = stack.truth.groupby("view").first()
    views = project(volume, truth["rot_rad"], truth["tilt_rad"])
    return stack, views


@pytest.mark.parametrize("snr", [None, 0.05])
def test_references_of_any_scale_come_into_that_of_the_images(snr):
    """Eq. (4.22): without a CTF the signal in the images is the projections times a known factor."""
    volume = make_ribosome_phantom(32, 10.0)
    stack = make_particles(volume, 200, box=32, snr=snr, n_views=5, defocus=None, random_state=1)
    views = project(volume, *stack.truth.groupby("view").first()[["rot_rad", "tilt_rad"]].to_numpy().T)
    settings = MAPAligner(5, init=views)._settings_for(stack)
    with task_pool(1) as pool:
        features = SharedFeatures(alignment_images(stack, settings), pool)
        rngs = np.random.RandomState(0), np.random.RandomState(0)
        model, other = (
            given_model(features, settings, rng, scale * views)
            for rng, scale in zip(rngs, (1.0, 500.0), strict=True)
        )
    np.testing.assert_allclose(model.references, other.references, rtol=1e-4, atol=1e-4)
    found = np.vdot(model.references, views) / np.vdot(views, views)
    assert found == pytest.approx(np.sqrt(snr or 1.0) / views.std(), rel=0.1)


def test_classes_are_those_of_the_references(particles):
    stack, views = particles
    aligner = MAPAligner(5, init=views, random_state=0).fit(stack)
    assert adjusted_rand_score(stack.truth["view"], aligner.labels_) > 0.9
    order = np.argsort(aligner.reference_class_)
    assert [np.bincount(stack.truth["view"][aligner.labels_ == c]).argmax() for c in range(5)] == list(order)
    again = MAPAligner(5, init=aligner.references_, max_iter=2, tol=10.0, random_state=0).fit(stack)
    assert adjusted_rand_score(aligner.labels_, again.labels_) > 0.95


def test_references_of_another_box_or_too_few_are_refused(particles):
    stack, views = particles
    for n_clusters, init in ((2, views[:, 1:, 1:]), (6, views), (1, views[0]), (1, 3.0)):
        with pytest.raises(ValueError, match="with rescale, or ask for fewer n_clusters"):
            MAPAligner(n_clusters, init=init).fit(stack)
