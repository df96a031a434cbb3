"""How fits went, step by step: evidence, resolution, references in use, particles that changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray
from sklearn.base import BaseEstimator

from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.classes import check_order, steps_of
from sklearn_cryoem.plotting._figure import ACCENT, FAINT, INK, new_figure

SECOND_COLOUR = "#b2182b"
WIDTH_INCH, ROW_INCH, HEAD_INCH = 7.6, 1.9, 0.9
LEAST_SHARE = 0.22  # of the width, for a phase of few steps
MOST_DOTS = 40  # more steps than this are a plain line


class Measure(NamedTuple):
    """One value for each step of a fit."""

    label: str
    values: NDArray[np.float64]
    is_resolution: bool = False  # finer is higher, linear in 1/Angstrom: equal steps are equal news
    starts_at_zero: bool = False


@dataclass
class Fit:
    """How one fit went.

    Parameters
    ----------
    title, outcome : str
        What was fitted, and whether it converged or why not.
    panels : list of tuple of Measure
        Pairs that are drawn together, on the left and on the right axis.
    phase : ndarray of shape (n_steps,)
        Phase of each step; values compare inside a phase.
    names : sequence of str
        Of the phases.
    """

    title: str
    outcome: str
    panels: list[tuple[Measure, ...]]
    phase: NDArray[np.int64]
    names: tuple[str, ...]

    @property
    def measures(self) -> list[Measure]:
        """All of them, in order."""
        return [measure for panel in self.panels for measure in panel]


def plot_convergence(classification: BaseEstimator, stack: ParticleStack | None = None) -> Figure:
    """Draw how the fits of an estimator went, one above the other, and say whether they converged.

    Parameters
    ----------
    classification : estimator
        A fitted `MAPAligner`, `ProjectionClusterer`, `SMLClusterer`, `RealigningClusterer` or `DeepClusterer`
        (its first classification, and the largest class that it divided), or a Pipeline of them.
    stack : ParticleStack, default=None
        What was classified: resolutions are in pixels where its pixel size is unknown.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    TypeError
        If classification and particles are swapped, or the estimator does not tell how its fit went.

    Notes
    -----
    Phases of a fit, such as mini-batches and full passes, have panels of their own, because their values do
    not compare. The log evidence is that of particles against noise alone. A mini-batch has its own
    particles, so that its evidence varies from batch to batch; that of cross-fitted iterations is of
    particles that the templates were not made from, Eq. (3.12).
    """
    check_order("plot_convergence", classification, stack)
    fits = fits_of(classification, stack)
    if not fits:
        raise TypeError(
            f"{type(classification).__name__} does not tell how its fit went. Pass a fitted MAPAligner, "
            "SMLClusterer or DeepClusterer, or a Pipeline of them."
        )
    heights = [HEAD_INCH + ROW_INCH * len(fit.panels) for fit in fits]
    figure = new_figure(WIDTH_INCH, sum(heights))
    parts = figure.subfigures(len(fits), height_ratios=heights, squeeze=False)[:, 0]
    for fit, part in zip(fits, parts, strict=True):
        part.suptitle(f"{fit.title}: {fit.outcome}", color=INK, fontsize=9, wrap=True)
        draw_fit(part, fit)
    return figure


def draw_fit(figure, fit):
    """Draw the panels of one fit: a column for each phase, a row for each pair of measures.

    Parameters
    ----------
    figure : Figure or SubFigure
        Where to draw.
    fit : Fit
        What to draw.
    """
    n_steps = len(fit.phase)
    runs = np.split(np.arange(n_steps), np.flatnonzero(np.diff(fit.phase)) + 1)  # a stream has many phases
    shares = [max(len(run) / n_steps, LEAST_SHARE) for run in runs]
    grid = figure.subplots(len(fit.panels), len(runs), squeeze=False, sharex="col", width_ratios=shares)
    for row, panel in zip(grid, fit.panels, strict=True):
        for axes, here in zip(row, runs, strict=True):
            twin = [axes.twinx()] if len(panel) > 1 else []
            for ax, measure, colour in zip([axes, *twin], panel, (ACCENT, SECOND_COLOUR), strict=False):
                style = {"marker": "o", "ms": 3} if len(here) <= MOST_DOTS else {}
                ax.plot(here + 1, measure.values[here], color=colour, lw=1.2, **style)
                if measure.starts_at_zero:
                    ax.set_ylim(0.0, 1.08 * max(np.nanmax(measure.values, initial=0.0), 1.0))
                    ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
                ax.tick_params(axis="y", labelsize=7, labelcolor=colour)
                ax.spines["top"].set_visible(False)
                if measure.is_resolution:
                    _show_resolution(ax, measure.values)
                if here is (runs[0] if ax is axes else runs[-1]):
                    ax.set_ylabel(measure.label, color=colour, fontsize=8)
            axes.grid(axis="y", color=FAINT, alpha=0.25, lw=0.6)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
            axes.tick_params(axis="x", labelsize=7)
            axes.set_xlim(here[0] + 0.5, here[-1] + 1.5)
    for axes, here in zip(grid[0], runs, strict=True):
        axes.set_title(fit.names[fit.phase[here[0]]], color=INK, fontsize=8)
    for axes in grid[-1]:
        axes.set_xlabel("step", color=INK, fontsize=8)


def _show_resolution(ax, values):
    """Scale of an axis of resolutions, the same for all phases."""
    ax.set_yscale("function", functions=(_minus_reciprocal, _minus_reciprocal))
    finite = values[np.isfinite(values)]
    if finite.size:
        ax.set_ylim(finite.max() * 1.15, finite.min() * 0.9)
        even = 1.0 / np.linspace(1.0 / finite.max(), 1.0 / finite.min(), 6)
        ax.yaxis.set_major_locator(FixedLocator(np.unique([float(f"{value:.3g}") for value in even])))
        ax.yaxis.set_minor_locator(NullLocator())


def _minus_reciprocal(values):
    # Its own inverse, and rising, as matplotlib wants of a scale; the axis is then turned over by its limits.
    return -1.0 / np.where(values == 0, np.finfo(float).tiny, values)


# ---------------------------------------------------------------- of estimators
def fits_of(model, stack=None):
    """How the fits of an estimator went, in order.

    Parameters
    ----------
    model : estimator or Pipeline
        Fitted. Of a deep clustering the first classification and the largest class are taken.
    stack : ParticleStack or None
        For the unit of resolutions.

    Returns
    -------
    list of Fit
    """
    unit = "px" if stack is not None and stack.pixel_size is None else "Å"
    steps = steps_of(model)
    if len(steps) != 1:
        return [fit for step in steps for fit in fits_of(step, stack)]
    model = getattr(steps[0], "clusterer_", steps[0])  # of a RealigningClusterer
    if hasattr(model, "first_"):
        return [*fits_of(model.first_, stack), *_fit_of_largest(model, stack)]
    if hasattr(model, "history_"):
        return [_fit_of_aligner(model, unit)]
    return [_fit_of_clusterer(model, unit)] if hasattr(model, "above_noise_") else []


def _fit_of_aligner(model, unit):
    history = model.history_
    panels = [
        (
            Measure("log evidence\n(nats per particle)", history["log_evidence"]),
            Measure(f"best reference ({unit})", history["resolution"], True),
        ),
        (
            Measure("references\nwith particles", history["n_references"], starts_at_zero=True),
            Measure("changed their\nreference (%)", 100.0 * history["changed"], starts_at_zero=True),
        ),
    ]
    phase = (np.arange(len(history["changed"])) >= len(history["changed"]) - model.n_iter_).astype(int)
    changed, passes = history["changed"][-1], f"{model.n_iter_} pass{'es' if model.n_iter_ > 1 else ''}"
    moved = "" if np.isnan(changed) else f"; {changed:.1%} of the particles changed reference in the last"
    if model.converged_:
        outcome = f"converged after {passes} over all particles{moved}"
    elif model.n_iter_ < model.max_iter:
        outcome = f"interrupted after {passes}{moved}"
    else:
        outcome = f"not converged within max_iter = {passes}{moved}. Raise max_iter or n_batches"
    return Fit("Alignment", outcome, panels, phase, ("mini-batches", "full passes"))


def _fit_of_clusterer(model, unit):
    gain = np.nan
    if len(model.stage_) > 1 and model.stage_[-1] == model.stage_[-2]:
        gain = model.log_posterior_[-1] - model.log_posterior_[-2]
    last = "what the last gained cannot be told"
    if np.isfinite(gain):
        last = f"the last one gained {gain:.2g} nats per particle"
    if model.converged_:
        outcome = f"converged after {model.n_iter_} iterations; {last}, less than tol = {model.tol:g}"
    elif gain < model.tol:
        outcome = f"collapsed: its classes tell apart like {model.n_effective_clusters_:.1f} clear ones"
    elif model.n_iter_ < model.max_iter:
        outcome = f"interrupted after {model.n_iter_} iterations"
    else:
        outcome = f"not converged within {model.n_iter_} iterations; {last}. Raise max_iter or tol"
    measures = [Measure("log evidence\n(nats per particle)", model.above_noise_)]
    if np.isfinite(model.iteration_resolution_).any():  # vectors have none
        measures.append(Measure(f"resolution limit ({unit})", model.iteration_resolution_, True))
    names = ("cross-fitted: held-out particles", "EM: all particles")
    return Fit("Clustering", outcome, [tuple(measures)], (~model.held_out_).astype(int), names)


def largest_divided(deep):
    """Number, from 0, of the largest class that a deep clustering divided; None if it divided none."""
    sizes = np.bincount(deep.first_labels_, minlength=len(deep.clusterers_))
    divided = [k for k, clusterer in enumerate(deep.clusterers_) if clusterer is not None]
    return max(divided, key=lambda k: sizes[k], default=None)


def _fit_of_largest(deep, stack):
    largest = largest_divided(deep)
    if largest is None:
        return []
    *_, fit = fits_of(deep.clusterers_[largest], stack)
    fit.title = f"Clustering inside class {largest + 1}, the largest"
    return [fit]
