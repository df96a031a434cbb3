import numpy as np
import pytest

from sklearn_cryoem.manifold import state as module
from sklearn_cryoem.manifold.blocks import ArrayBlocks, FeatureLayout
from sklearn_cryoem.manifold.grid import LatentBasis
from sklearn_cryoem.manifold.prior import measure_power
from sklearn_cryoem.manifold.state import pca_start, random_start

BASIS = LatentBasis((6, 5), (4, 4), 1.0)


def flat_cloud(rng, n=3000, n_features=12):
    """Vectors that vary by 3 and 2 along two directions and by 0.1 along the others."""
    axes = np.linalg.qr(rng.standard_normal((n_features, n_features)))[0]
    values = rng.standard_normal((n, n_features)) * np.r_[3.0, 2.0, np.full(n_features - 2, 0.1)]
    return values @ axes.T + 5.0, axes


def plane_of(start):
    """Templates of a start about their mean, and the mean."""
    templates = BASIS.phi @ start.weights
    return templates - templates.mean(axis=0), templates.mean(axis=0)


@pytest.mark.parametrize("most_exact", [1500, 4])
def test_nodes_lie_on_the_principal_plane_with_its_deviations(rng, monkeypatch, most_exact):
    monkeypatch.setattr(module, "MAX_FEATURES_EXACT", most_exact)  # 4: by subspace iteration
    values, axes = flat_cloud(rng)
    blocks = ArrayBlocks(values)
    start = pca_start(blocks, BASIS, measure_power(blocks), 1, rng=rng)
    templates, mean = plane_of(start)
    np.testing.assert_allclose(mean, values.mean(axis=0), atol=0.1)
    deviations = np.abs(templates @ axes).std(axis=0)
    spread = (templates @ axes).std(axis=0)
    np.testing.assert_allclose(spread[:2], [3.0, 2.0], rtol=0.15)
    assert spread[2:].max() < 0.15 and deviations.shape == (12,)


def test_images_are_corrected_for_their_ctf_first(rng):
    values, axes = flat_cloud(rng)
    ctf = rng.uniform(-1, 1, values.shape)  # signs alone would hide the plane
    layout = FeatureLayout(np.repeat([0, 1], 6), np.arange(12))
    blocks = ArrayBlocks(ctf * values + 0.1 * rng.standard_normal(values.shape), ctf=ctf, layout=layout)
    start = pca_start(blocks, BASIS, measure_power(blocks), 2, rng=rng)
    templates, mean = plane_of(start)
    np.testing.assert_allclose(mean, values.mean(axis=0), atol=0.3)
    share = ((templates @ axes[:, :2]) ** 2).sum() / (templates**2).sum()
    assert share > 0.9, f"only {share:.2f} of the start lies in the true plane"


def test_more_dimensions_than_features_leave_the_others_flat(rng):
    blocks = ArrayBlocks(rng.standard_normal((50, 1)))
    start = pca_start(blocks, BASIS, measure_power(blocks), 1, rng=rng)
    assert np.isfinite(start.weights).all() and start.weights.shape == (17, 1)


def test_a_random_start_has_the_power_of_the_signal_and_the_mean_image(rng):
    values, _ = flat_cloud(rng)
    blocks = ArrayBlocks(values)
    power = measure_power(blocks)
    starts = [random_start(BASIS, power, blocks.layout, rng=np.random.default_rng(i)) for i in range(60)]
    templates = np.stack([BASIS.phi @ start.weights for start in starts])
    np.testing.assert_allclose(templates.mean(axis=1), np.tile(power.mean, (60, 1)), atol=1e-8)
    assert (
        0.3 < templates.var(axis=1).mean() / power.signal[0] < 1.1
    )  # what is common to all nodes is removed
    again = random_start(BASIS, power, blocks.layout, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(again.weights, starts[0].weights)
