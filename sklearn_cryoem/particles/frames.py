"""Pixel sizes and boxes: whether they agree, bringing stacks to one frame, and joining them end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.particles.preprocess import Step, TransformedSource, of_each_image
from sklearn_cryoem.particles.sources import ConcatenatedSource, ImageSource
from sklearn_cryoem.particles.stack import ParticleStack
from sklearn_cryoem.physics.fourier import resample

SAME_PIXEL_SIZE = 0.02  # relative, of metadata and headers
FITTED_PIXEL_SIZE = 0.01  # relative, of a fit and of further particles
EQUAL_PIXEL_SIZE = 1e-3  # relative: nothing is resampled for less
UNKNOWN_PIXEL_SIZE = 1.0  # Angstrom, in headers: what programs write that do not know it
MIN_BOX = 4
_SLACK = 1e-6


def check_same_pixel_size(pixel_size: float | None, fitted: float | None) -> None:
    """Raise unless particles have the pixel size that a model was fitted at.

    Parameters
    ----------
    pixel_size : float or None
        Of the particles, in Angstrom.
    fitted : float or None
        Of those of the fit. The two may differ by one per cent, as headers are rounded.
    """
    same = pixel_size == fitted
    if pixel_size is not None and fitted is not None:
        same = abs(pixel_size / fitted - 1.0) <= FITTED_PIXEL_SIZE
    if not same:
        raise ValueError(
            f"The particles have pixel_size={pixel_size}, those that the model was fitted to have "
            f"pixel_size={fitted}. Bring them to the same pixel size, or fit again."
        )


def pixel_sizes_differ(pixel_size: float, headers: list[float | None]) -> str | None:
    """What to say where the headers of images give another pixel size; None where they do not.

    Parameters
    ----------
    pixel_size : float
        By the metadata, in Angstrom.
    headers : list of float or None
        By the headers of the files; `UNKNOWN_PIXEL_SIZE` says nothing.
    """
    known = np.array([size for size in headers if size not in (None, UNKNOWN_PIXEL_SIZE)])
    other = np.abs(known / pixel_size - 1.0) > SAME_PIXEL_SIZE
    if not other.any():
        return None
    some = "" if other.all() else f" of {other.sum()} of {len(known)} stacks"
    return (
        f"the metadata say {pixel_size:.4g} A per pixel, the headers of the images{some} "
        f"{known[other][0]:.4g} A. The former is taken; pass pixel_size= if it is wrong: the CTF and all "
        "resolutions depend on it."
    )


def rescale(stack: ParticleStack, pixel_size: float, box: int | None = None) -> ParticleStack:
    """Return the same particles with larger pixels of any size, in any box, when read.

    Parameters
    ----------
    stack : ParticleStack
        With a pixel size.
    pixel_size : float
        New one in Angstrom, at least the old one.
    box : int, optional
        New side in pixels; by default the largest even one that lies within the old box. What lies beyond
        that is 0, the background of normalised images.

    Returns
    -------
    ParticleStack
        Lazily resampled; shifts and CTF are in Angstrom and stay. Normalised images stay normalised.

    Raises
    ------
    ValueError
        If the pixel size is unknown or would shrink.
    """
    check_number("pixel_size", pixel_size, owner="rescale", minimum=0, inclusive=False)
    if stack.pixel_size is None:
        raise ValueError(
            "rescale: the stack has no pixel size. Give it one with ParticleStack(pixel_size=...) or "
            "read_particles(pixel_size=...)."
        )
    ratio = float(pixel_size) / stack.pixel_size
    if abs(ratio - 1.0) < EQUAL_PIXEL_SIZE:
        ratio = 1.0
    largest = int(stack.box / max(ratio, 1.0) + _SLACK)
    if box is None:
        box = largest - largest % 2
    if ratio < 1.0 or box < MIN_BOX:
        raise ValueError(
            f"rescale: {box} px of {pixel_size:g} A cannot be made of {stack.box} px of {stack.pixel_size:g} "
            f"A. Take pixels of {stack.pixel_size:g} A or larger, and at least {MIN_BOX} of them."
        )
    if ratio == 1.0 and box == stack.box:
        return stack._replace(pixel_size=float(pixel_size))
    text = f"resampled to {box} px that are {ratio:.4g} times larger"
    source = TransformedSource(stack.images, Step(resample, text, (int(box), ratio), int(box), ratio))
    return stack._replace(images=source, pixel_size=float(pixel_size))


def _in_one_frame(stacks: list[ParticleStack]) -> list[ParticleStack]:
    if len({(stack.pixel_size, stack.box) for stack in stacks}) == 1:  # known or not
        return stacks
    pixel_size, box = common_frame(stacks)
    return [rescale(stack, pixel_size, box) for stack in stacks]


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
        if pixel_size / size < 1.0 + EQUAL_PIXEL_SIZE
        else int(stack.box * size / pixel_size + _SLACK)
        for stack, size in zip(stacks, sizes, strict=True)
    ]
    box = min(boxes)
    return pixel_size, box if len(set(boxes)) == 1 else box - box % 2


def pixel_growth(source: ImageSource) -> np.ndarray:
    """Pixel size of each image as it is read over that of the image in its file; (n_images,)."""
    return of_each_image(source, lambda _: 1.0, lambda growth, step: growth * step.growth)


def file_boxes(source: ImageSource) -> np.ndarray:
    """Box of each image in its file; (n_images,)."""
    return of_each_image(source, lambda origin: origin.box)


def concatenate(stacks: Sequence[ParticleStack], *, rescale: bool = False) -> ParticleStack:
    """Join stacks end to end; copies no pixel.

    Parameters
    ----------
    stacks : sequence of ParticleStack
        At least one. CTF, poses and truth must be present in all of them or in none.
    rescale : bool, default=False
        Bring stacks of several pixel sizes and boxes to one frame: the largest pixels, and the largest box of
        them that lies within all boxes. Images are resampled when they are read.

    Returns
    -------
    ParticleStack
        Noise groups are renumbered, so that those of different stacks stay apart; so are optics groups, with
        their tables, unless all stacks have the same optics table. Metadata columns that only some stacks
        have are NaN for others.

    Raises
    ------
    ValueError
        If boxes or pixel sizes differ and `rescale` is False, or only some stacks have a CTF, poses, truth
        or, without a CTF, optics groups.
    """
    stacks = list(stacks)
    if not stacks:
        raise ValueError("concatenate: got no stack, expected at least one ParticleStack.")
    if rescale:
        stacks = _in_one_frame(stacks)
    for what, name in [("box", "box"), ("pixel size", "pixel_size")]:
        values = {getattr(stack, name) for stack in stacks}
        if len(values) > 1:
            raise ValueError(
                f"concatenate: the stacks differ in {what}: {sorted(values, key=str)}. "
                "Pass rescale=True to bring them to one."
            )
    optics = stacks[0].optics
    tables = [stack.metadata for stack in stacks]
    if not all(optics is not None and optics.equals(stack.optics) for stack in stacks):
        optics = _joined_optics(stacks, tables)
    is_same = optics is not None and len(optics) == len(stacks[0].optics)
    return ParticleStack(
        ConcatenatedSource([stack.images for stack in stacks]),
        pixel_size=stacks[0].pixel_size,
        ctf=_joined(stacks, "ctf"),
        poses=_joined(stacks, "poses"),
        optics_group=_join_groups([stack.optics_group for stack in stacks], apart=not is_same),
        noise_group=_join_groups([stack.noise_group for stack in stacks], apart=True),
        metadata=pd.concat(tables, ignore_index=True),
        optics=optics,
        truth=_joined(stacks, "truth"),
        # marks of one stack say nothing of how its images lie among those of others
    )


def _joined_optics(stacks: list[ParticleStack], tables: list[pd.DataFrame]) -> pd.DataFrame | None:
    """RELION's optics tables one after the other, groups numbered through in `tables` as well; or None."""
    if not all(
        {"rlnOpticsGroup", "rlnOpticsGroupName"} <= set(() if stack.optics is None else stack.optics)
        and "rlnOpticsGroup" in stack.metadata
        for stack in stacks
    ):
        if any(stack.optics is not None and stack.ctf is None for stack in stacks):  # else a CTF has it all
            raise ValueError(
                "concatenate: not all stacks have optics groups with names (rlnOpticsGroup, "
                "rlnOpticsGroupName), and voltage and Cs of those that have would be lost. Bring all to one "
                "style with sklearn-cryoem convert --star-version 3.1."
            )
        return None
    joined, first = [], 1
    for table, stack in zip(tables, stacks, strict=True):
        optics = stack.optics
        numbers = dict(zip(optics["rlnOpticsGroup"], range(first, first + len(optics)), strict=True))
        table["rlnOpticsGroup"] = table["rlnOpticsGroup"].map(numbers)
        joined.append(optics.assign(rlnOpticsGroup=list(numbers.values())))
        first += len(optics)
    optics = pd.concat(joined, ignore_index=True)
    repeated = optics["rlnOpticsGroupName"].duplicated()  # RELION tells groups apart by their names, too
    named = optics["rlnOpticsGroupName"].astype(str) + "_" + optics["rlnOpticsGroup"].astype(str)
    return optics.assign(rlnOpticsGroupName=optics["rlnOpticsGroupName"].where(~repeated, named))


def _joined(stacks: list[ParticleStack], part: str) -> Any:
    """A part of all stacks, row by row; None where none has it."""
    parts = [getattr(stack, part) for stack in stacks]
    missing = [position for position, value in enumerate(parts) if value is None]
    if missing and len(missing) < len(parts):
        raise ValueError(
            f"concatenate: stack(s) {missing} have no {part}, the others have. "
            f"Give all of them {part}, or take it from the others with stack.with_{part}(None)."
        )
    if missing:
        return None
    if part == "truth":
        return pd.concat(parts, ignore_index=True)
    names = [field.name for field in fields(parts[0])]
    names = [name for name in names if all(getattr(one, name) is not None for one in parts)]
    columns = {name: np.concatenate([getattr(one, name) for one in parts]) for name in names}
    return type(parts[0])(**columns)


def _join_groups(groups: list[np.ndarray], *, apart: bool) -> np.ndarray:
    if not apart:
        return np.concatenate(groups)
    pairs = [np.column_stack([np.full(len(group), number), group]) for number, group in enumerate(groups)]
    return np.unique(np.concatenate(pairs), axis=0, return_inverse=True)[1].reshape(-1)
