"""cryoSPARC particle tables (.cs, .csg), in the library's units.

A .cs file is a numpy array with named fields; `sklearn_cryoem.io._records` makes a table of it.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.io._raw import ANGSTROM_PER_MM, VOLTS_PER_KILOVOLT, RawParticles, RowProblems
from sklearn_cryoem.io._records import records_to_table

logger = logging.getLogger(__name__)

# Ours on the left; cryoSPARC's field, its unit in ours, and what to take where the field is missing.
CRYOSPARC_CTF = {
    "defocus_u_angstrom": ("ctf/df1_A", 1.0, None),
    "defocus_v_angstrom": ("ctf/df2_A", 1.0, None),
    "astigmatism_angle_rad": ("ctf/df_angle_rad", 1.0, None),
    "voltage_volts": ("ctf/accel_kv", VOLTS_PER_KILOVOLT, None),
    "cs_angstrom": ("ctf/cs_mm", ANGSTROM_PER_MM, None),
    "amplitude_contrast": ("ctf/amp_contrast", 1.0, None),
    "phase_shift_rad": ("ctf/phase_shift_rad", 1.0, 0.0),
    "b_factor_angstrom2": ("ctf/bfactor", 1.0, 0.0),
    "scale": ("ctf/scale", 1.0, 1.0),
}
_COMPRESSED_MAGIC = (b"\x94CSDAT", b"\x95CSDAT")
_REMEDY_CTF = "Pass passthrough= the file that has them, or read with ctf=False to take the CTF as 1."


def read_cryosparc(
    path: Path, *, permissive: bool, ctf: bool, passthrough: str | Path | None
) -> tuple[RawParticles, RowProblems]:
    """Read the metadata of a cryoSPARC table of particles.

    Parameters
    ----------
    path : Path
        A .cs file, or a .csg group, whose files are then read.
    permissive : bool
        Whether bad rows are dropped instead of raising.
    ctf : bool
        Whether CTF parameters are wanted.
    passthrough : str or Path, optional
        Second file, joined by ``uid``.

    Returns
    -------
    raw : RawParticles
        The metadata in the library's units.
    problems : RowProblems
        Rows found bad so far.

    Raises
    ------
    ParticleDataError
        If the file does not hold particles, or lacks what is needed.
    """
    if path.suffix.lower() == ".csg":
        table_path, others = _group_members(path)
    else:
        table_path, others = path, []
    records = load_records(table_path)
    for other in others if passthrough is None else [Path(passthrough)]:
        records = _join(records, load_records(other), path, other)
    _check_has_images(records, path)
    problems = RowProblems(path, len(records), permissive=permissive)
    code, names = pd.factorize(_image_paths(records, path))
    raw = RawParticles(
        path=path,
        metadata=records_to_table(records),
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
    if raw.angle_rad is not None and raw.shift is not None:
        odd = ~(np.isfinite(raw.angle_rad) & np.isfinite(raw.shift).all(axis=1))
        problems.add(odd, "the pose or shift of its alignment is NaN or infinite", "Repair or drop the row.")
    _note_sign(records, path)
    return raw, problems


def load_records(path: Path) -> np.ndarray:
    """Load the structured array of a .cs file; raises ParticleDataError if it is none."""
    if not path.is_file():
        raise ParticleDataError(f"{path}: no such file. Copy it from the same job as the other one.")
    with open(path, "rb") as stream:
        magic = stream.read(6)
    if magic in _COMPRESSED_MAGIC:
        raise ParticleDataError(
            f"{path}: a compressed cryoSPARC stream. Save it in the numpy format with cryosparc-tools: "
            'Dataset.load("in.cs").save("out.cs").'
        )
    try:
        records = np.load(path, allow_pickle=False)
    except Exception as error:  # numpy evaluates the header: a damaged one can raise nearly anything
        what = "the file is empty" if not magic else f"cannot be read as a cryoSPARC table ({error})"
        raise ParticleDataError(f"{path}: {what}. Copy or export it again.") from error
    if not isinstance(records, np.ndarray) or records.dtype.names is None:
        raise ParticleDataError(f"{path}: an array without named fields, so not a cryoSPARC table. Check it.")
    odd = [name for name in records.dtype.names if not (name.isascii() and name.isprintable())]
    if odd:
        raise ParticleDataError(
            f"{path}: a field is called {odd[0]!a}, so the table is damaged. Copy or export it again."
        )
    return records


def _image_paths(records: np.ndarray, path: Path) -> np.ndarray:
    try:
        return np.char.decode(_as_bytes(records["blob/path"]), "utf-8").astype(object)
    except UnicodeError as error:
        raise ParticleDataError(
            f"{path}: field blob/path is not UTF-8 text, so the table is damaged. Copy or export it again."
        ) from error


def _as_bytes(field: np.ndarray) -> np.ndarray:
    return field if field.dtype.kind == "S" else np.char.encode(field.astype(str), "utf-8")


def _has(records: np.ndarray, name: str) -> bool:
    return name in (records.dtype.names or ())


def _optional(records: np.ndarray, name: str, default: float) -> np.ndarray:
    if _has(records, name):
        return records[name].astype(np.float64)
    return np.full(len(records), default, dtype=np.float64)


def _check_has_images(records: np.ndarray, path: Path) -> None:
    names = records.dtype.names or ()
    if len(records) == 0:
        raise ParticleDataError(f"{path}: holds no particle. Check the job that wrote it.")
    if "blob/path" not in names or "blob/idx" not in names:
        prefixes = ", ".join(sorted({name.split("/")[0] for name in names} - {"uid"}))
        particle_like = any(name.split("/")[0] in ("alignments2D", "alignments3D", "ctf") for name in names)
        if particle_like:
            beside = sorted(p.name for p in path.parent.glob("*passthrough*particles*.cs"))
            hint = f" (perhaps {beside[0]})" if beside else ""
            raise ParticleDataError(
                f"{path}: no field blob/path, which says where the images are (fields: {prefixes}). "
                f"Pass passthrough= the passthrough file of the same job{hint}."
            )
        raise ParticleDataError(
            f"{path}: this is not a table of particles (fields: {prefixes}). Give the particles of a job."
        )


def _group_members(path: Path) -> tuple[Path, list[Path]]:
    """The tables a .csg group refers to: the job's own first, then the passthrough ones."""
    text = path.read_text(encoding="utf-8", errors="replace")
    kind = re.search(r"^ {2}type: *(\S+)", text, flags=re.MULTILINE)
    if kind is None or kind[1] != "particle":
        found = f"a group of type {kind[1]}" if kind else "no cryoSPARC group"
        raise ParticleDataError(
            f"{path}: this is {found}, not of particles. Give the group of the particles."
        )
    names = list(dict.fromkeys(re.findall(r"metafile: *'?>?([^'\s]+)'?", text)))
    members = [path.parent / name for name in names]
    missing = [str(member) for member in members if not member.is_file()]
    if missing or not members:
        raise ParticleDataError(
            f"{path}: not there, though the group refers to it: {', '.join(missing) or 'any file'}. "
            "Copy all files of the group into one folder."
        )
    members.sort(key=lambda member: "passthrough" in member.name)
    return members[0], members[1:]


