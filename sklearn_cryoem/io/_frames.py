"""Particles of several pixel sizes and boxes in one file: read part by part, brought to one frame."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.io._assemble import assemble
from sklearn_cryoem.io._raw import RawParticles, RowProblems
from sklearn_cryoem.particles import ParticleStack, concatenate
from sklearn_cryoem.particles.absent_source import AbsentSource
from sklearn_cryoem.particles.frame import common_frame

_DIGITS = 4  # of a pixel size in Angstrom that tell two apart


def assemble_in_one_frame(raw: RawParticles, problems: RowProblems, **options: Any) -> ParticleStack:
    """Make a stack of rows of several pixel sizes and boxes: all in the largest pixels and smallest field.

    Parameters
    ----------
    raw : RawParticles
        The metadata.
    problems : RowProblems
        Collects bad rows, or raises for the first.
    **options
        Of `assemble`.

    Returns
    -------
    ParticleStack
        In the order of the file. Metadata and optics table are as they came in.

    Raises
    ------
    ParticleDataError
        As `assemble` does; or if pixel sizes are needed and not known.
    """
    number = _parts(raw)  # (n,)
    present = np.unique(number[problems.keep])
    if len(present) < 2:
        return assemble(raw, problems, **options)
    stacks, rows = [], []
    for part in present:
        own = problems.part(number == part)
        stacks.append(assemble(raw, own, **options))
        problems.take_over(own, number == part)
        rows.append(np.flatnonzero(own.keep))
    if any(stack.pixel_size is None for stack in stacks):
        raise ParticleDataError(
            f"{raw.path}: particles can be rescaled only where their pixel sizes are known. Read the groups "
            "one by one with optics_groups= and pixel_size=, and join them with concatenate."
        )
    if options["metadata_only"]:
        size, _ = common_frame(stacks)
        stacks = [stack._replace(images=AbsentSource(len(stack), 0), pixel_size=size) for stack in stacks]
    if len({(stack.box, stack.pixel_size) for stack in stacks}) == 1 and not options["metadata_only"]:
        return assemble(raw, problems, **options)
    joined = concatenate(stacks, rescale=not options["metadata_only"])
    joined = joined._replace(optics=raw.optics, noise_group=raw.noise_group[np.concatenate(rows)])
    joined = joined._replace(optics_group=raw.optics_group[np.concatenate(rows)])
    return joined[np.argsort(np.concatenate(rows), kind="stable")]


def _parts(raw: RawParticles) -> np.ndarray:
    """Number of the optics group and pixel size of each particle; (n,)."""
    size = np.zeros(len(raw.frame)) if raw.pixel_size is None else np.round(raw.pixel_size, _DIGITS)
    keys = np.column_stack([raw.optics_group, np.nan_to_num(size)])  # (n, 2)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
