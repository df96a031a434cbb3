"""The algorithm of the paper against a loop of its own, in double precision: Eq. (9) to (13) of the paper."""

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import half_plane

N_STEPS = 6


def paper(max_iter, **options):
    return SMLClusterer((4, 3), algorithm="paper", max_iter=max_iter, tol=0.0, **options)


def responsibilities(cy, c2, templates, noise, share):
    """Posterior of each node, image by image; `share` of the values of a masked image is independent."""
    found = np.empty((len(cy), len(templates)))
    for i in range(len(cy)):
        misfit = [(c2[i] * mu**2 - 2.0 * cy[i] * mu).sum() for mu in templates]  # |y - c mu|^2 - |y|^2
        likelihood = np.exp(-0.5 * share / noise * (np.array(misfit) - min(misfit)))
        found[i] = likelihood / likelihood.sum()
    return found


@pytest.fixture(scope="module")
def stack():
    options = {"box": 24, "snr": 0.3, "astigmatism": 2000.0, "random_state": 0}
    return aligned_to_truth(make_particles("ribosome", 120, **options))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("alpha", [0.02, "auto"])
def test_it_is_the_em_of_the_paper(stack, alpha):
    first, model = (paper(n, alpha=alpha).fit(stack) for n in (2, 2 + N_STEPS))
    blocks = FeatureBlocks(stack, half_plane(24))
    block, layout = blocks.load(0, blocks.layout.n_shells), blocks.layout
    assert len(blocks) == 1 and layout.n_norms > layout.n_shells  # one c^2 for each coefficient
    cy, c2 = block.data.astype(float), block.norm[:, layout.norm_index].astype(float)
    power, share, phi = block.power.sum(), layout.information, model._manifold.basis.phi
    precision = float(first.alpha_[0])
    np.testing.assert_array_equal(model.alpha_, precision)
    weights, noise = first.weights_, first.noise_variance_[0]
    for _ in range(N_STEPS):
        resp = responsibilities(cy, c2, phi @ weights, noise, share)
        weights = np.empty_like(weights)
        for j in range(cy.shape[1]):
            gram = share / noise * phi.T @ np.diag(resp.T @ c2[:, j]) @ phi + precision * np.eye(phi.shape[1])
            weights[:, j] = np.linalg.solve(gram, share / noise * phi.T @ (resp.T @ cy[:, j]))
        templates = phi @ weights
        fitted = (resp.T @ cy * templates).sum(), (resp.T @ c2 * templates**2).sum()
        noise = (power - 2.0 * fitted[0] + fitted[1]) / cy.size
    scale = np.abs(weights).max()
    np.testing.assert_allclose(model.weights_, weights, atol=1e-4 * scale)
    np.testing.assert_allclose(model.noise_variance_, noise, rtol=1e-5)
    expected = responsibilities(cy, c2, phi @ weights, noise, share)
    np.testing.assert_allclose(model.predict_proba(stack), expected, atol=1e-3)
    assert not model.held_out_.any()


def test_its_objective_never_falls_and_it_is_told_where_it_stops(stack):
    with pytest.warns(ConvergenceWarning, match="Raise max_iter or tol"):
        model = paper(12).fit(stack)
    assert (np.diff(model.log_posterior_) > -1e-6 * np.abs(model.log_posterior_[-1])).all()
    assert (model.stage_ == 0).all()


def test_an_algorithm_that_does_not_exist_is_refused(stack):
    with pytest.raises(ValueError, match="cross-fitted"):
        SMLClusterer(4, algorithm="newton").fit(stack)
