"""Convergence as geometry of an SVG: where lines, ticks and dots go; the page's template draws them."""

import numpy as np
from matplotlib.ticker import MaxNLocator

from sklearn_cryoem.plotting.convergence import (
    CROSS_FITTED,
    FITTED,
    is_drawn,
    joined,
    pieces,
    resolution_ticks,
)

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
    parts, held_out = _pieces(trace, n_iter)
    curve = joined(values, np.array([part[0] for part in parts[1:]], dtype=int))
    drawn = [part for number, part in enumerate(parts) if is_drawn(number, parts, held_out)]
    seen = np.concatenate(drawn)  # iterations
    x_of = _scale(0.5, n_iter + 0.5, LEFT, RIGHT)
    ticks = _ticks(curve[seen].min(), curve[seen].max())
    y_of = _scale(ticks[0], ticks[-1], BOTTOM, TOP)
    x, y = x_of(np.arange(1, n_iter + 1)), y_of(curve)
    iterations = [i for i in MaxNLocator(8, integer=True).tick_values(1, n_iter) if 1 <= i <= n_iter]
    shown = {
        "title": trace.title, "label": f"{trace.label} (nats per particle)",
        "pieces": [_path(x[part], y[part]) for part in drawn], "whole": _path(x[seen], y[seen]),
        "breaks": [_number(x_of(part[0] + 0.5)) for part in parts[1:] if not held_out[part[0]]],
        "band": _band(held_out, x_of),
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
        for i in seen
    ]
    return shown


def _pieces(trace, n_iter):
    """Iterations that compare, and which are cross-fitted; not finite resolutions are all alike."""
    given = {
        name: None if values is None else np.nan_to_num(np.asarray(values, dtype=float))
        for name, values in (
            ("resolution", trace.resolution), ("stage", trace.stage), ("temperature", trace.temperature),
        )
    }  # fmt: skip
    return pieces(n_iter, held_out=trace.held_out, **given)


def _band(held_out, x_of):
    """Where a band behind the cross-fitted iterations ends, and the words above it and beyond; or None."""
    if not held_out.any():
        return None
    end = x_of(np.flatnonzero(held_out)[-1] + 1.5)
    return {
        "left": _number(LEFT), "width": _number(end - LEFT), "end": _number(end),
        "inside": CROSS_FITTED, "beyond": "" if held_out.all() else FITTED,
    }  # fmt: skip


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
