"""The data of the page: one JSON object that its scripts work on, with its pictures.

Small images stand together in one PNG, which keeps a page of a thousand classes light.
"""

import math
import shlex
from itertools import pairwise

import numpy as np
import pandas as pd

from sklearn_cryoem._core.memory import bytes_at_once
from sklearn_cryoem.particles.display import as_shown, png_data_uri, robust_grey, to_bytes
from sklearn_cryoem.physics.fourier import fourier_resize
from sklearn_cryoem.plotting._figure import round_length
from sklearn_cryoem.plotting.latent_map import LatentMap, Panel, density_of, latent_map

_SHOWN_ELSEWHERE = ("rank", "keep", "reasons", "class", "number", "size", "resolution")
_GAP, _HEADROOM = 0.6, 0.2  # between the maps of two first classes, and above a map for its title; in nodes
_MEASURES = {
    "soft_size": "soft size (particles)",
    "snr": "signal / noise power",
    "information": "information (bits)",
    "significance": "signal (× aligned noise)",
    "coherence": "power explained (share)",
    "strength": "coarse power (× typical)",
    "background": "ice or carbon behind (share)",
    "match": "match of the particles (s.d.)",
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

_TILES = ((60, 128), (300, 96), (1200, 64))  # up to so many classes, averages of at most so many pixels
_MIN_TILE = 48
_EXAMPLE_ANGSTROM, _EXAMPLE_BOXES = 20.0, (24, 64)  # particles show in their noise at 20 Angstrom
_EXAMPLE_LEVELS = 16  # noise needs no more grey levels, and packs better with few
_MAX_EXAMPLES, _MAX_EXAMPLES_OF_ALL = 6, 2400  # of one class; of all together
_BLOCK_BYTES, _BLOCK_SHARE = 2**26, 1 / 64  # of images that are turned together, and of the memory limit


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
    return {
        "source": run.source,
        "folder": None if run.folder is None else shlex.quote(run.folder),
        "alignment": _alignment(run),
        "unit": run.unit,
        "nClasses": run.n_classes,
        "size": run.sizes.tolist(),
        "resolution": rounded(run.resolution),
        "ranked": run.quality is not None,
        **quality_columns(run.quality, run.sizes),
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
    sheet = example_sheet(run.stack, run.labels, run.n_classes)
    return {**sheet, "aligned": run.stack.poses is not None, "limit": f"{sheet['limit']:.2g} {run.unit}"}


def _alignment(run):
    """Classes of the alignment, the largest first, or None."""
    if run.alignment is None:
        return None
    averages, sizes = run.alignment
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    return {"number": (order + 1).tolist(), "size": sizes[order].tolist(), **average_sheet(averages[order])}


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
        topology = first.get("topology", "grid")
        maps.append(latent_map(placed, topology) if len(placed) == len(subclasses) > 1 else whole)
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


def sprite_sheet(images, *, levels=64):
    """One PNG of square images, row by row, each with its own contrast.

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        Finite or not.
    levels : int
        Number of grey values.

    Returns
    -------
    dict
        `uri` (a data URI), `tile` (D in pixels), `columns`, `rows`.
    """
    n_images, box = images.shape[:2]
    columns = max(1, math.ceil(math.sqrt(n_images)))
    rows = max(1, math.ceil(n_images / columns))
    sheet = np.zeros((rows * columns, box, box), np.uint8)
    sheet[:n_images] = to_bytes(robust_grey(images), levels) if n_images else 0
    pixels = sheet.reshape(rows, columns, box, box).transpose(0, 2, 1, 3).reshape(rows * box, columns * box)
    return {"uri": png_data_uri(pixels), "tile": box, "columns": columns, "rows": rows}


def average_sheet(averages):
    """Sprite sheet of class averages, made smaller where there are many.

    Parameters
    ----------
    averages : ndarray of shape (n_classes, D, D)
        Class averages.

    Returns
    -------
    dict
        As of `sprite_sheet`.
    """
    largest = next((tile for count, tile in _TILES if len(averages) <= count), _MIN_TILE)
    box = min(averages.shape[-1], largest)
    return sprite_sheet(fourier_resize(np.nan_to_num(averages), box))


def example_sheet(stack, labels, n_classes):
    """Sprite sheet of example particles of each class, turned, centred and low-pass filtered.

    They are spread evenly over the rows of their class: typical ones, not the best.

    Parameters
    ----------
    stack : ParticleStack
        The particles; without poses they are shown as they are.
    labels : ndarray of shape (n_particles,)
        Class of each.
    n_classes : int
        Number of classes.

    Returns
    -------
    dict
        As of `sprite_sheet`, and `first` (n_classes + 1): examples of class k are first[k] to first[k + 1],
        `particle`: their row numbers, from 1, `limit`: the finest detail in them.
    """
    rows = examples_of(labels, n_classes)
    chosen = np.concatenate([*rows, np.zeros(0, np.int64)])
    side = stack.box * stack.pixel_length
    wanted = _EXAMPLE_BOXES[1] if stack.pixel_size is None else round(2 * side / _EXAMPLE_ANGSTROM)
    box = min(stack.box, int(np.clip(wanted, *_EXAMPLE_BOXES)))
    images = np.empty((len(chosen), box, box), np.float32)
    step = max(1, int(bytes_at_once(_BLOCK_BYTES, _BLOCK_SHARE)) // (4 * stack.box**2))
    order = np.argsort(chosen)  # files are read in their own order
    for start in range(0, len(order), step):
        some = order[start : start + step]
        images[some] = as_shown(stack[chosen[some]], box)
    first = np.cumsum([0, *map(len, rows)])
    sheet = sprite_sheet(images, levels=_EXAMPLE_LEVELS)
    return {**sheet, "first": first.tolist(), "particle": (chosen + 1).tolist(), "limit": 2 * side / box}


def examples_of(labels, n_classes):
    """Row numbers of the examples of each class: a few, evenly spread over its rows.

    Parameters
    ----------
    labels : ndarray of shape (n_particles,)
        Class of each particle.
    n_classes : int
        Number of classes.

    Returns
    -------
    list of n_classes integer ndarrays
    """
    labels = np.asarray(labels)
    order = np.argsort(labels, kind="stable")  # rows of class 0, of class 1, ...
    ends = np.searchsorted(labels[order], np.arange(n_classes + 1))
    n_filled = max(1, np.count_nonzero(np.diff(ends)))
    n_examples = int(np.clip(_MAX_EXAMPLES_OF_ALL // n_filled, 1, _MAX_EXAMPLES))
    chosen = []
    for start, end in pairwise(ends):
        n = min(n_examples, end - start)
        chosen.append(order[start + ((np.arange(n) + 0.5) * (end - start) / max(n, 1)).astype(int)])
    return chosen
