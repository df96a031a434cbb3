"""Particles from elsewhere as a cryoSPARC table: new uids, and what cryoSPARC has a field for."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.io._from_cryosparc import UID, same_angles
from sklearn_cryoem.io._image_names import SIGN, sign_of_images
from sklearn_cryoem.io._locate import split_format, split_image_name
from sklearn_cryoem.io._relion_table import raw_geometry
from sklearn_cryoem.io._star_version import holds_something
from sklearn_cryoem.io.cryosparc import CRYOSPARC_CTF
from sklearn_cryoem.particles import ParticleStack, class_labels
from sklearn_cryoem.particles.classes import OUTLIER, RELION_CLASS
from sklearn_cryoem.physics.orientation import rotation_vector_of_euler

_UNUSED_OPTICS = {"shift_A": 2, "tilt_A": 2, "trefoil_A": 2, "tetra_A": 4, "anisomag": 4}
_CARRIED = {  # RELION's columns that are written, or follow from what is
    "rlnImageName", "rlnMicrographName", "rlnOpticsGroup", "rlnAnglePsi", "rlnOriginXAngst",
    "rlnOriginYAngst", "rlnOriginX", "rlnOriginY", "rlnIsFlip", "rlnClassNumber",
    "rlnMaxValueProbDistribution", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle", "rlnVoltage",
    "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor",
    "rlnMagnification", "rlnDetectorPixelSize", "rlnPixelSize", "rlnImagePixelSize", "rlnImageSize",
    "rlnOpticsGroupName", "rlnImageDimensionality", UID, SIGN,
}  # fmt: skip
_KEPT = ("smlLatent", OUTLIER, "rlnGroupName")  # as they are, under a prefix of ours
_ANGLES = ["rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi"]


def new_cryosparc_table(stack: ParticleStack, names: list[str]) -> tuple[pd.DataFrame, list[str]]:
    """Make cryoSPARC's columns of particles that did not come from it; poses are not among them.

    Parameters
    ----------
    stack : ParticleStack
        The particles.
    names : list of str
        Name of each image, ``000001@stack.mrcs``.

    Returns
    -------
    table : DataFrame
        As `records_to_table` would give it.
    lost : list of str
        Columns of the metadata and of the optics table that have no place in it.

    Raises
    ------
    ParticleDataError
        If box or pixel size are not known.
    """
    box, pixel_size = raw_geometry(stack)
    if not box or pixel_size is None:
        what = "box of the images" if not box else "pixel size"
        raise ParticleDataError(
            f"A .cs file states box and pixel size, and the {what} is not known. Read the particles with "
            f"{'their images (images_dir=)' if not box else 'pixel_size='}."
        )
    table = stack.metadata
    index, files = _parts(names)
    columns: dict[str, np.ndarray | list[str]] = {
        "uid": table[UID].to_numpy(dtype=np.uint64) if UID in table.columns else _uids(names),
        "blob/path": files,
        "blob/idx": index.astype(np.uint32),
        "blob/shape[0]": np.full(len(stack), box, dtype=np.uint32),
        "blob/shape[1]": np.full(len(stack), box, dtype=np.uint32),
        "blob/psize_A": np.full(len(stack), pixel_size, dtype=np.float32),
        "blob/sign": sign_of_images(stack, as_read=False).astype(np.float32),
        "blob/import_sig": np.zeros(len(stack), dtype=np.uint64),
    }
    if stack.ctf is not None:
        columns |= _ctf_columns(stack)
    if "rlnMicrographName" in table.columns:
        micrographs = table["rlnMicrographName"].astype(str)
        columns["location/micrograph_uid"] = _uids(micrographs.tolist(), distinct=False)
        columns["location/micrograph_path"] = micrographs.tolist()
    classes, problem = _classes(stack)
    columns |= classes | _three_dimensions(stack, pixel_size)
    columns |= {f"sklearn_cryoem/{name}": table[name].to_numpy() for name in table if _is_kept(str(name))}
    carried = _CARRIED | ({*_ANGLES} if "alignments3D/pose[0]" in columns else set())
    carried |= {"rlnRandomSubset"} if "alignments3D/split" in columns else set()
    tables = [table] if stack.optics is None else [table, stack.optics]
    lost = [
        str(name)
        for part in tables
        for name in part.columns
        if name not in carried and not _is_kept(str(name)) and holds_something(part[name])
    ]
    return pd.DataFrame(columns), problem + lost


def _is_kept(name: str) -> bool:
    return name.startswith(_KEPT)


def _parts(names: list[str]) -> tuple[np.ndarray, list[str]]:
    """Place in its file, from 0, and file of each image."""
    parts = [split_image_name(name) for name in names]
    index = np.array([0 if number is None else int(number) - 1 for number, _ in parts], dtype=np.int64)
    return index, [split_format(file)[0] for _, file in parts]


def _uids(names: list[str], *, distinct: bool = True) -> np.ndarray:
    """Numbers that name particles: the same for the same name, so that files made apart agree."""
    seen: dict[str, int] = {}
    uids = np.empty(len(names), dtype=np.uint64)
    for row, name in enumerate(names):
        times = seen.get(name, 0)
        seen[name] = times + 1
        key = f"{name}#{times}" if distinct and times else name
        uids[row] = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    return uids


def _ctf_columns(stack: ParticleStack) -> dict[str, np.ndarray | list[str]]:
    n_images = len(stack)
    columns: dict[str, np.ndarray | list[str]] = {
        "ctf/type": ["imported"] * n_images,
        "ctf/exp_group_id": stack.optics_group.astype(np.uint32),
    }
    for ours, (name, unit, _) in CRYOSPARC_CTF.items():
        columns[name] = (getattr(stack.ctf, ours) / unit).astype(np.float32)
    columns["ctf/scale_const"] = np.zeros(n_images, dtype=np.float32)
    for name, length in _UNUSED_OPTICS.items():
        columns |= {f"ctf/{name}[{i}]": np.zeros(n_images, dtype=np.float32) for i in range(length)}
    return columns


def _classes(stack: ParticleStack) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns of the classes, and what to say of classes that cannot be written."""
    labels, columns, problem = class_labels(stack), {}, []
    if labels is not None and (labels >= 0).all():
        columns["alignments2D/class"] = labels.astype(np.uint32)
    elif labels is not None and (labels >= 0).any():
        n_none = (labels < 0).sum()
        problem = [
            f"{RELION_CLASS} ({n_none:,} of {len(stack):,} particles have no class, which a .cs file cannot "
            "say)"
        ]
    if "rlnMaxValueProbDistribution" in stack.metadata.columns:
        posterior = pd.to_numeric(stack.metadata["rlnMaxValueProbDistribution"])
        columns["alignments2D/class_posterior"] = posterior.to_numpy(dtype=np.float32)
    return columns, problem


def _three_dimensions(stack: ParticleStack, pixel_size: float) -> dict[str, np.ndarray]:
    """View directions and half sets, where there are any that belong to the poses of the stack."""
    table, columns = stack.metadata, {}
    if stack.poses is not None and all(name in table.columns for name in _ANGLES):
        degrees = table[_ANGLES].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        angles = np.deg2rad(degrees)  # (n_images, 3)
        if degrees[:, :2].any() and same_angles(angles[:, 2], stack.poses.angle_rad):
            pose = rotation_vector_of_euler(*angles.T)  # (n_images, 3)
            shift = stack.poses.shift / pixel_size  # (n_images, 2)
            columns |= {f"alignments3D/pose[{i}]": pose[:, i].astype(np.float32) for i in range(3)}
            columns |= {f"alignments3D/shift[{i}]": shift[:, i].astype(np.float32) for i in range(2)}
            columns["alignments3D/psize_A"] = np.full(len(stack), pixel_size, dtype=np.float32)
    subset = table.get("rlnRandomSubset")
    if subset is not None and subset.isin((1, 2)).all():
        columns["alignments3D/split"] = subset.to_numpy(dtype=np.uint32) - 1
    return columns