def _join(records: np.ndarray, other: np.ndarray, path: Path, other_path: Path) -> np.ndarray:
    """Add the fields of `other` that `records` lacks, row by row of equal uid."""
    if not _has(records, "uid") or not _has(other, "uid"):
        raise ParticleDataError(f"{path} and {other_path} cannot be joined: no field uid. Export them again.")
    order = np.argsort(other["uid"])
    place = np.minimum(np.searchsorted(other["uid"][order], records["uid"]), max(len(other) - 1, 0))
    match = order[place] if len(other) else np.zeros(len(records), dtype=np.intp)
    lost = np.flatnonzero(other["uid"][match] != records["uid"]) if len(other) else np.arange(len(records))
    if lost.size:
        raise ParticleDataError(
            f"{other_path}: lacks {lost.size} of the {len(records)} particles of {path}, the first with uid "
            f"{records['uid'][lost[0]]}. Take both files from the same job."
        )
    new = [name for name in other.dtype.names if name not in records.dtype.names]
    dtype = records.dtype.descr + [(name, other.dtype[name].base, other.dtype[name].shape) for name in new]
    joined = np.zeros(len(records), dtype=dtype)
    for name in records.dtype.names:
        joined[name] = records[name]
    for name in new:
        joined[name] = other[name][match]
    return joined


