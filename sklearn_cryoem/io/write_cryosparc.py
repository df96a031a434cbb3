"""A stack as a cryoSPARC table: the fields that came in, or new ones for particles from elsewhere."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.io.cryosparc import poses_of_records
from sklearn_cryoem.io.cryosparc_file import table_to_records
from sklearn_cryoem.io.image_files import SIGN, sign_of_images, split_format, split_image_name
from sklearn_cryoem.io.records import CRYOSPARC_CTF, OURS, RELION_CTF, UID, holds_something, same_angles
from sklearn_cryoem.particles import CTFTable, ParticleStack, class_labels
from sklearn_cryoem.particles.classes import OUTLIER, RELION_CLASS
from sklearn_cryoem.particles.frames import file_boxes, pixel_growth
from sklearn_cryoem.physics.rotation import rotation_vector_of_euler

_SAME_SHIFT_ANGSTROM = 1e-4
_UNUSED_OPTICS = {"shift_A": 2, "tilt_A": 2, "trefoil_A": 2, "tetra_A": 4, "anisomag": 4}
_ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]
_CARRIED = {  # RELION's columns that are written, or follow from what is
    "rlnImageName", "rlnMicrographName", "rlnOpticsGroup", "rlnAnglePsi", "rlnOriginXAngst",
    "rlnOriginYAngst", "rlnOriginX", "rlnOriginY", "rlnIsFlip", "rlnClassNumber",
    "rlnMaxValueProbDistribution", "rlnMagnification", "rlnDetectorPixelSize", "rlnPixelSize",
    "rlnImagePixelSize", "rlnImageSize", "rlnOpticsGroupName", "rlnImageDimensionality", UID, SIGN,
    *(RELION_CTF[name][0] for name in CRYOSPARC_CTF),
}  # fmt: skip
_KEPT = ("smlLatent", "smlMatch", OUTLIER, "rlnGroupName")  # as they are, under a prefix of ours


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
    if "uid" not in table:
        if names is None:
            raise ParticleDataError(
                "A .cs file names its images, and these are in no MRC file. Write a .star file first, which "
                "writes them too, read it, and write that as .cs."
            )
        table, lost = _new_table(stack, names)
    elif stack.ctf is not None:
        _set_ctf(table, stack.ctf)
    if stack.poses is not None:
        _set_poses(table, stack)
    if labels is not None:
        if (labels < 0).any():
            raise ParticleDataError(
                f"{(labels < 0).sum():,} particles have no class (-1), which a .cs file cannot say. Write "
                "the others alone, or a .star file."
            )
        table["alignments2D/class"] = labels.astype(np.uint32)
    more = {name if "/" in name else f"{OURS}{name}": values for name, values in columns.items()}
    return table_to_records(pd.DataFrame(dict(table.items()) | more)), lost


def _set_ctf(table: pd.DataFrame, ctf: CTFTable) -> None:
    """Bring the fields of the CTF up to date; those that hold the same numbers stay as they came in."""
    for ours, (name, unit, default) in CRYOSPARC_CTF.items():
        values = (getattr(ctf, ours) / unit).astype(np.float32)
        old = table[name].to_numpy(dtype=np.float32) if name in table else default
        if old is None or not np.array_equal(np.broadcast_to(old, len(table)), values):
            table[name] = values


def _set_poses(table: pd.DataFrame, stack: ParticleStack) -> None:
    """Write the poses as a 2-D alignment, unless the table gives the same already."""
    angle, shift = stack.poses.angle_rad, stack.poses.shift
    sizes = None
    if stack.pixel_size is not None:  # of the images where they lie
        sizes = stack.pixel_size / pixel_growth(stack.images)
    if stack.poses.view_rad is not None:
        pixel = np.ones(len(stack)) if sizes is None else sizes
        angles = np.column_stack([stack.poses.view_rad, angle])
        for name, values in _pose_columns(angles, shift, pixel).items():
            table[name] = values
    old_angle, old_shift, _ = poses_of_records(table_to_records(table), sizes)
    if old_angle is not None and same_angles(angle, old_angle):
        if (np.abs(shift - old_shift) < _SAME_SHIFT_ANGSTROM).all():
            return
    table["alignments2D/pose"] = angle.astype(np.float32)
    in_pixels = shift if sizes is None else shift / sizes[:, None]  # (n_images, 2)
    for axis in range(2):
        table[f"alignments2D/shift[{axis}]"] = in_pixels[:, axis].astype(np.float32)
    if sizes is not None:
        table["alignments2D/psize_A"] = sizes.astype(np.float32)


def _new_table(stack: ParticleStack, names: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Make the columns, without poses, of particles from elsewhere; name those that have no place in it."""
    box = file_boxes(stack.images)
    if not np.all(box) or stack.pixel_size is None:
        what = "box of the images" if not np.all(box) else "pixel size"
        raise ParticleDataError(
            f"A .cs file states box and pixel size, and the {what} is not known. Read the particles with "
            f"{'their images (images_dir=)' if not np.all(box) else 'pixel_size='}."
        )
    pixel_size = stack.pixel_size / pixel_growth(stack.images)
    table, n_images = stack.metadata, len(stack)
    parts = [split_image_name(name) for name in names]
    index = np.array([0 if number is None else int(number) - 1 for number, _ in parts], dtype=np.uint32)
    columns: dict[str, np.ndarray | list[str]] = {
        "uid": table[UID].to_numpy(dtype=np.uint64) if UID in table else _uids(names),
        "blob/path": [split_format(file)[0] for _, file in parts],
        "blob/idx": index,
        "blob/shape[0]": box.astype(np.uint32),
        "blob/shape[1]": box.astype(np.uint32),
        "blob/psize_A": pixel_size.astype(np.float32),
        "blob/sign": sign_of_images(stack, as_read=False).astype(np.float32),
        "blob/import_sig": np.zeros(n_images, dtype=np.uint64),
    }
    if stack.ctf is not None:
        columns |= _ctf_columns(stack)
    if "rlnMicrographName" in table:
        micrographs = table["rlnMicrographName"].astype(str).tolist()
        columns["location/micrograph_uid"] = _uids(micrographs, distinct=False)
        columns["location/micrograph_path"] = micrographs
    classes, lost = _class_columns(stack)
    columns |= classes | _three_dimensions(stack, pixel_size)
    columns |= {f"{OURS}{name}": table[name].to_numpy() for name in table if str(name).startswith(_KEPT)}
    carried = _CARRIED | ({*_ANGLES} if "alignments3D/pose[0]" in columns else set())
    carried |= {"rlnRandomSubset"} if "alignments3D/split" in columns else set()
    lost += [
        str(name)
        for part in (table, stack.optics)
        for name in ([] if part is None else part.columns)
        if name not in carried and not str(name).startswith(_KEPT) and holds_something(part[name])
    ]
    return pd.DataFrame(columns), lost


