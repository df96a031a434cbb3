"""Particles before a fit: what they look like, their CTF, their power spectrum."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.display import as_shown
from sklearn_cryoem.physics.fourier import fourier_resize
from sklearn_cryoem.physics.images import radial_power
from sklearn_cryoem.plotting._figure import ACCENT, FAINT, INK, new_figure
from sklearn_cryoem.plotting.gallery import plot_class_averages

MOST_SHOWN, MOST_MEASURED = 48, 500  # particles


def plot_particles(stack: ParticleStack, lowpass: float | None = 20.0) -> Figure:
    """Draw particles, turned and centred if they have poses.

    Parameters
    ----------
    stack : ParticleStack
        Up to 48 are drawn, evenly spread over it; ``stack[:48]`` are the first.
    lowpass : float or None, default=20.0
        Finest detail that is drawn, in Angstrom (pixels where the pixel size is unknown); None for all. At 20
        Angstrom most particles can be seen in their noise.

    Returns
    -------
    matplotlib Figure
    """
    rows = _spread(stack, MOST_SHOWN)
    title, box = f"{len(rows):,} of {len(stack):,} particles", stack.box
    if lowpass is not None:
        title += f", low-passed to {lowpass:g} {'px' if stack.pixel_size is None else 'Å'}"
        box = min(max(round(2 * stack.box * stack.pixel_length / lowpass), 8), stack.box)
    shown = fourier_resize(as_shown(stack[rows], box), stack.box)
    return plot_class_averages(shown, pixel_size=stack.pixel_size, n_columns=min(len(rows), 12), title=title)


def plot_ctf(stack: ParticleStack) -> Figure:
    """Draw the CTF of the particles of least, median and most defocus, and how the defocus is spread.

    Parameters
    ----------
    stack : ParticleStack
        With CTF parameters and a pixel size.

    Returns
    -------
    matplotlib Figure

    Raises
    ------
    ParticleDataError
        If the particles have no CTF.
    """
    if stack.ctf is None or stack.pixel_size is None:
        raise ParticleDataError(
            "the particles have no CTF, or no pixel size. Read a file that has both, such as a STAR file."
        )
    defocus = stack.ctf.mean_defocus_angstrom
    order = np.argsort(defocus, kind="stable")
    chosen = order[[0, len(order) // 2, -1]]
    frequency = np.linspace(0.0, 0.5 / stack.pixel_size, 800)
    figure = new_figure(9.0, 3.2)
    curve, spread = figure.subplots(1, 2, width_ratios=(2, 1))
    values = stack.ctf[chosen].evaluate(frequency, np.zeros(len(frequency)))
    for one, ctf, colour in zip(defocus[chosen], values, (FAINT, ACCENT, INK), strict=True):
        curve.plot(frequency, ctf, color=colour, lw=1.0, label=f"{one:,.0f} Å")
    curve.legend(title="defocus", frameon=False, fontsize=8, ncols=3, loc="upper right")
    curve.set(ylabel="CTF", ylim=(-1.1, 1.5), xlim=(0.0, frequency[-1]))
    _in_angstrom(curve)
    spread.hist(defocus, bins=30, color=ACCENT)
    spread.set(xlabel="mean defocus (Å)", ylabel="particles")
    return figure


def plot_power_spectrum(stack: ParticleStack) -> Figure:
    """Draw the power of the particles against resolution, and the mean square of their CTF.

    Parameters
    ----------
    stack : ParticleStack
        Up to 500 particles, evenly spread over it, are read.

    Returns
    -------
    matplotlib Figure
    """
    some = stack[_spread(stack, MOST_MEASURED)]
    power = radial_power(some.read())[:, 1 : stack.box // 2]  # (n_images, n_shells)
    frequency = np.arange(1, stack.box // 2) / (stack.box * stack.pixel_length)
    figure = new_figure(7.0, 3.4)
    ax = figure.add_subplot()
    low, middle, high = np.percentile(power, (10, 50, 90), axis=0)
    ax.fill_between(frequency, low, high, color=ACCENT, alpha=0.15, lw=0)
    ax.plot(frequency, middle, color=ACCENT)
    ax.set_yscale("log")
    ax.set_ylabel("power: median, 10 to 90 % of particles", color=ACCENT)
    ax.set_xlim(0.0, frequency[-1])
    _in_angstrom(ax, "px" if stack.pixel_size is None else "Å")
    if some.ctf is not None:
        twin = ax.twinx()
        square = some.ctf.evaluate(frequency, np.zeros(len(frequency))) ** 2
        twin.plot(frequency, square.mean(axis=0), color=FAINT, lw=1.0)
        twin.set(ylim=(0.0, 1.05))
        twin.set_ylabel("mean square of the CTF", color=FAINT)
    ax.set_title(f"Power spectrum of {len(some):,} of {len(stack):,} particles", color=INK, fontsize=10)
    return figure


def _spread(stack, most):
    """Rows of at most so many particles, evenly spread."""
    if not len(stack):
        raise ParticleDataError("the stack holds no particles: nothing can be drawn. Give at least one.")
    return np.unique(np.linspace(0, len(stack) - 1, min(len(stack), most)).astype(int))


def _in_angstrom(ax, unit="Å"):
    """Write frequencies along an axis as resolutions."""
    ticks = ax.get_xticks()
    ticks = ticks[(ticks > 0) & (ticks <= ax.get_xlim()[1])]
    ax.set_xticks(ticks, [f"{1 / tick:.3g}" for tick in ticks])
    ax.set_xlabel(f"resolution ({unit})")
