"""How a fit went: objective and resolution, iteration by iteration."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from sklearn_cryoem._core.validation import ParticleDataError, check_length
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.classes import check_order, steps_of
from sklearn_cryoem.plotting._figure import ACCENT, FAINT, INK, new_axes

RESOLUTION_COLOUR = "#b2182b"
CROSS_FITTED, FITTED = "cross-fitted: fit to held-out images", "EM: fit to all images"


def plot_convergence(
    classification: BaseEstimator | ArrayLike,
    stack: ParticleStack | None = None,
    *,
    resolution: ArrayLike | None = None,
    stage: ArrayLike | None = None,
    held_out: ArrayLike | None = None,
    label: str = "log posterior",
    resolution_label: str = "resolution limit (Å)",
    title: str = "Convergence",
    ax: Axes | None = None,
) -> Axes:
    """Draw the objective of a fit against the iteration.

    Parameters
    ----------
    classification : estimator or array-like of shape (n_iter,)
        A fitted `MAPAligner`, `SMLClusterer` or `DeepClusterer` (of which the last fit is drawn), or a
        Pipeline that ends in one: everything below is taken from it. Or the objective after each iteration.
    stack : ParticleStack, default=None
        What was classified: resolutions are in pixels where its pixel size is unknown.
    resolution : array-like of shape (n_iter,), default=None
        Resolution limit of each iteration in Angstrom, drawn as steps on a second axis (finer is higher).
    stage : array-like of shape (n_iter,), default=None
        Anything that changes when the objective itself changes (frequencies, images): values
        across a change cannot be compared. By default where `resolution` does.
    held_out : array-like of shape (n_iter,), bool, default=None
        Which iterations are cross-fitted, the first ones. Their objective is the likelihood of held-out
        images, that of the rest the fit to all images: they are shaded, and named in the picture.
    label : str
        Name of the objective, at the vertical axis.
    resolution_label : str
        Name of the resolution, at the second axis.
    title : str
        Title of the picture.
    ax : matplotlib Axes, default=None
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib Axes

    Raises
    ------
    ParticleDataError
        If the arrays differ in length or are empty.
    TypeError
        If classification and particles are swapped, or the estimator keeps no objective.

    Notes
    -----
    Where the objective changes, the line is broken (a faint vertical line marks it) and what came before is
    moved up or down to join: what can be seen is the gain within stages. The values of the last stage are the
    true ones. Cross-fitted iterations are drawn once all frequencies are in use: before, their objective
    changes by more than they gain.
    """
    check_order("plot_convergence", classification, stack)
    if isinstance(classification, BaseEstimator):
        fits = fits_of(classification, stack)
        if not fits:
            raise TypeError(
                f"{type(classification).__name__} keeps no objective of its fit. Pass a fitted MAPAligner, "
                "SMLClusterer or DeepClusterer, or the values themselves."
            )
        return plot_convergence(**fits[-1], ax=ax)
    trace = np.asarray(classification, dtype=float).ravel()  # (n_iter,)
    given = {"resolution": resolution, "stage": stage, "held_out": held_out}
    if trace.size == 0:
        raise ParticleDataError("log_posterior is empty. Fit the estimator for at least one iteration first.")
    for name, values in given.items():
        if values is not None:
            check_length(name, values, len(trace), "iteration")
    if ax is None:
        ax = new_axes(6.4, 3.8)
    iterations = np.arange(1, len(trace) + 1)
    parts, held_out = pieces(len(trace), **given)
    trace = joined(trace, np.array([part[0] for part in parts[1:]], dtype=int))
    for number, part in enumerate(parts):
        if not held_out[part[0]]:
            ax.plot(iterations[part], trace[part], color=ACCENT, lw=1.6, marker="o", ms=3.5)
            if number:
                ax.axvline(iterations[part[0]] - 0.5, color=FAINT, lw=0.6, alpha=0.35, zorder=0)
        # Of the cross-fitted pieces only the last, after all changes, is worth drawing.
        elif number + 1 == len(parts) or not held_out[parts[number + 1][0]]:
            ax.plot(iterations[part], trace[part], color=ACCENT, lw=1.2, ls="--", marker="o", ms=3.5, mfc="w")
    if held_out.any():
        _shade(ax, held_out)
    ax.set_xlabel("iteration", color=INK)
    ax.set_ylabel(label, color=ACCENT)
    ax.set_title(title, color=INK, fontsize=11, pad=18 if held_out.any() else None)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    ax.set_xlim(0.5, len(trace) + 0.5)
    ax.ticklabel_format(axis="y", useOffset=False)
    ax.grid(axis="y", color=FAINT, alpha=0.25, lw=0.6)
    ax.spines[["top", "right"]].set_visible(False)
    if resolution is not None:
        _resolution_steps(ax, iterations, np.asarray(resolution, dtype=float), resolution_label)
    return ax


def fits_of(model, stack=None):
    """How the fits of an estimator went: arguments of `plot_convergence` for each, in order.

    Parameters
    ----------
    model : estimator or Pipeline
        Fitted. Of a deep clustering the first classification and the largest class are taken.
    stack : ParticleStack or None
        For the unit of resolutions.

    Returns
    -------
    list of dict
    """
    unit = "px" if stack is not None and stack.pixel_size is None else "Å"
    steps = steps_of(model)
    if len(steps) != 1:
        return [fit for step in steps for fit in fits_of(step, stack)]
    model = steps[0]
    if hasattr(model, "first_"):
        return [*fits_of(model.first_, stack), *_fit_of_largest(model, stack)]
    if hasattr(model, "pass_resolution_"):
        reached = np.asarray(model.pass_resolution_, dtype=float)
        return [
            {
                "title": "Alignment: passes over all particles",
                "classification": model.log_posterior_,
                "label": "log evidence (nats per particle)",
                "resolution": reached,
                "resolution_label": f"best reference ({unit})",
                "stage": [0.0, *reached[:-1]],  # what a pass reaches is what the next one uses
            }
        ]
    if hasattr(model, "stage_"):
        return [
            {
                "title": "Clustering",
                "classification": model.log_posterior_,
                "label": "objective (nats per particle)",
                "resolution": model.iteration_resolution_,
                "resolution_label": f"resolution limit ({unit})",
                "stage": model.stage_,
                "held_out": model.held_out_,
            }
        ]
    return []


def _fit_of_largest(deep, stack):
    """How the largest class of a deep clustering was divided."""
    sizes = np.bincount(deep.first_labels_, minlength=len(deep.clusterers_))
    divided = [k for k, clusterer in enumerate(deep.clusterers_) if clusterer is not None]
    largest = max(divided, key=lambda k: sizes[k], default=None)
    if largest is None:
        return []
    *_, fit = fits_of(deep.clusterers_[largest], stack)
    return [{**fit, "title": f"Clustering inside class {largest + 1}, the largest"}]


def pieces(n_iter, *, resolution=None, stage=None, held_out=None):
    """Iterations whose objectives compare with each other, piece by piece.

    Parameters
    ----------
    n_iter : int
        Number of iterations.
    resolution, stage, held_out : array-like of shape (n_iter,) or None
        As for `plot_convergence`.

    Returns
    -------
    pieces : list of ndarray of int
        Iterations from 0, in order.
    held_out : ndarray of shape (n_iter,), bool
        All False where it is not known.
    """
    stage = resolution if stage is None else stage
    stage = np.zeros(n_iter) if stage is None else np.asarray(stage)
    changes = stage[1:] != stage[:-1]
    held_out = np.zeros(n_iter, dtype=bool) if held_out is None else np.asarray(held_out, dtype=bool)
    both = held_out[1:] & held_out[:-1]  # each is a stage of its own, for nothing makes them rise
    changes[both] = False
    if resolution is not None:
        changes |= both & (np.diff(resolution) != 0)
    return np.split(np.arange(n_iter), np.flatnonzero(changes) + 1), held_out


def _shade(ax, held_out):
    """A band behind the cross-fitted iterations; above both ends, within the axes, what was measured."""
    end = np.flatnonzero(held_out)[-1] + 1.5
    ax.axvspan(0.5, end, color=ACCENT, alpha=0.07, lw=0, zorder=0)
    sides = [(0.0, CROSS_FITTED, "left")] + ([] if held_out.all() else [(1.0, FITTED, "right")])
    for x, text, side in sides:
        ax.annotate(
            text, (x, 1.0), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points",
            ha=side, va="bottom", fontsize=8, color=INK,
        )  # fmt: skip


def joined(trace, breaks):
    """A trace in pieces, each moved so that it begins where the one before ends; the last stays.

    Parameters
    ----------
    trace : ndarray of shape (n_iter,)
        Values that can be compared within a piece alone.
    breaks : sequence of int
        Index of the first value of each piece but the first.

    Returns
    -------
    ndarray of shape (n_iter,)
    """
    jumps = np.zeros(len(trace))
    jumps[breaks] = trace[breaks] - trace[np.asarray(breaks, dtype=int) - 1]
    return trace + jumps.sum() - np.cumsum(jumps)


def _resolution_steps(ax, iterations, resolution, label):
    """Resolution on a second axis, linear in 1/Angstrom so that equal steps are equal news."""
    twin = ax.twinx()
    twin.step(iterations, resolution, where="mid", color=RESOLUTION_COLOUR, lw=1.2, alpha=0.8)
    twin.set_yscale("function", functions=(_minus_reciprocal, _minus_reciprocal))
    finite = resolution[np.isfinite(resolution)]
    if finite.size:
        coarsest, finest = finite.max() * 1.15, finite.min() * 0.9
        twin.set_ylim(coarsest, finest)
        even = 1.0 / np.linspace(1.0 / finite.max(), 1.0 / finite.min(), 6)
        twin.yaxis.set_major_locator(FixedLocator(np.unique([float(f"{value:.3g}") for value in even])))
        twin.yaxis.set_minor_locator(NullLocator())
    twin.set_ylabel(label, color=RESOLUTION_COLOUR)
    twin.spines[["top"]].set_visible(False)
    twin.set_zorder(0)
    ax.set_zorder(1)
    ax.patch.set_visible(False)


def _minus_reciprocal(values):
    # Its own inverse, and rising, as matplotlib wants of a scale; the axis is then turned over by its limits.
    return -1.0 / np.where(values == 0, np.finfo(float).tiny, values)