def _uids(names: list[str], *, distinct: bool = True) -> np.ndarray:
    """Numbers that name particles: the same for the same name, so that files made apart agree."""
    column = pd.Series(names, dtype=object)
    times = column.groupby(column).cumcount() if distinct else [0] * len(names)
    keys = [f"{name}#{n}" if n else name for name, n in zip(names, times, strict=True)]
    digests = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def _ctf_columns(stack: ParticleStack) -> dict[str, np.ndarray | list[str]]:
    none = np.zeros(len(stack), dtype=np.float32)
    columns: dict[str, np.ndarray | list[str]] = {
        "ctf/type": ["imported"] * len(stack),
        "ctf/exp_group_id": stack.optics_group.astype(np.uint32),
    }
    for ours, (name, unit, _) in CRYOSPARC_CTF.items():
        columns[name] = (getattr(stack.ctf, ours) / unit).astype(np.float32)
    columns["ctf/scale_const"] = none
    for name, length in _UNUSED_OPTICS.items():
        columns |= {f"ctf/{name}[{i}]": none for i in range(length)}
    return columns


def _class_columns(stack: ParticleStack) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns of the classes, and what to say of classes that cannot be written."""
    labels, columns, lost = class_labels(stack), {}, []
    if labels is not None and (labels >= 0).all():
        columns["alignments2D/class"] = labels.astype(np.uint32)
    elif labels is not None and (labels >= 0).any():
        some = f"{(labels < 0).sum():,} of {len(stack):,} particles have no class"
        lost.append(f"{RELION_CLASS} ({some}, which a .cs file cannot say)")
    if "rlnMaxValueProbDistribution" in stack.metadata:
        posterior = pd.to_numeric(stack.metadata["rlnMaxValueProbDistribution"])
        columns["alignments2D/class_posterior"] = posterior.to_numpy(dtype=np.float32)
    return columns, lost


def _three_dimensions(stack: ParticleStack, pixel_size: np.ndarray) -> dict[str, np.ndarray]:
    """View directions and half sets, where there are any that belong to the poses of the stack."""
    table, columns = stack.metadata, {}
    if stack.poses is not None and stack.poses.view_rad is not None:
        angles = np.column_stack([stack.poses.view_rad, stack.poses.angle_rad])
        columns |= _pose_columns(angles, stack.poses.shift, pixel_size)
    elif stack.poses is not None and all(name in table for name in _ANGLES):
        degrees = table[_ANGLES].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        angles = np.deg2rad(degrees)  # (n_images, 3)
        if degrees[:, :2].any() and same_angles(angles[:, 2], stack.poses.angle_rad):
            columns |= _pose_columns(angles, stack.poses.shift, pixel_size)
    subset = table.get("rlnRandomSubset")
    if subset is not None and subset.isin((1, 2)).all():
        columns["alignments3D/split"] = subset.to_numpy(dtype=np.uint32) - 1
    return columns


def _pose_columns(angles: np.ndarray, shift: np.ndarray, pixel_size: np.ndarray) -> dict[str, np.ndarray]:
    """A 3-D alignment from Euler angles (n_images, 3), shifts, and the pixel size of each in their unit."""
    pose = rotation_vector_of_euler(*angles.T)
    columns = {f"alignments3D/pose[{i}]": pose[:, i].astype(np.float32) for i in range(3)}
    columns |= {f"alignments3D/shift[{i}]": (shift[:, i] / pixel_size).astype(np.float32) for i in range(2)}
    return columns | {"alignments3D/psize_A": pixel_size.astype(np.float32)}
