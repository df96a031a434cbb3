"""What a stack looks like in a notebook: a small table and a few of its images."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.particles.display import png_data_uri, robust_grey, to_bytes
from sklearn_cryoem.physics.fourier import fourier_resize

if TYPE_CHECKING:
    from sklearn_cryoem.particles.stack import ParticleStack

_N_THUMBNAILS, _THUMBNAIL_PX = 6, 72
_LARGEST_READ = 2**26  # bytes of images that are worth reading for a few thumbnails
_CELL = "text-align:left;padding:2px 14px 2px 0;vertical-align:top;border:0"


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
    if not n_images or not stack.box or n_images * stack.box**2 * 4 > _LARGEST_READ:
        return "", ""
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
