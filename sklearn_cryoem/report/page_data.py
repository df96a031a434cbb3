"""The data of the page: one JSON object that its scripts work on."""

import math
import shlex

import numpy as np
import pandas as pd

from sklearn_cryoem.particles.display import png_data_uri, to_bytes
from sklearn_cryoem.plotting._figure import round_length
from sklearn_cryoem.plotting.latent_map import LatentMap, Panel, density_of, latent_map
from sklearn_cryoem.report.sprites import average_sheet, example_sheet

_SHOWN_ELSEWHERE = ("rank", "keep", "reasons", "class", "number", "size", "resolution")
_GAP, _HEADROOM = 0.6, 0.2  # between the maps of two first classes, and above a map for its title; in nodes
_MEASURES = {
    "soft_size": "soft size (particles)",
    "snr": "signal / noise power",
    "information": "information (bits)",
    "significance": "signal (× aligned noise)",
    "coherence": "power explained (share)",
    "strength": "coarse power (× typical)",
    "contrast": "contrast (s.d.)",
    "edge": "rim signal (× strongest ring)",
    "offset": "off centre (mask radii)",
    "extent": "area (× typical)",
    "spikes": "power in one point",
    "lines": "power in one direction",
    "latent_spread": "latent spread (× overall)",
    "posterior": "mean posterior (0-1)",
    "stability": "stable pairs (share above chance)",
    "defocus": "mean defocus (s.e. off)",
    "score": "score (0-1)",
}


def page_data(run, *, examples=True):
    """Everything that the script of the page works on.

    Parameters
    ----------
    run : Run
        What the page is about.
    examples : bool
        Whether example particles are wanted.

    Returns
    -------
    dict
        Plain values for JSON; arrays of n_classes have class 1 first, whose number is 1.
    """
    quality = quality_columns(run.quality, run.sizes)
    return {
        "source": run.source,
        "folder": None if run.folder is None else shlex.quote(run.folder),
        "unit": run.unit,
        "nClasses": run.n_classes,
        "size": run.sizes.tolist(),
        "resolution": rounded(run.resolution),
        "rank": quality["rank"],
        "ranked": run.quality is not None,
        "keep": quality["keep"],
        "reasons": quality["reasons"],
        "measures": quality["measures"],
        "averages": average_sheet(run.averages),
        "scaleBar": scale_bar(run),
        "examples": _examples(run) if examples else None,
        "atlas": _atlas(run),
        "tree": _tree(run),
    }


def quality_columns(quality, sizes):
    """Rank, suggestion, reasons and measures of each class, as lists.

    Parameters
    ----------
    quality : DataFrame or None
        As `report` takes it; without it the largest class ranks first and nothing is suggested.
    sizes : ndarray of shape (n_classes,)
        Particles of each class.

    Returns
    -------
    dict
        `rank` (list of int, from 1), `keep` (list of bool or None), `reasons` (list of str), `measures`:
        list of {"name", "values"}.
    """
    table = pd.DataFrame() if quality is None else quality
    by_size = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable") + 1
    reasons = table["reasons"] if "reasons" in table else [""] * len(sizes)
    measures = [
        {"name": _MEASURES.get(name, str(name).replace("_", " ")), "values": values}
        for name in table.columns
        if name not in _SHOWN_ELSEWHERE and pd.api.types.is_numeric_dtype(table[name])
        for values in [rounded(table[name])]
        if any(value is not None for value in values)
    ]
    return {
        "rank": [int(rank) for rank in (table["rank"] if "rank" in table else by_size)],
        "keep": [bool(kept) for kept in table["keep"]] if "keep" in table else None,
        "reasons": [text if isinstance(text, str) else "; ".join(map(str, text)) for text in reasons],
        "measures": measures,
    }


def rounded(values):
    """Numbers to four digits as a list; None where there is none."""
    return [
        float(f"{value:.4g}") if np.isfinite(value) else None for value in np.asarray(values, dtype=float)
    ]


