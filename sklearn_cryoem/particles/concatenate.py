"""Joining stacks end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pandas as pd

from sklearn_cryoem.particles.ctf_table import CTFTable
from sklearn_cryoem.particles.frame import common_frame
from sklearn_cryoem.particles.frame import rescale as rescaled
from sklearn_cryoem.particles.poses import Poses
from sklearn_cryoem.particles.sources import ConcatenatedSource
from sklearn_cryoem.particles.stack import ParticleStack


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
        Noise groups are renumbered, so that those of different stacks stay apart; so are optics groups unless
        all stacks have the same optics table. Metadata columns that only some stacks have are NaN for others.

    Raises
    ------
    ValueError
        If boxes or pixel sizes differ and `rescale` is False, or only some stacks have a CTF, poses or truth.
    """
    stacks = list(stacks)
    if not stacks:
        raise ValueError("concatenate: got no stack, expected at least one ParticleStack.")
    if rescale:
        pixel_size, box = common_frame(stacks)
        stacks = [rescaled(stack, pixel_size, box) for stack in stacks]
    for what, values, remedy in [
        (
            "box",
            {stack.box for stack in stacks},
            "Pass rescale=True, or bring them to one box with stack.downsample(box).",
        ),
        ("pixel size", {stack.pixel_size for stack in stacks}, "Rescale them to one with rescale=True."),
    ]:
        if len(values) > 1:
            raise ValueError(f"concatenate: the stacks differ in {what}: {sorted(values, key=str)}. {remedy}")
    optics = _common_optics(stacks)
    return ParticleStack(
        ConcatenatedSource([stack.images for stack in stacks]),
        pixel_size=stacks[0].pixel_size,
        ctf=_join_ctf(_all_or_none(stacks, "ctf")),
        poses=_join_poses(_all_or_none(stacks, "poses")),
        optics_group=_join_groups([stack.optics_group for stack in stacks], apart=optics is None),
        noise_group=_join_groups([stack.noise_group for stack in stacks], apart=True),
        metadata=pd.concat([stack.metadata for stack in stacks], ignore_index=True),
        optics=optics,
        truth=_join_tables(_all_or_none(stacks, "truth")),
        # marks of one stack say nothing of how its images lie among those of others
    )


def _all_or_none(stacks: list[ParticleStack], part: str) -> list[Any] | None:
    parts = [getattr(stack, part) for stack in stacks]
    missing = [position for position, value in enumerate(parts) if value is None]
    if missing and len(missing) < len(parts):
        raise ValueError(
            f"concatenate: stack(s) {missing} have no {part}, the others have. "
            f"Give all of them {part}, or take it from the others with stack.with_{part}(None)."
        )
    return None if missing else parts


def _join_ctf(parts: list[CTFTable] | None) -> CTFTable | None:
    if parts is None:
        return None
    names = [field.name for field in fields(CTFTable)]
    return CTFTable(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _join_poses(parts: list[Poses] | None) -> Poses | None:
    if parts is None:
        return None
    names = [field.name for field in fields(Poses)]
    return Poses(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def _join_tables(parts: list[pd.DataFrame] | None) -> pd.DataFrame | None:
    return None if parts is None else pd.concat(parts, ignore_index=True)


def _common_optics(stacks: list[ParticleStack]) -> pd.DataFrame | None:
    first = stacks[0].optics
    same = first is not None and all(s.optics is not None and s.optics.equals(first) for s in stacks)
    return first if same else None


def _join_groups(groups: list[np.ndarray], *, apart: bool) -> np.ndarray:
    if not apart:
        return np.concatenate(groups)
    pairs = [np.column_stack([np.full(len(group), number), group]) for number, group in enumerate(groups)]
    return np.unique(np.concatenate(pairs), axis=0, return_inverse=True)[1].reshape(-1)
