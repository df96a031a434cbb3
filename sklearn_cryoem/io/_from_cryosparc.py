"""cryoSPARC's columns as RELION's, as far as RELION has a column for them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sklearn_cryoem.io._image_names import SIGN, sign_of_images
from sklearn_cryoem.io._star_version import holds_something
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.physics.orientation import euler_of_rotation_vector

_OURS = "sklearn_cryoem/"
UID = "cryosparcUid"  # by which a subset finds back into its project
_WRITTEN = (  # anew by `relion_tables`, from the stack itself
    "blob/path", "blob/idx", "blob/shape", "blob/psize_A", "blob/sign", "blob/import_sig", "ctf/type",
    "ctf/exp_group_id", "ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast", "ctf/df1_A", "ctf/df2_A",
    "ctf/df_angle_rad", "ctf/phase_shift_rad", "ctf/scale", "ctf/bfactor", "alignments2D/pose",
    "alignments2D/shift", "alignments2D/psize_A", "alignments3D/shift", "alignments3D/psize_A",
    "location/micrograph_path", "location/micrograph_uid", "location/exp_group_id",
    "location/micrograph_shape",
)  # fmt: skip
_TAKEN = ("uid", "alignments2D/class", "alignments2D/class_posterior")
_SAME_ANGLE_RAD = 1e-5  # files have float32, and degrees to six digits
_CENTRE = {"rlnCoordinateX": ("x", 1), "rlnCoordinateY": ("y", 0)}


def relion_columns(stack: ParticleStack) -> tuple[pd.DataFrame, list[str]]:
    """Take over what RELION has a column for, and say what is left behind.

    Parameters
    ----------
    stack : ParticleStack
        Particles that did not come from RELION.

    Returns
    -------
    columns : DataFrame
        Columns without a prefix as they are; uid, class, posterior, coordinates and our own by their names in
        STAR files.
    lost : list of str
        Fields that hold something other than zeros and have no place in a STAR file.
    """
    table = stack.metadata
    plain = table[[name for name in table.columns if "/" not in str(name) and name != "uid"]].copy()
    lost: dict[str, None] = {}
    if "uid" in table.columns:
        plain[UID] = table["uid"].to_numpy()
        if (sign_of_images(stack, as_read=False) < 0).any():
            plain[SIGN] = sign_of_images(stack, as_read=False)
    if "alignments2D/class" in table.columns:
        plain["rlnClassNumber"] = table["alignments2D/class"].to_numpy(dtype=np.int64) + 1
    if "alignments2D/class_posterior" in table.columns:
        values = table["alignments2D/class_posterior"].to_numpy(dtype=np.float64)
        plain["rlnMaxValueProbDistribution"] = values.round(6)
    for label, (axis, side) in _CENTRE.items():
        fraction, length = f"location/center_{axis}_frac", f"location/micrograph_shape[{side}]"
        if fraction in table.columns and length in table.columns:
            plain[label] = (table[fraction].to_numpy(dtype=np.float64) * table[length].to_numpy()).round(3)
    taken = [*_TAKEN, *_three_dimensions(stack, plain, lost)]
    for column in map(str, table.columns):
        field = column.partition("[")[0]
        if column.startswith(_OURS):
            plain[column.removeprefix(_OURS)] = table[column].to_numpy()
        elif "/" in column and field not in (*_WRITTEN, *taken) and not _is_coordinate(field, plain):
            if holds_something(table[column]):
                lost[field] = None
    return plain, list(lost)


def _three_dimensions(stack: ParticleStack, plain: pd.DataFrame, lost: dict[str, None]) -> list[str]:
    """Take over view directions and half sets; return the fields that were dealt with.

    The angles belong to the psi and shift that are written with them, those of the stack: of another
    alignment they would be a mixture that no particle has.
    """
    table, taken = stack.metadata, []
    pose = [f"alignments3D/pose[{i}]" for i in range(3)]
    if all(name in table.columns for name in pose) and table[pose].to_numpy().any():
        angles = euler_of_rotation_vector(table[pose].to_numpy(dtype=np.float64))  # (n_images, 3)
        if stack.poses is not None and same_angles(angles[:, 2], stack.poses.angle_rad):
            plain["rlnAngleRot"], plain["rlnAngleTilt"] = np.rad2deg(angles[:, :2]).round(6).T
        else:
            lost["alignments3D/pose (a STAR file has one pose, and that of the 2-D alignment is written)"] = (
                None
            )
        taken.append("alignments3D/pose")
    split = table.get("alignments3D/split")
    if split is not None and split.isin((0, 1)).all():
        if split.any():  # all in one half says that there are none
            plain["rlnRandomSubset"] = split.to_numpy(dtype=np.int64) + 1
        taken.append("alignments3D/split")
    return taken


def same_angles(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether angles in radians agree, as they do unless the particles were aligned anew."""
    return bool((np.abs(np.remainder(one - other + np.pi, 2 * np.pi) - np.pi) < _SAME_ANGLE_RAD).all())


def _is_coordinate(field: str, plain: pd.DataFrame) -> bool:
    return field.startswith("location/center_") and "rlnCoordinateX" in plain.columns
