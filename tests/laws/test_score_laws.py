"""Held-out likelihoods, Eq. (3.9), can be compared between models of any shape."""

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.model_selection import GridSearchCV, KFold

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import make_particles

pytestmark = pytest.mark.filterwarnings("ignore:.*no-poses")  # images that are laid out as they should be


@pytest.fixture(scope="module")
def particles():
    settings = {"n_samples": 600, "box": 24, "in_plane": False, "random_state": 0}
    clean = make_particles("ribosome", snr=None, defocus=None, **settings).read()
    return make_particles("ribosome", snr=0.2, **settings), clean


SHAPES = [
    {"n_clusters": (1, 1)},
    {"n_clusters": 9, "n_basis": 4},
    {"n_clusters": 12, "n_components": 1, "n_basis": 5},
    {"n_clusters": 8, "n_components": 3},
    {"n_clusters": 12, "topology": "sphere"},
]


def test_the_same_density_has_the_same_score_whatever_it_is_laid_out_on(particles):
    stack, _ = particles
    # an infinite prior leaves the bias alone, so all nodes of all shapes have the same template
    scores = [SMLClusterer(alpha=1e12, **shape).fit(stack[:300]).score(stack[300:]) for shape in SHAPES]
    # more nodes have more folds: templates (3.17) are made of nine tenths, not of three quarters
    np.testing.assert_allclose(scores, scores[0], rtol=2e-4)


def test_a_score_is_the_mean_log_density_of_the_data():
    rng = np.random.default_rng(0)
    X = 3.0 + 2.0 * rng.standard_normal((400, 2))
    model = SMLClusterer((1, 1)).fit(X[:200])
    expected = (
        norm(X[:200].mean(axis=0), np.sqrt(model.noise_variance_[0])).logpdf(X[200:]).sum(axis=1).mean()
    )
    assert model.score(X[200:]) == pytest.approx(expected, abs=1e-3)
    assert model.score(X[200:]) == pytest.approx(norm(3.0, 2.0).logpdf(X[200:]).sum(axis=1).mean(), abs=0.05)


@pytest.mark.filterwarnings(
    "ignore:The map of SMLClusterer collapsed"
)  # two basis functions tell little apart
def test_a_grid_search_picks_what_agrees_best_with_noise_free_images(particles):
    def agreement(model, stack, truth):
        templates = model.cluster_centers_[model.predict(stack)].reshape(len(stack), -1)
        pairs = zip(templates, truth.reshape(len(truth), -1), strict=True)
        return np.mean([np.corrcoef(one, other)[0, 1] for one, other in pairs])

    search = GridSearchCV(
        SMLClusterer(25, max_resolution=35.0, max_iter=50),
        {"n_components": [1, 2], "n_basis": [2, 9, 25]},
        scoring={"held_out": lambda model, stack, y: model.score(stack), "truth": agreement},
        refit="held_out",
        cv=KFold(2, shuffle=True, random_state=0),
        error_score="raise",
    ).fit(*particles)
    scores, truth = (search.cv_results_[f"mean_test_{name}"] for name in ("held_out", "truth"))
    assert np.corrcoef(scores, truth)[0, 1] > 0.8
    lost = (truth.max() - truth[scores.argmax()]) / np.ptp(truth)
    assert lost < 0.25, f"the pick is {lost:.2f} of the way down"
    assert search.best_estimator_.n_images_seen_ == 600
