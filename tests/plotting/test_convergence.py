"""How a fit went: what is drawn of it, and what is said of its end."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

from sklearn_cryoem import MAPAligner, SMLClusterer
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.plotting import plot_convergence
from sklearn_cryoem.plotting.convergence import fits_of


def aligner(changed=0.1, **facts):
    """What a fitted aligner tells of five mini-batches and two passes."""
    history = {
        "log_evidence": np.arange(7.0), "resolution": np.r_[np.inf, 40.0, 30, 30, 20, 20, 18],
        "n_references": np.full(7, 9.0), "changed": np.r_[np.nan, np.linspace(0.9, changed, 6)],
    }  # fmt: skip
    told = {"history_": history, "n_iter_": 2, "max_iter": 5, "converged_": True}
    return SimpleNamespace(**(told | facts))


def clusterer(last_gain=0.001, **facts):
    """What a fitted clusterer tells of six cross-fitted iterations and four of ordinary EM."""
    objective = np.r_[np.linspace(-90, -80, 6), -70.0, -60.0, -59.0, -59.0 + last_gain]
    told = {
        "log_posterior_": objective, "above_noise_": objective + 100, "stage_": np.r_[0:6, 6, 7, 7, 7],
        "held_out_": np.arange(10) < 6,
        "iteration_resolution_": np.r_[40, 40, 30, 30, 20, 20, 20, 10, 10, 10.0],
        "n_iter_": 10, "max_iter": 80, "tol": 0.01, "converged_": True, "n_effective_clusters_": 1.2,
    }  # fmt: skip
    return SimpleNamespace(**(told | facts))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (aligner(), r"^converged after 2 passes .*; 10\.0% of the particles changed reference in the last$"),
        (
            aligner(converged_=False, max_iter=2),
            "^not converged within max_iter = 2 passes; .* Raise max_iter",
        ),
        (aligner(converged_=False), "^interrupted after 2 passes"),
        (aligner(changed=np.nan), "^converged after 2 passes over all particles$"),
        (clusterer(), r"^converged after 10 iterations; the last one gained 0\.001 nats .* tol = 0\.01$"),
        (
            clusterer(0.5, converged_=False, max_iter=10),
            r"^not converged .*gained 0\.5 nats .* Raise max_iter",
        ),
        (clusterer(0.5, converged_=False), "^interrupted after 10 iterations"),
        (clusterer(converged_=False), r"^collapsed: its classes tell apart like 1\.2 clear ones"),
    ],
)
def test_the_end_of_a_fit_is_said_in_words(model, said):
    (fit,) = fits_of(model)
    assert re.search(said, fit.outcome), fit.outcome


def test_phases_have_panels_of_their_own_and_every_step_is_drawn(tmp_path):
    from sklearn_cryoem.plotting._figure import new_figure
    from sklearn_cryoem.plotting.convergence import draw_fit

    (fit,) = fits_of(clusterer())
    figure = new_figure(6, 3)
    draw_fit(figure, fit)
    held_out, ordinary = (ax for ax in figure.axes if ax.get_title())
    assert held_out.get_title() == "cross-fitted: held-out particles"
    np.testing.assert_array_equal(held_out.lines[0].get_xdata(), np.arange(1, 7))
    np.testing.assert_array_equal(held_out.lines[0].get_ydata(), clusterer().above_noise_[:6])
    np.testing.assert_array_equal(ordinary.lines[0].get_xdata(), np.arange(7, 11))
    resolution = next(ax for ax in figure.axes if ax.get_ylabel() == "resolution limit (Å)")
    coarse, fine = resolution.transData.transform([(7, 40), (7, 10)])[:, 1]
    assert fine > coarse
    figure.savefig(tmp_path / "fit.png", dpi=40)


def test_a_stream_has_a_panel_for_every_run_of_iterations_and_vectors_have_no_second_axis():
    model = clusterer(held_out_=np.r_[np.arange(9) < 6, True], iteration_resolution_=np.full(10, np.nan))
    (subfigure,) = plot_convergence(model).subfigs
    assert [ax.lines[0].get_xdata().tolist() for ax in subfigure.axes] == [[*range(1, 7)], [7, 8, 9], [10]]


def test_one_step_without_any_resolution_is_drawn(tmp_path):
    told = {"log_evidence": -3.0, "resolution": np.inf, "n_references": 4, "changed": np.nan}
    history = {name: np.array([value]) for name, value in told.items()}
    plot_convergence(aligner(history_=history, n_iter_=1)).savefig(tmp_path / "one.png", dpi=40)


def test_a_fitted_pipeline_shows_all_its_fits():
    stack = make_particles("ribosome", 60, box=16, snr=1.0, random_state=0)
    model = SMLClusterer((2, 3), max_iter=70)
    fitted = MAPAligner(2, n_batches=2, max_iter=1, random_state=0)
    with pytest.warns(match="max_iter"):
        aligned = fitted.fit_transform(stack)
    model.fit(aligned)
    (of_aligner,), (of_clusterer,) = fits_of(fitted, stack), fits_of(model, stack)
    assert of_aligner.phase.tolist() == [0, 0, 1]
    above = of_clusterer.measures[0].values
    assert len(above) == model.n_iter_ and (above > 0).all(), "classes explain more than noise"
    assert len(plot_convergence(model, stack).subfigs) == 1
    with pytest.raises(TypeError, match="Pass a fitted MAPAligner"):
        plot_convergence(SMLClusterer())