def _noise_groups(records: np.ndarray, file_code: np.ndarray) -> np.ndarray:
    for name in ("location/micrograph_uid", "location/micrograph_path"):
        if _has(records, name):
            return np.unique(records[name], return_inverse=True)[1].reshape(-1)
    return file_code


def _ctf(records: np.ndarray, path: Path) -> dict[str, np.ndarray]:
    needed = [name for name, _, default in CRYOSPARC_CTF.values() if default is None]
    missing = [name for name in needed if not _has(records, name)]
    if missing:
        raise ParticleDataError(f"{path}: no field {', '.join(missing)}. {_REMEDY_CTF}")
    return {
        ours: _optional(records, name, 0.0 if default is None else default) * unit
        for ours, (name, unit, default) in CRYOSPARC_CTF.items()
    }


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
    for kind in ("alignments2D", "alignments3D"):
        if _has(records, f"{kind}/pose") and _has(records, f"{kind}/shift"):
            pose = records[f"{kind}/pose"].astype(np.float64)
            angle = pose if kind == "alignments2D" else _psi_of_rotation_vector(pose)  # (n,)
            shift = records[f"{kind}/shift"].astype(np.float64)  # (n, 2)
            unit = _optional(records, f"{kind}/psize_A", 0.0)
            known = unit > 0
            if pixel_size is not None:
                unit = np.where(known, unit, pixel_size)
            elif not known.any():
                return angle, shift, True
            elif not known.all():
                n_unknown = int((~known).sum())
                raise ParticleDataError(
                    f"{path or 'The table'}: {kind}/psize_A is missing or 0 for {n_unknown:,} of the "
                    f"{len(known):,} particles, and there is no blob/psize_A, so the unit of their shifts is "
                    "not known. Pass passthrough= the file that has blob/psize_A."
                )
            return angle, shift * unit[:, None], False
    return None, None, False


def _psi_of_rotation_vector(vector: np.ndarray) -> np.ndarray:
    euler_matrix = Rotation.from_rotvec(vector).as_matrix().transpose(0, 2, 1)  # (n, 3, 3)
    psi = np.arctan2(euler_matrix[:, 1, 2], -euler_matrix[:, 0, 2])
    at_pole = np.hypot(euler_matrix[:, 0, 2], euler_matrix[:, 1, 2]) < 1e-6  # tilt 0 or 180
    side = np.where(euler_matrix[:, 2, 2] > 0, 1.0, -1.0)
    at_pole_psi = np.arctan2(-side * euler_matrix[:, 1, 0], side * euler_matrix[:, 0, 0])
    return np.where(at_pole, at_pole_psi, psi)


def _note_sign(records: np.ndarray, path: Path) -> None:
    signs = np.unique(records["blob/sign"]) if _has(records, "blob/sign") else np.ones(1)
    if len(signs) > 1:
        raise ParticleDataError(
            f"{path}: some images are marked as dark particles, others as white ones (blob/sign is "
            f"{signs.tolist()}). Read them apart, the dark ones with invert=True."
        )
    if len(signs) and signs[0] < 0:
        logger.info(
            "%s: cryoSPARC marks these particles as dark (blob/sign -1): invert=True whitens them.", path
        )
