"""cryoSPARC's columns as RELION's, as far as RELION has a column for them."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sklearn_cryoem.io._star_version import holds_something

_OURS = "sklearn_cryoem/"
UID = "cryosparcUid"  # by which a subset finds back into its project
_WRITTEN = (  # anew by `relion_tables`, from the stack itself
    "blob/path", "blob/idx", "blob/shape", "blob/psize_A", "blob/sign", "blob/import_sig", "ctf/type",
    "ctf/exp_group_id", "ctf/accel_kv", "ctf/cs_mm", "ctf/amp_contrast", "ctf/df1_A", "ctf/df2_A",
    "ctf/df_angle_rad", "ctf/phase_shift_rad", "ctf/scale", "ctf/bfactor", "alignments2D/pose",
    "alignments2D/shift", "alignments2D/psize_A", "location/micrograph_path", "location/micrograph_uid",
    "location/exp_group_id", "location/micrograph_shape",
)  # fmt: skip
_TAKEN = ("uid", "alignments2D/class", "alignments2D/class_posterior")
_CENTRE = {"rlnCoordinateX": ("x", 1), "rlnCoordinateY": ("y", 0)}


def relion_columns(table: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Take over what RELION has a column for, and say what is left behind.

    Parameters
    ----------
    table : DataFrame
        Metadata of particles that did not come from RELION.

    Returns
    -------
    columns : DataFrame
        Columns without a prefix as they are; uid, class, posterior, coordinates and our own by their names in
        STAR files.
    lost : list of str
        Fields that hold something other than zeros and have no place in a STAR file.
    """
    plain = table[[name for name in table.columns if "/" not in str(name) and name != "uid"]].copy()
    lost: dict[str, None] = {}
    if "uid" in table.columns:
        plain[UID] = table["uid"].to_numpy()
    if "alignments2D/class" in table.columns:
        plain["rlnClassNumber"] = table["alignments2D/class"].to_numpy(dtype=np.int64) + 1
    if "alignments2D/class_posterior" in table.columns:
        values = table["alignments2D/class_posterior"].to_numpy(dtype=np.float64)
        plain["rlnMaxValueProbDistribution"] = values.round(6)
    for label, (axis, side) in _CENTRE.items():
        fraction, length = f"location/center_{axis}_frac", f"location/micrograph_shape[{side}]"
        if fraction in table.columns and length in table.columns:
            plain[label] = (table[fraction].to_numpy(dtype=np.float64) * table[length].to_numpy()).round(3)
    for column in map(str, table.columns):
        field = column.partition("[")[0]
        if column.startswith(_OURS):
            plain[column.removeprefix(_OURS)] = table[column].to_numpy()
        elif "/" in column and field not in (*_WRITTEN, *_TAKEN) and not _is_coordinate(field, plain):
            if holds_something(table[column]):
                lost[field] = None
    return plain, list(lost)


def _is_coordinate(field: str, plain: pd.DataFrame) -> bool:
    return field.startswith("location/center_") and "rlnCoordinateX" in plain.columns
