"""Many small images in one PNG: what makes a page of a thousand classes light."""

import math
from itertools import pairwise

import numpy as np

from sklearn_cryoem._core.memory import bytes_at_once
from sklearn_cryoem.particles.display import png_data_uri, robust_grey, to_bytes
from sklearn_cryoem.physics.fourier import fourier_resize
from sklearn_cryoem.physics.rotation import aligned_images

_TILES = ((60, 128), (300, 96), (1200, 64))  # up to so many classes, averages of at most so many pixels
_MIN_TILE = 48
_EXAMPLE_BOXES, _EXAMPLE_LEVELS = (24, 48), 16  # noise needs no more grey levels, and packs better with few
_MAX_EXAMPLES, _MAX_EXAMPLES_OF_ALL = 6, 2400  # of one class; of all together
_BLOCK_BYTES, _BLOCK_SHARE = 2**26, 1 / 64  # of images that are turned together, and of the memory limit


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
    return sprite_sheet(_smaller(np.nan_to_num(averages), largest))


def example_sheet(stack, labels, n_classes, finest=None):
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
    finest : float or None
        Finest resolution of a class, in the stack's unit of length: examples show no more, within limits.

    Returns
    -------
    dict
        As of `sprite_sheet`, and `first` (n_classes + 1): examples of class k are first[k] to first[k + 1],
        `particle`: their row numbers, from 1, `limit`: the finest detail in them.
    """
    rows = examples_of(labels, n_classes)
    chosen = np.concatenate([*rows, np.zeros(0, np.int64)])
    side = stack.box * stack.pixel_length
    wanted = _EXAMPLE_BOXES[1] if finest is None else round(2 * side / finest)
    box = min(stack.box, int(np.clip(wanted, *_EXAMPLE_BOXES)))
    images = np.empty((len(chosen), box, box), np.float32)
    step = max(1, int(bytes_at_once(_BLOCK_BYTES, _BLOCK_SHARE)) // (4 * stack.box**2))
    order = np.argsort(chosen)  # files are read in their own order
    for start in range(0, len(order), step):
        some = order[start : start + step]
        images[some] = _smaller(_aligned(stack[chosen[some]]), box)
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


def _aligned(stack):
    """Images of a stack, turned and centred if it has poses; (n, D, D)."""
    images = stack.read()
    if stack.poses is None:
        return images
    shift_px = stack.poses.shift_px(stack.pixel_size)
    return aligned_images(images, stack.poses.angle_rad, shift_px, stack.poses.mirrored)


def _smaller(images, box):
    return images if images.shape[-1] <= box else fourier_resize(images, box)
