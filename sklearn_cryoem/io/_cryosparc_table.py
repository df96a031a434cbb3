"""A stack as a cryoSPARC table: the fields that came in, with poses and labels brought up to date."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.io._from_cryosparc import same_angles
from sklearn_cryoem.io._records import records_to_table, table_to_records
from sklearn_cryoem.io._to_cryosparc import new_cryosparc_table
from sklearn_cryoem.io.cryosparc import poses_of_records
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.frame import pixel_growth

_SAME_SHIFT_ANGSTROM = 1e-4


def cryosparc_records(
    stack: ParticleStack, labels: np.ndarray | None, columns: dict[str, np.ndarray], names: list[str] | None
) -> tuple[np.ndarray, list[str]]:
    """Make the structured array of a .cs file.

    Parameters
    ----------
    stack : ParticleStack
        The particles.
    labels : ndarray of shape (n_images,) or None
        Class of each particle from 0, written as ``alignments2D/class``.
    columns : dict of ndarray of shape (n_images,)
        More fields by name; a name without prefix is put under ``sklearn_cryoem/``.
    names : list of str or None
        Names of the images, ``000001@stack.mrcs``; not needed for particles that were read from a .cs file.

    Returns
    -------
    records : ndarray
        Every field that came in, in its order, then new ones.
    lost : list of str
        Columns of particles from elsewhere that cryoSPARC has no field for.

    Raises
    ------
    ParticleDataError
        If images are mirrored, without a class, phase-flipped or multiplied by their CTF, which cryoSPARC has
        no field for; or in no file.
    """
    if stack.poses is not None and stack.poses.mirrored.any():
        raise ParticleDataError(
            f"{stack.poses.mirrored.sum():,} of the {len(stack):,} images are mirrored, which a .cs file "
            "cannot say: their angles would be wrong. Write a .star file, align without mirrors, or write "
            "classes alone, of stack.with_poses(None)."
        )
    if stack.ctf is not None and (stack.ctf.phase_flipped + stack.ctf.premultiplied).any():
        raise ParticleDataError(
            "The images are phase-flipped or multiplied by their CTF already, which a .cs file cannot say: "
            "cryoSPARC would take another CTF than theirs. Write a .star file, or extract them again without."
        )
    table, lost = stack.metadata, []
    if "uid" not in table.columns:
        if names is None:
            raise ParticleDataError(
                "A .cs file names its images, and these are in no MRC file. Write a .star file first, which "
                "writes them too, read it, and write that as .cs."
            )
        table, lost = new_cryosparc_table(stack, names)
    if stack.poses is not None:
        _set_poses(table, stack)
    if labels is not None:
        if (labels < 0).any():
            raise ParticleDataError(
                f"{(labels < 0).sum():,} particles have no class (-1), which a .cs file cannot say. Write "
                "the others alone, or a .star file."
            )
        table["alignments2D/class"] = labels.astype(np.uint32)
    more = {name if "/" in name else f"sklearn_cryoem/{name}": values for name, values in columns.items()}
    return table_to_records(pd.DataFrame(dict(table.items()) | more)), lost


def _set_poses(table: pd.DataFrame, stack: ParticleStack) -> None:
    """Write the poses as a 2-D alignment, unless the table gives the same already."""
    n_images = len(stack)
    sizes = None
    if stack.pixel_size is not None:  # of the images where they lie
        sizes = np.full(n_images, stack.pixel_size) / pixel_growth(stack.images)
    old_angle, old_shift, _ = poses_of_records(table_to_records(table), sizes)
    angle, shift = stack.poses.angle_rad, stack.poses.shift
    if old_angle is not None and old_shift is not None:
        if same_angles(angle, old_angle) and (np.abs(shift - old_shift) < _SAME_SHIFT_ANGSTROM).all():
            return
    fields = [("alignments2D/pose", "<f4"), ("alignments2D/shift", "<f4", (2,))]
    if sizes is not None:
        fields.append(("alignments2D/psize_A", "<f4"))
    new = np.zeros(n_images, dtype=fields)
    new["alignments2D/pose"] = angle
    new["alignments2D/shift"] = shift if sizes is None else shift / sizes[:, None]
    if sizes is not None:
        new["alignments2D/psize_A"] = sizes
    for name, values in records_to_table(new).items():
        table[name] = values
