"""cryoSPARC particle tables (.cs, .csg), in the library's units, and their fields by RELION's names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.io.checks import refuse_misspelt_labels
from sklearn_cryoem.io.cryosparc_file import file_beside, load_joined, records_to_table
from sklearn_cryoem.io.image_files import SIGN, sign_of_images
from sklearn_cryoem.io.records import (
    CRYOSPARC_CTF,
    OURS,
    UID,
    RawParticles,
    RowProblems,
    holds_something,
    same_angles,
)
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.physics.rotation import euler_of_rotation_vector

logger = logging.getLogger(__name__)

_FROM_CRYOSPARC = {  # fields that are taken over here, or written from the stack itself
    *(field for field, _, _ in CRYOSPARC_CTF.values()), "uid", "alignments2D/class",
    "alignments2D/class_posterior", "blob/path", "blob/idx", "blob/shape", "blob/psize_A", "blob/sign",
    "blob/import_sig", "ctf/type", "ctf/exp_group_id", "alignments2D/pose", "alignments2D/shift",
    "alignments2D/psize_A", "alignments3D/shift", "alignments3D/psize_A", "location/micrograph_path",
    "location/micrograph_uid", "location/exp_group_id", "location/micrograph_shape",
}  # fmt: skip
_ALIGNMENTS = ("alignments2D", "alignments3D")  # the first that was made counts


def read_cryosparc(
    path: Path, *, permissive: bool, ctf: bool, passthrough: str | Path | Sequence[str | Path] | None
) -> tuple[RawParticles, RowProblems]:
    """Read the metadata of a cryoSPARC table of particles, and report the rows that cannot be used.

    Raises ParticleDataError if the file does not hold particles, or lacks what is needed.
    """
    more = [passthrough] if isinstance(passthrough, str | Path) else passthrough or []
    records = load_joined(path, more)
    table = records_to_table(records)
    refuse_misspelt_labels(path, table)
    problems = RowProblems(path, len(records), permissive=permissive)
    paths = _image_paths(records, path)
    _check_uids(records, problems)
    _check_sign(records, path)
    code, names = pd.factorize(paths)
    raw = RawParticles(
        path=path,
        metadata=table,
        file_names=[name.removeprefix(">") for name in names],
        file_code=code,
        frame=records["blob/idx"].astype(np.int64),
        optics_group=_optional(records, "ctf/exp_group_id", 0).astype(np.int64),
        noise_group=_noise_groups(records, code),
        pixel_size=_optional(records, "blob/psize_A", np.nan) if _has(records, "blob/psize_A") else None,
        box=records["blob/shape"][:, 0].astype(np.float64) if _has(records, "blob/shape") else None,
        ctf=_ctf(records, path) if ctf else None,
    )
    raw.angle_rad, raw.shift, raw.shift_unit_is_pixel = poses_of_records(records, raw.pixel_size, path)
    return raw, problems


def _has(records: np.ndarray, *names: str) -> bool:
    return all(name in (records.dtype.names or ()) for name in names)


def _optional(records: np.ndarray, name: str, default: float) -> np.ndarray:
    if _has(records, name):
        return records[name].astype(np.float64)
    return np.full(len(records), default, dtype=np.float64)


def _image_paths(records: np.ndarray, path: Path) -> np.ndarray:
    field = records["blob/path"]
    try:
        text = np.char.decode(field, "utf-8") if field.dtype.kind == "S" else field
        return text.astype(object)
    except UnicodeError as error:
        raise ParticleDataError(
            f"{path}: field blob/path is not UTF-8 text, so the table is damaged. Copy or export it again."
        ) from error


def _check_uids(records: np.ndarray, problems: RowProblems) -> None:
    """Report rows that are there twice."""
    if _has(records, "uid"):
        problems.add(
            pd.Series(records["uid"]).duplicated().to_numpy(),
            lambda row: f"its uid {records['uid'][row]} is that of a particle before it",
            "Export the particles again: every particle has a uid of its own.",
        )


def _check_sign(records: np.ndarray, path: Path) -> None:
    """Refuse dark and white particles in one table, whose averages would cancel out."""
    if not _has(records, "blob/sign"):
        return
    signs, first, count = np.unique(records["blob/sign"], return_index=True, return_counts=True)
    if len(signs) > 1:
        raise ParticleDataError(
            f"{path}: some images are marked as dark particles, others as white ones (blob/sign is "
            f"{signs.tolist()}; the first of the fewer is particle {first[np.argmin(count)] + 1}). Read them "
            "apart, the dark ones with invert=True."
        )
    if signs[0] < 0:
        logger.info(
            "%s: cryoSPARC marks these particles as dark (blob/sign -1): invert=True whitens them.", path
        )


def _noise_groups(records: np.ndarray, file_code: np.ndarray) -> np.ndarray:
    for name in ("location/micrograph_uid", "location/micrograph_path", "sklearn_cryoem/rlnGroupName"):
        if _has(records, name):
            return np.unique(records[name], return_inverse=True)[1].reshape(-1)
    return file_code


def _ctf(records: np.ndarray, path: Path) -> dict[str, np.ndarray]:
    needed = [name for name, _, default in CRYOSPARC_CTF.values() if default is None]
    missing = [name for name in needed if not _has(records, name)]
    if missing:
        raise ParticleDataError(
            f"{path}: no field {', '.join(missing)}. Pass passthrough= the file that has them"
            f"{file_beside(path, missing[0])}, or read with ctf=False to take the CTF as 1."
        )
    return {
        ours: _optional(records, name, default or 0.0) * unit
        for ours, (name, unit, default) in CRYOSPARC_CTF.items()
    }


def _alignment(records: np.ndarray) -> str | None:
    """Which alignment of a table counts: the 2-D one, unless it was never made and there is a 3-D one."""
    kinds = [kind for kind in _ALIGNMENTS if _has(records, f"{kind}/pose", f"{kind}/shift")]
    made = [kind for kind in kinds if records[f"{kind}/pose"].any() or records[f"{kind}/shift"].any()]
    return next(iter([*made, *kinds]), None)


def poses_of_records(
    records: np.ndarray, pixel_size: np.ndarray | None, path: Path | None = None
) -> tuple[np.ndarray | None, np.ndarray | None, bool]:
    """RELION's psi and shift, of the 2-D alignment if there is one, else of the 3-D one.

    cryoSPARC's 2-D pose is psi in radians; its 3-D pose is a rotation vector, whose transposed matrix is
    RELION's Euler matrix. Shifts have RELION's sign, in pixels of ``psize_A`` of the alignment itself, or of
    the images where it has none.

    Returns
    -------
    angle_rad : ndarray of shape (n_images,) or None
    shift : ndarray of shape (n_images, 2) or None
    is_in_pixels : bool
        Whether the shift is in pixels of the images, since no field gives a pixel size; else in Angstrom.
    """
    for kind in _ALIGNMENTS:
        if _has(records, f"{kind}/pose") != _has(records, f"{kind}/shift"):
            raise ParticleDataError(
                f"{path or 'The table'}: of {kind}/pose and {kind}/shift one is missing, so no particle has "
                "a whole pose. Export them again, or leave out both."
            )
    kind = _alignment(records)
    if kind is None:
        return None, None, False
    pose = records[f"{kind}/pose"].astype(np.float64)
    angle = pose if kind == "alignments2D" else euler_of_rotation_vector(pose)[:, 2]  # (n,)
    shift = records[f"{kind}/shift"].astype(np.float64)  # (n, 2)
    unit = _optional(records, f"{kind}/psize_A", 0.0)  # (n,)
    known = unit > 0
    if pixel_size is not None:
        unit = np.where(known, unit, pixel_size)
    elif not known.any():
        return angle, shift, True
    elif not known.all():
        raise ParticleDataError(
            f"{path or 'The table'}: {kind}/psize_A is missing or 0 for {(~known).sum():,} of the "
            f"{len(known):,} particles, and there is no blob/psize_A, so the unit of their shifts is "
            "not known. Pass passthrough= the file that has blob/psize_A."
        )
    return angle, shift * unit[:, None], False


def relion_columns(stack: ParticleStack) -> tuple[pd.DataFrame, list[str]]:
    """Columns of particles from elsewhere by RELION's names, and the fields that have no place there.

    Columns without a prefix stay as they are.
    """
    table = stack.metadata
    plain = table[[name for name in table if "/" not in str(name) and name != "uid"]].copy()
    if "uid" in table:
        plain[UID] = table["uid"].to_numpy()
        signs = sign_of_images(stack, as_read=False)
        if (signs < 0).any():
            plain[SIGN] = signs
    if "alignments2D/class" in table:
        plain["rlnClassNumber"] = table["alignments2D/class"].to_numpy(dtype=np.int64) + 1
    if "alignments2D/class_posterior" in table:
        posterior = table["alignments2D/class_posterior"].to_numpy(dtype=np.float64)
        plain["rlnMaxValueProbDistribution"] = posterior.round(6)
    for axis, side in (("x", 1), ("y", 0)):
        fraction, length = f"location/center_{axis}_frac", f"location/micrograph_shape[{side}]"
        if fraction in table and length in table:
            centre = table[fraction].to_numpy(dtype=np.float64) * table[length].to_numpy()
            plain[f"rlnCoordinate{axis.upper()}"] = centre.round(3)
    taken, lost = _take_three_dimensions(stack, plain)
    if "filament/filament_uid" in table:  # RELION numbers the tubes of each micrograph from 1
        taken.add("filament/filament_uid")
        tube = table["filament/filament_uid"].groupby(table.get("location/micrograph_uid", 0 * table.index))
        plain["rlnHelicalTubeID"] = tube.rank("dense").to_numpy(dtype=np.int64)
    has_centre = "rlnCoordinateX" in plain
    for column in map(str, table):
        field = column.partition("[")[0]
        if column.startswith(OURS):
            plain[column.removeprefix(OURS)] = table[column].to_numpy()
        elif "/" not in column or field in _FROM_CRYOSPARC | taken:
            continue
        elif not (has_centre and field.startswith("location/center_")) and holds_something(table[column]):
            lost.append(field)
    return plain, list(dict.fromkeys(lost))


def _take_three_dimensions(stack: ParticleStack, plain: pd.DataFrame) -> tuple[set[str], list[str]]:
    """Take over view directions and half sets; return the fields that were dealt with and those lost.

    The angles belong to the psi and shift that are written with them, those of the stack: of another
    alignment they would be a mixture that no particle has.
    """
    table, taken, lost = stack.metadata, set(), []
    pose = [f"alignments3D/pose[{i}]" for i in range(3)]
    if all(name in table for name in pose) and table[pose].to_numpy().any():
        angles = euler_of_rotation_vector(table[pose].to_numpy(dtype=np.float64))  # (n_images, 3)
        taken.add("alignments3D/pose")
        if stack.poses is not None and same_angles(angles[:, 2], stack.poses.angle_rad):
            plain["rlnAngleRot"], plain["rlnAngleTilt"] = np.rad2deg(angles[:, :2]).round(6).T
        else:
            lost.append(
                "alignments3D/pose (a STAR file has one pose, and that of the 2-D alignment is written)"
            )
    split = table.get("alignments3D/split")
    if split is not None and split.isin((0, 1)).all():
        taken.add("alignments3D/split")
        if split.any():  # all in one half says that there are none
            plain["rlnRandomSubset"] = split.to_numpy(dtype=np.int64) + 1
    return taken, lost
