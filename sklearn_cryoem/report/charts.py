"""Convergence as geometry of an SVG: where lines, ticks and dots go; the page's template draws them."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from sklearn_cryoem.plotting.convergence import joined, resolution_ticks

LEFT, RIGHT, TOP, BOTTOM = 88.0, 560.0, 16.0, 266.0  # frame of the plot in a picture of 640 x 320


def chart(trace, unit):
    """Geometry of the picture of one fit.

    Parameters
    ----------
    trace : Trace
        What to draw.
    unit : str
        Of its resolution.

    Returns
    -------
    dict
        For the template: pieces of the objective, steps of the resolution, ticks, dots and their titles.
    """
    values = np.asarray(trace.objective, dtype=float)
    n_iter = len(values)
    stage = trace.resolution if trace.stage is None else trace.stage
    stage = np.zeros(n_iter) if stage is None else np.nan_to_num(np.asarray(stage, dtype=float))
    breaks = np.flatnonzero(stage[1:] != stage[:-1]) + 1
    curve = joined(values, breaks)
    x_of = _scale(0.5, n_iter + 0.5, LEFT, RIGHT)
    ticks = _ticks(curve.min(), curve.max())
    y_of = _scale(ticks[0], ticks[-1], BOTTOM, TOP)
    x, y = x_of(np.arange(1, n_iter + 1)), y_of(curve)
    pieces = [_path(x[part], y[part]) for part in np.split(np.arange(n_iter), breaks)]
    iterations = [i for i in MaxNLocator(8, integer=True).tick_values(1, n_iter) if 1 <= i <= n_iter]
    shown = {
        "title": trace.title, "label": f"{trace.label} (nats per particle)",
        "pieces": pieces, "whole": _path(x, y),
        "breaks": [_number(x_of(first + 0.5)) for first in breaks],
        "x_ticks": [(_number(x_of(i)), f"{i:.0f}") for i in iterations],
        "y_ticks": [(_number(y_of(tick)), f"{tick:,.6g}") for tick in ticks],
        "steps": "", "r_ticks": [], "r_label": f"{trace.resolution_label} ({unit})",
    }  # fmt: skip
    heights = None
    if trace.resolution is not None and np.isfinite(trace.resolution).any():
        heights = _add_resolution(shown, np.asarray(trace.resolution, dtype=float), x)
    shown["dots"] = [
        (
            _number(x[i]),
            _number(y[i]),
            _words(i, values[i], None if heights is None else trace.resolution[i], unit),
        )
        for i in range(n_iter)
    ]
    return shown


def _add_resolution(shown, resolution, x):
    """Steps and ticks on an axis linear in 1/resolution; finer is higher."""
    finite = resolution[np.isfinite(resolution)]
    coarsest, finest = finite.max() * 1.15, finite.min() * 0.9
    y_of = _scale(1 / coarsest, 1 / finest, BOTTOM, TOP)
    half = (RIGHT - LEFT) / len(x) / 2
    runs = [i for i in range(len(x)) if np.isfinite(resolution[i])]
    heights = y_of(1 / resolution[runs])
    ends = np.stack([x[runs] - half, x[runs] + half], axis=1).ravel()
    shown["steps"] = _path(ends, np.repeat(heights, 2))
    ticks = resolution_ticks(coarsest, finest)
    if len(ticks) < 2:  # hardly any change: the values themselves say more than round numbers
        ticks = np.unique([float(f"{value:.3g}") for value in (finite.min(), finite.max())])
    shown["r_ticks"] = [(_number(y_of(1 / tick)), f"{tick:g}") for tick in ticks]
    return heights


def _words(index, value, resolution, unit):
    """What a dot says when one points at it."""
    text = f"iteration {index + 1}: {value:,.6g} nats per particle"
    if resolution is not None and np.isfinite(resolution):
        text += f", {resolution:.3g} {unit}"
    return text


def _ticks(low, high):
    """Round values from below `low` to above `high`."""
    if high - low < 1e-9 * max(abs(low), abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high)]


def _scale(low, high, start, end):
    return lambda value: start + (np.asarray(value, dtype=float) - low) / (high - low) * (end - start)


def _path(x, y):
    return "M" + "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))


def _number(value):
    return f"{float(value):.1f}"
