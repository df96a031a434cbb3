"""EigenImages: the principal components of phase-flipped particles, and back."""

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline

from sklearn_cryoem import ParticleStack, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import EigenImages
from sklearn_cryoem.estimators.eigen_images import flipped


@pytest.fixture(scope="module")
def stack():
    return aligned_to_truth(make_particles("ribosome", 120, box=24, snr=0.5, n_views=3, random_state=0))


def test_coordinates_are_those_of_pca_on_flipped_features(stack):
    model = EigenImages(3, max_resolution=60.0).fit(stack)
    blocks = model._space.blocks(stack)
    values = np.concatenate([flipped(blocks, index) for index in range(len(blocks))])
    pca = PCA(3, svd_solver="full").fit(values)
    ours, theirs = model.transform(stack), pca.transform(values)
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-3 * np.abs(theirs).max())
    np.testing.assert_allclose(model.explained_variance_, pca.explained_variance_ * 119 / 120, rtol=1e-3)


def test_all_components_give_the_features_back():
    images = np.random.default_rng(0).normal(size=(60, 12, 12)).astype(np.float32)
    model = EigenImages(28, max_resolution=4.0).fit(images)  # all of the 14 coefficients within 3 shells
    blocks = model._space.blocks(images_as_stack := ParticleStack(images))
    wanted = model._space.to_data(flipped(blocks, 0))
    again = model.inverse_transform(model.transform(images_as_stack))
    np.testing.assert_allclose(again, wanted, atol=1e-4)


def test_views_come_apart_in_a_pipeline_with_the_manifold(stack):
    labels = make_pipeline(EigenImages(3, max_resolution=60.0), SMLClusterer(9)).fit_predict(stack)
    views = stack.truth["view"].to_numpy()
    assert sum(np.bincount(views[labels == k]).max() for k in np.unique(labels)) > 0.95 * len(stack)


def test_the_number_of_workers_changes_no_bit(stack):
    one, three = (EigenImages(3, max_resolution=60.0, n_jobs=n).fit_transform(stack) for n in (1, 3))
    np.testing.assert_array_equal(one, three)


def test_bad_input_is_refused(stack):
    with pytest.raises(ValueError, match="'n_components'"):
        EigenImages(0).fit(stack)
    with pytest.raises(ValueError, match="Ask for 5 components at most"):
        EigenImages(6).fit(stack[:5])
    with pytest.raises(ValueError, match="expected a ParticleStack or"):
        EigenImages(2).fit(np.zeros((5, 4)))
    with pytest.raises(NotFittedError, match="not fitted yet"):
        EigenImages().transform(stack)
    model = EigenImages(2, max_resolution=60.0).fit(stack)
    with pytest.raises(ValueError, match="one column for each"):
        model.inverse_transform(np.zeros((3, 5)))
    with pytest.raises(ValueError, match="same pixel size"):
        model.transform(stack.downsample(20))
