"""Images as people look at them: grey values, PNG bytes, data URIs, and a stack in a notebook."""

from __future__ import annotations

import base64
import importlib.util
import io
from html import escape
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.physics.fourier import fourier_resize
from sklearn_cryoem.physics.masks import pixel_radius
from sklearn_cryoem.physics.rotation import aligned_images

if TYPE_CHECKING:
    from sklearn_cryoem.particles.stack import ParticleStack

Float32 = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

_BLACK_AND_WHITE = (1.0, 99.7)  # percentiles of the pixels that become 0 and 1
_N_THUMBNAILS, _THUMBNAIL_PX = 6, 72
_MAX_READ = 2**26  # bytes of images that are worth reading for a few thumbnails
_CELL = "text-align:left;padding:2px 14px 2px 0;vertical-align:top;border:0"


def robust_grey(images: Float32) -> Float32:
    """Grey values in [0, 1] of each image on its own, between two percentiles of its inscribed circle.

    Percentiles, not the extremes, so that one hot pixel does not leave a class black; the circle, not the
    square, so that corners outside a mask do not count. Constant or non-finite images become mid-grey.

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        Finite or not.

    Returns
    -------
    ndarray of shape (n_images, D, D), float32
    """
    box = images.shape[-1]
    inside = images[:, pixel_radius(box) <= (box - 1) / 2]  # (n_images, n_inside)
    usable = np.asarray(np.isfinite(inside).all(axis=1))  # (n_images,)
    bottom, top = np.percentile(np.where(usable[:, None], inside, 0.0), _BLACK_AND_WHITE, axis=1)
    span = top - bottom
    usable &= span > 1e-6 * np.maximum(np.abs(top), np.finfo(np.float32).tiny)
    grey = np.full(images.shape, 0.5, dtype=np.float32)
    scale = np.where(usable, span, 1.0)[:, None, None]
    grey[usable] = np.clip((images - bottom[:, None, None]) / scale, 0.0, 1.0)[usable]
    return grey


def as_shown(stack: ParticleStack, box: int) -> Float32:
    """Images of a stack in a smaller box, which low-passes them, turned and centred if it has poses."""
    images = stack.read()
    if stack.poses is not None:
        poses = stack.poses
        images = aligned_images(images, poses.angle_rad, poses.shift_px(stack.pixel_size), poses.mirrored)
    return images if images.shape[-1] <= box else fourier_resize(images, box)


def to_bytes(grey: Float32, levels: int = 256) -> Bytes:
    """Grey values in [0, 1] as bytes of so many different values: fewer make smaller files."""
    steps = np.rint(np.clip(grey, 0.0, 1.0) * (levels - 1))
    return np.rint(steps * (255 / (levels - 1))).astype(np.uint8)


def png_data_uri(pixels: Bytes) -> str:
    """`pixels`, (height, width), as a PNG in a data URI: what an HTML page without other files needs."""
    from PIL import Image  # comes with matplotlib: only pictures need it

    with io.BytesIO() as stream:
        Image.fromarray(pixels).save(stream, "PNG", compress_level=9)
        return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def stack_html(stack: ParticleStack) -> str:
    """Table and thumbnails of a stack.

    Parameters
    ----------
    stack : ParticleStack
        A few of its images are read, if that is quick; where they are gone, the table says so.

    Returns
    -------
    str
        A piece of HTML without scripts; text has the notebook's own colour.
    """
    picture, note = _thumbnails(stack)
    rows = [*_facts(stack), *([("images", note)] if note else [])]
    cells = "".join(
        f'<tr style="background:none"><th style="{_CELL};font-weight:400;opacity:.7">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(value)}</td></tr>'
        for name, value in rows
    )
    table = f'<table style="border-collapse:collapse;font-size:13px;margin:4px 24px 4px 0">{cells}</table>'
    title = f"<b>ParticleStack</b> <span style='opacity:.7'>{len(stack):,} particles</span>"
    body = f'<div style="display:flex;flex-wrap:wrap;align-items:center">{table}{picture}</div>'
    return f'<div style="font-size:13px;line-height:1.4">{title}{body}</div>'


def _facts(stack: ParticleStack) -> list[tuple[str, str]]:
    """(name, value with unit) of what the stack holds."""
    size, box = stack.pixel_size, stack.box
    n_optics, n_noise = len(np.unique(stack.optics_group)), len(np.unique(stack.noise_group))
    facts = [
        ("box", "unknown" if not box else f"{box} px" + ("" if size is None else f" = {box * size:.4g} Å")),
        ("pixel size", "unknown: lengths are in pixels" if size is None else f"{size:.4g} Å"),
        ("CTF", "none: taken as 1" if stack.ctf is None else stack.ctf.summary().removeprefix(", ") or "yes"),
        ("poses", "none" if stack.poses is None else "in-plane angle and shift"),
        ("groups", f"{n_optics:,} of optics, {n_noise:,} of noise (micrographs)"),
        ("kept in", stack.images.describe()),
    ]
    columns = stack.metadata.columns
    if len(columns):
        facts.append(("metadata", f"{len(columns)} column{'s' * (len(columns) > 1)}"))
    return facts


def _thumbnails(stack: ParticleStack) -> tuple[str, str]:
    """Pictures of the first few particles, or nothing and a word on why not."""
    n_images = min(_N_THUMBNAILS, len(stack))
    if not n_images or not stack.box or n_images * stack.box**2 * 4 > _MAX_READ:
        return "", ""
    if importlib.util.find_spec("PIL") is None:
        return "", "not shown: they need Pillow, which comes with pip install 'sklearn-cryoem[plot]'"
    try:
        images = stack.read(slice(0, n_images))
    except (ParticleDataError, OSError):
        return "", "cannot be read: stack.check() says why"
    side = min(stack.box, _THUMBNAIL_PX)
    grey = robust_grey(images if side == stack.box else fourier_resize(images, side))
    shown = "".join(
        f'<img src="{png_data_uri(pixels)}" alt="particle {row + 1}" title="particle {row + 1}" '
        f'style="width:{_THUMBNAIL_PX}px;margin:0">'
        for row, pixels in enumerate(to_bytes(grey, levels=32))
    )
    return f'<div style="display:flex;flex-wrap:wrap;gap:4px">{shown}</div>', ""
