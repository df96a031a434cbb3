"""Particles of several pixel sizes and boxes in one common frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.particles.preprocess import Downsample, TransformedSource
from sklearn_cryoem.particles.sources import ConcatenatedSource, ImageSource
from sklearn_cryoem.particles.stack import ParticleStack
from sklearn_cryoem.physics.fourier import resample

SAME_PIXEL_SIZE = 1e-3  # relative
_SLACK = 1e-6
_SMALLEST_BOX = 4


@dataclass(frozen=True)
class Resample:
    """Larger pixels by any `ratio`, and a `box` within the old one."""

    box: int
    ratio: float

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Return the resampled block."""
        return resample(images, self.box, self.ratio)

    def box_after(self, box: int) -> int:
        """Side of the transformed images."""
        return self.box

    def __str__(self) -> str:
        return f"resampled to {self.box} px that are {self.ratio:.4g} times larger"


def rescale(stack: ParticleStack, pixel_size: float, box: int | None = None) -> ParticleStack:
    """Return the same particles with larger pixels of any size when read.

    Parameters
    ----------
    stack : ParticleStack
        With a pixel size.
    pixel_size : float
        New one in Angstrom, at least the old one.
    box : int, optional
        New side in pixels; by default the largest even one that lies within the old box.

    Returns
    -------
    ParticleStack
        Lazily resampled; shifts and CTF are in Angstrom and stay. Normalised images stay normalised.

    Raises
    ------
    ValueError
        If the pixel size is unknown or would shrink, or the box would grow.
    """
    check_number("pixel_size", pixel_size, owner="rescale", minimum=0, inclusive=False)
    if stack.pixel_size is None:
        raise ValueError(
            "rescale: the stack has no pixel size. Give it one with ParticleStack(pixel_size=...) or "
            "read_particles(pixel_size=...)."
        )
    ratio = float(pixel_size) / stack.pixel_size
    if abs(ratio - 1.0) < SAME_PIXEL_SIZE:
        ratio = 1.0
    largest = int(stack.box / max(ratio, 1.0) + _SLACK)
    if box is None:
        box = largest - largest % 2
    if ratio < 1.0 or not _SMALLEST_BOX <= box <= largest:
        raise ValueError(
            f"rescale: {box} px of {pixel_size:g} A do not fit into {stack.box} px of {stack.pixel_size:g} "
            f"A. Take pixels of {stack.pixel_size:g} A or larger, and a box of {_SMALLEST_BOX} to {largest}."
        )
    if ratio == 1.0 and box == stack.box:
        return stack._replace(pixel_size=float(pixel_size))
    source = TransformedSource(stack.images, Resample(int(box), ratio))
    return stack._replace(images=source, pixel_size=float(pixel_size))


def common_frame(stacks: Sequence[ParticleStack]) -> tuple[float, int]:
    """Pixel size and box that all stacks can be rescaled to: the largest pixels, the smallest field.

    Parameters
    ----------
    stacks : sequence of ParticleStack
        All with a pixel size.

    Returns
    -------
    pixel_size : float
        In Angstrom.
    box : int
        In such pixels; even, unless all boxes agree already.

    Raises
    ------
    ValueError
        If a pixel size is unknown.
    """
    sizes = [stack.pixel_size for stack in stacks]
    if None in sizes:
        raise ValueError(
            f"stack(s) {[place for place, size in enumerate(sizes) if size is None]} have no pixel size, so "
            "they cannot be rescaled. Give it with ParticleStack(pixel_size=...)."
        )
    pixel_size = max(sizes)
    boxes = [
        stack.box
        if pixel_size / size < 1.0 + SAME_PIXEL_SIZE
        else int(stack.box * size / pixel_size + _SLACK)
        for stack, size in zip(stacks, sizes, strict=True)
    ]
    box = min(boxes)
    return pixel_size, box if len(set(boxes)) == 1 else box - box % 2


def pixel_growth(source: ImageSource) -> float | np.ndarray:
    """Pixel size of images as they are read over that of the images in their files.

    Parameters
    ----------
    source : ImageSource
        Where they come from.

    Returns
    -------
    float or ndarray of shape (n_images,)
        An array where parts were rescaled differently.
    """
    if isinstance(source, TransformedSource):
        own = 1.0
        if isinstance(source.step, Downsample):
            own = source.source.box / source.step.box
        elif isinstance(source.step, Resample):
            own = source.step.ratio
        return own * pixel_growth(source.source)
    if isinstance(source, ConcatenatedSource):
        growth = np.ones(len(source))
        for part, rows, own_rows in source.parts:
            of_part = pixel_growth(part)
            growth[rows] = of_part[own_rows] if isinstance(of_part, np.ndarray) else of_part
        return float(growth[0]) if len(growth) and np.ptp(growth) == 0 else growth
    return 1.0