def scale_bar(run):
    """Round length of a scale bar and the part of a tile that it takes, or None without a pixel size."""
    if run.pixel_size is None:
        return None
    width = run.averages.shape[-1] * run.pixel_size
    length = round_length(0.45 * width)
    return {"label": f"{length:g} {run.unit}", "fraction": length / width}


def _examples(run):
    if run.stack is None or run.labels is None:
        return None
    sheet = example_sheet(run.stack, run.labels, run.n_classes, run.finest_resolution)
    return {**sheet, "aligned": run.stack.poses is not None, "limit": f"{sheet['limit']:.2g} {run.unit}"}


def _atlas(run):
    """Places of classes and density of particles, or None where no class has a place."""
    flat = _map_of(run)
    if flat is None:
        return None
    if run.positions is not None and flat.place is not None:
        density, what = density_of(flat, flat.place(run.positions)), "particles"
    else:
        density, what = density_of(flat, flat.xy, run.sizes), "class sizes"
    left, top, right, bottom = flat.extent
    # White stands for the 99.5th percentile, so that one crowded place leaves the rest visible.
    peak = max(float(np.quantile(density, 0.995)), 1e-12)
    picture = png_data_uri(to_bytes((density / peak).astype(np.float32), levels=64))
    extent = {"x": left, "y": top, "width": right - left, "height": bottom - top}
    return {
        "x": np.round(flat.xy[:, 0], 3).tolist(),
        "y": np.round(flat.xy[:, 1], 3).tolist(),
        "panels": [
            {"x": float(x), "y": float(y), "width": float(width), "height": float(height),
             "title": title, "round": radius is not None}
            for x, y, width, height, title, radius in flat.panels
        ],
        "caption": flat.caption,
        "density": {"uri": picture, "peak": peak, **extent},
        "counted": what,
    }  # fmt: skip


def _map_of(run):
    """Map of the classes; for a tree the maps of all first classes side by side."""
    if run.nodes is not None:
        return latent_map(run.nodes, run.topology)
    if run.tree is None:
        return None
    whole = LatentMap(np.zeros((1, 2)), [Panel(-0.5, -0.5, 1, 1)], "")
    maps, titles, order = [], [], []
    for first in run.tree["classes"]:
        subclasses = first["subclasses"]
        placed = [sub["latent_position"] for sub in subclasses if "latent_position" in sub]
        maps.append(latent_map(placed) if len(placed) == len(subclasses) > 1 else whole)
        titles.append(f"class {first['first_class'] + 1}")
        order += [sub["label"] for sub in subclasses]
    side_by_side = maps_side_by_side(maps, titles)
    side_by_side.xy[order] = side_by_side.xy.copy()
    return side_by_side


def maps_side_by_side(maps, titles):
    """One map of many, in rows like text, each with its title; `xy` in the order of the maps."""
    sizes = np.array([(right - left, bottom - top) for left, top, right, bottom in (m.extent for m in maps)])
    line = max(sizes[:, 0].max(), math.sqrt(1.6 * ((sizes[:, 0] + _GAP) * (sizes[:, 1] + 2 * _GAP)).sum()))
    x = y = row_height = 0.0
    xy, panels = [], []
    for one, (width, height), title in zip(maps, sizes, titles, strict=True):
        if x > 0 and x + width > line:
            x, y, row_height = 0.0, y + row_height + _GAP + _HEADROOM, 0.0
        left, top, _, _ = one.extent
        xy.append(one.xy + np.array([x - left, y - top]))
        panels.append(Panel(x, y, width, height, title))
        x, row_height = x + width + _GAP, max(row_height, height)
    return LatentMap(np.concatenate(xy), panels, "a frame for each first class")


def _tree(run):
    """First classes with their averages and sub-classes, or None."""
    if run.tree is None:
        return None
    parents = [
        {
            "number": first["first_class"] + 1,
            "size": first["n_images"],
            "whole": bool(first.get("is_whole", False)),
            "children": [sub["label"] for sub in first["subclasses"]],
        }
        for first in run.tree["classes"]
    ]
    averages = None if run.first_averages is None else average_sheet(run.first_averages)
    return {"parents": parents, "averages": averages}
