"""Metadata of particles in one form, whatever file they come from, and how bad rows are dealt with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_cryoem._core.validation import ParticleDataError

ANGSTROM_PER_MM = 1e7
VOLTS_PER_KILOVOLT = 1e3
RADIANS_PER_DEGREE = np.pi / 180
# Ours on the left; RELION's label, the factor that converts it to ours, and what to take where it is missing.
RELION_CTF = {
    "defocus_u_angstrom": ("rlnDefocusU", 1.0, None),
    "defocus_v_angstrom": ("rlnDefocusV", 1.0, None),
    "astigmatism_angle_rad": ("rlnDefocusAngle", RADIANS_PER_DEGREE, None),
    "voltage_volts": ("rlnVoltage", VOLTS_PER_KILOVOLT, None),
    "cs_angstrom": ("rlnSphericalAberration", ANGSTROM_PER_MM, None),
    "amplitude_contrast": ("rlnAmplitudeContrast", 1.0, None),
    "phase_shift_rad": ("rlnPhaseShift", RADIANS_PER_DEGREE, 0.0),
    "b_factor_angstrom2": ("rlnCtfBfactor", 1.0, 0.0),
    "scale": ("rlnCtfScalefactor", 1.0, 1.0),
    "phase_flipped": ("rlnCtfDataArePhaseFlipped", 1.0, 0.0),
    "premultiplied": ("rlnCtfDataAreCtfPremultiplied", 1.0, 0.0),
}
# The same for the fields of cryoSPARC.
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
UID = "cryosparcUid"  # a column: by it a subset finds back into its project
OURS = "sklearn_cryoem/"  # prefix of our fields in a .cs file
_SAME_ANGLE_RAD = 1e-5  # files have float32, and degrees to six digits


class RowProblems:
    """Collects what is wrong with single particles: raises at once, or drops them and keeps a report.

    Parameters
    ----------
    path : Path
        The file the particles come from.
    n_rows : int
        Number of particles in it.
    permissive : bool
        Whether to drop bad particles instead of raising.
    """

    def __init__(self, path: Path, n_rows: int, *, permissive: bool) -> None:
        self._path = path
        self._permissive = permissive
        self.keep = np.ones(n_rows, dtype=bool)
        self.why = np.full(n_rows, "", dtype=object)
        self.name_row: Callable[[int], str] = lambda row: f"particle {row + 1}"

    def add(self, bad: np.ndarray, why: str | Callable[[int], str], remedy: str) -> None:
        """Note that the rows `bad` (a mask or indices) cannot be used.

        Parameters
        ----------
        bad : ndarray of bool or int
            Which rows.
        why : str or callable
            What is wrong; a callable is given the row.
        remedy : str
            What to do about it.

        Raises
        ------
        ParticleDataError
            For the first bad row, unless permissive.
        """
        rows = np.flatnonzero(bad) if bad.dtype == bool else np.asarray(bad)
        rows = rows[self.keep[rows]]
        if not rows.size:
            return
        reasons = [why(int(row)) if callable(why) else why for row in rows[: None if self._permissive else 1]]
        if not self._permissive:
            more = f" ({rows.size - 1:,} more like it)" if rows.size > 1 else ""
            raise ParticleDataError(
                f"{self._path}, {self.name_row(int(rows[0]))}: {reasons[0]}{more}. {remedy} "
                "To leave out particles that cannot be used, pass permissive=True."
            )
        self.keep[rows] = False
        self.why[rows] = reasons

    def check_any_left(self) -> None:
        """Raise ParticleDataError if every particle was dropped."""
        if len(self.keep) and not self.keep.any():
            raise ParticleDataError(
                f"{self._path}: none of its {len(self.keep):,} particles can be used; the first: "
                f"{self.why[0]}. Repair the file, or check that it is the right one."
            )

    def report(self, image_name: Callable[[int], str]) -> pd.DataFrame:
        """One row for each dropped particle: ``particle`` (from 1), ``image``, ``problem``."""
        rows = np.flatnonzero(~self.keep)
        names = [image_name(int(row)) for row in rows]
        return pd.DataFrame({"particle": rows + 1, "image": names, "problem": self.why[rows]})


@dataclass
class RawParticles:
    """Metadata of n particles in the library's units, before any image is looked for.

    `file_names` are the distinct image files as they are written in the file at `path`; `file_code` and
    `frame` are the file of each particle and its place there from 0. `pixel_size` and `box` are those that
    the metadata claim. What the file does not say is None.
    """

    path: Path
    metadata: pd.DataFrame  # every column that came in
    file_names: list[str]
    file_code: np.ndarray  # (n,)
    frame: np.ndarray  # (n,)
    optics_group: np.ndarray  # (n,)
    noise_group: np.ndarray  # (n,)
    optics: pd.DataFrame | None = None
    pixel_size: np.ndarray | None = None  # (n,) Angstrom
    box: np.ndarray | None = None  # (n,) px
    ctf: dict[str, np.ndarray] | None = None  # by the names of `CTFTable`
    angle_rad: np.ndarray | None = None  # (n,)
    shift: np.ndarray | None = None  # (n, 2)
    shift_unit_is_pixel: bool = False
    mirrored: np.ndarray | None = None  # (n,)

    def image_name(self, row: int) -> str:
        """Name of the image of one row, as RELION writes it: ``000001@stack.mrcs``."""
        return f"{self.frame[row] + 1:06d}@{self.file_names[self.file_code[row]]}"


def same_angles(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether angles in radians agree, as they do unless the particles were aligned anew."""
    return bool((np.abs(np.remainder(one - other + np.pi, 2 * np.pi) - np.pi) < _SAME_ANGLE_RAD).all())


def holds_something(column: pd.Series) -> bool:
    """Whether a column is worth a word when it is left out: not if it is nothing but zeros."""
    values = column.to_numpy()
    return values.dtype.kind not in "fiub" or bool(np.any(values != 0))
