"""What the numbers of particles may be, whatever file they come from: refused, questioned, or taken."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem._core.notices import notify
from sklearn_cryoem.io._locate import plain_name
from sklearn_cryoem.io._raw import (
    ANGSTROM_PER_MM,
    RADIANS_PER_DEGREE,
    VOLTS_PER_KILOVOLT,
    RawParticles,
    RowProblems,
)

_ESTIMATE = "Estimate the CTF again, or read with ctf=False to take the CTF as 1."
_CORRECT = "Correct it in the file, or read with ctf=False to take the CTF as 1."


@dataclass(frozen=True)
class Range:
    """What a number may be, in the unit of people.

    Attributes
    ----------
    what : str
        Its name in messages.
    unit : str
        The unit of the limits.
    ours : float
        One of that unit in the library's.
    possible : (float, float)
        Beyond these no particle has it: an error.
    usual : (float, float)
        Beyond these it is questioned by a warning.
    remedy : str
        What to do about an error.
    hint : str
        Said beside what is expected.
    """

    what: str
    unit: str
    ours: float
    possible: tuple[float, float]
    usual: tuple[float, float]
    remedy: str
    hint: str = ""

    def says(self, value: float, limits: tuple[float, float]) -> str:
        """Found and expected, in words."""
        unit = f" {self.unit}" if self.unit else ""
        expected = f"{limits[0]:,g} to {limits[1]:,g}{unit}{self.hint}"
        return f"{self.what} is {value / self.ours:g}{unit}, expected {expected}"

    def cannot_be(self, values: np.ndarray) -> np.ndarray:
        """Which values lie beyond what is possible; NaN does not."""
        low, high = (limit * self.ours for limit in self.possible)
        return (values < low) | (values > high)

    def is_odd(self, values: np.ndarray) -> np.ndarray:
        """Which values lie beyond what is usual by more than single precision rounds; NaN does not."""
        low, high = (limit * self.ours for limit in self.usual)
        return (values < low - _ROUNDING * abs(low)) | (values > high + _ROUNDING * abs(high))


_MOST_DEGREES = 720.0
_TURNS = (-_MOST_DEGREES, _MOST_DEGREES)
RANGES = {
    "defocus_u_angstrom": Range(
        "defocus U", "A", 1.0, (0.0, 2e5), (1000.0, 8e4), _ESTIMATE, " (positive is underfocus)"
    ),
    "defocus_v_angstrom": Range(
        "defocus V", "A", 1.0, (0.0, 2e5), (1000.0, 8e4), _ESTIMATE, " (positive is underfocus)"
    ),
    "astigmatism_angle_rad": Range(
        "the angle of astigmatism", "degrees", RADIANS_PER_DEGREE, _TURNS, _TURNS, _ESTIMATE
    ),
    "voltage_volts": Range("the voltage", "kV", VOLTS_PER_KILOVOLT, (10.0, 3000.0), (60.0, 400.0), _CORRECT),
    "cs_angstrom": Range(
        "the spherical aberration", "mm", ANGSTROM_PER_MM, (0.0, 20.0), (0.0, 5.0), _CORRECT
    ),
    "amplitude_contrast": Range(
        "the amplitude contrast", "", 1.0, (0.0, 1.0), (0.01, 0.5), _CORRECT, ", a fraction"
    ),
    "phase_shift_rad": Range(
        "the phase shift", "degrees", RADIANS_PER_DEGREE, (-360.0, 360.0), (-90.0, 180.0), _CORRECT
    ),
    "b_factor_angstrom2": Range(
        "the B-factor of the CTF", "A^2", 1.0, (-500.0, 2000.0), (-200.0, 500.0), _CORRECT
    ),
    "scale": Range("the scale factor of the CTF", "", 1.0, (1e-3, 1e3), (0.1, 10.0), _CORRECT),
    "phase_flipped": Range("the flag of phase-flipped images", "", 1.0, (0.0, 1.0), (0.0, 1.0), _CORRECT),
    "premultiplied": Range("the flag of CTF-premultiplied images", "", 1.0, (0.0, 1.0), (0.0, 1.0), _CORRECT),
    "astigmatism": Range("the astigmatism (defocus U - V)", "A", 1.0, (0.0, 2e5), (0.0, 5000.0), _ESTIMATE),
    "box": Range("the box", "px", 1.0, (4.0, 65536.0), (4.0, 65536.0), "Correct it in the file."),
    "pixel_size": Range(
        "the pixel size", "A", 1.0, (0.05, 100.0), (0.3, 10.0), "Correct it in the file, or pass pixel_size=."
    ),
}
_LARGEST_SIDE = 800.0  # Angstrom of a box of large pixels: beyond, the magnification is doubted
_METRES = (0.001, 0.005)  # a Cs of 1 to 5 mm in metres; correctors of Cs have 0, 0.001 or 0.01 mm
_ENOUGH_ANGLES = 20  # to tell radians from degrees by their range
_UNUSED = {  # what two dimensions do without, and the value that says nothing
    "rlnBeamTiltX": 0.0, "rlnBeamTiltY": 0.0, "rlnOddZernike": 0.0, "rlnEvenZernike": 0.0,
    "rlnMagMat00": 1.0, "rlnMagMat01": 0.0, "rlnMagMat10": 0.0, "rlnMagMat11": 1.0,
    "ctf/shift_A": 0.0, "ctf/tilt_A": 0.0, "ctf/trefoil_A": 0.0, "ctf/tetra_A": 0.0, "ctf/anisomag": 0.0,
}  # fmt: skip
_MAY_BE_MISSING = {  # what is read if it is there: without them another value is taken in silence
    "rlnPhaseShift", "rlnCtfBfactor", "rlnCtfScalefactor", "rlnCtfDataArePhaseFlipped",
    "rlnCtfDataAreCtfPremultiplied", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginX",
    "rlnOriginY", "rlnIsFlip", "rlnClassNumber", "rlnOpticsGroup", "rlnImagePixelSize", "rlnPixelSize",
    "rlnDetectorPixelSize", "rlnMagnification", "rlnImageSize", "rlnMicrographName", "rlnGroupName",
    "uid", "blob/psize_A", "blob/shape", "blob/sign", "ctf/phase_shift_rad", "ctf/bfactor", "ctf/scale",
    "ctf/exp_group_id", "alignments2D/pose", "alignments2D/shift", "alignments2D/psize_A",
    "alignments2D/class", "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A",
    "location/micrograph_uid", "location/micrograph_path",
}  # fmt: skip
_NO_MISSPELLING = {"rlnOriginZ", "rlnOriginZAngst", "alignments3D/class", "rlnMicrographNameNoDW"}
_NEARLY = 0.88  # one letter of ten or more
_SAME_LENGTH = 1e-3  # relative
_ROUNDING = 1e-6  # relative, of numbers in single precision
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")


def check_values(raw: RawParticles, problems: RowProblems) -> None:
    """Report rows whose numbers cannot be, and question what is unusual.

    Parameters
    ----------
    raw : RawParticles
        The metadata.
    problems : RowProblems
        Collects bad rows, or raises for the first.

    Warns
    -----
    ParticleDataWarning
        If values are unusual, images are named more than once, or aberrations are given that are not used.
    """
    doubts = []
    for name, values in (raw.ctf or {}).items():
        what = f"the CTF parameter {name} is missing (NaN)"
        problems.add(np.isnan(values), what, RANGES[name].remedy)
        doubts += _check_range(name, values, problems)
        if name in ("phase_flipped", "premultiplied"):
            problems.add(
                ~np.isin(values, (0, 1)), f"{RANGES[name].what} is neither 0 nor 1", RANGES[name].remedy
            )
    if raw.box is not None:
        doubts += _check_range("box", raw.box, problems)
    if raw.ctf is not None:
        split = np.abs(raw.ctf["defocus_u_angstrom"] - raw.ctf["defocus_v_angstrom"])  # (n,)
        doubts += _check_range("astigmatism", split, problems)
        doubts += _seem_metres(raw.ctf["cs_angstrom"] / ANGSTROM_PER_MM, problems)
        doubts += _seem_radians("phase shift", raw.ctf["phase_shift_rad"], problems)
    if raw.angle_rad is not None and len(raw.angle_rad) >= _ENOUGH_ANGLES:
        doubts += _seem_radians("in-plane angle", raw.angle_rad, problems)
    if doubts:
        notify(
            "unusual-values",
            f"{raw.path}: unusual values: {'; '.join(doubts)}. Make sure that they are right, and in the "
            "right unit.",
            stacklevel=3,
        )
    _question_repeats(raw, problems)
    _say_what_is_unused(raw)


def _check_range(name: str, values: np.ndarray, problems: RowProblems) -> list[str]:
    """Report rows whose value of a name in `RANGES` cannot be, and say which are odd; NaN is neither."""
    limits = RANGES[name]
    problems.add(
        limits.cannot_be(values),
        lambda row: limits.says(values[row], limits.possible),
        limits.remedy,
    )
    rows = np.flatnonzero(limits.is_odd(values) & problems.keep)
    if not rows.size:
        return []
    first = int(rows[0])
    said = limits.says(values[first], limits.usual)
    return [f"{said} as a rule ({rows.size:,} of {problems.keep.sum():,}, first {problems.name_row(first)})"]


def check_poses(raw: RawParticles, problems: RowProblems, box: int, pixel_size: float | None) -> None:
    """Report angles of several turns and shifts beyond the box: what programs write that do not know them.

    Parameters
    ----------
    raw, problems
        As for `check_values`.
    box : int
        Side of the images in pixels, 0 if unknown.
    pixel_size : float or None
        In Angstrom.
    """
    if raw.angle_rad is None or raw.shift is None:
        return
    unit = 1.0 if raw.shift_unit_is_pixel or pixel_size is None else pixel_size
    degrees = raw.angle_rad / RADIANS_PER_DEGREE  # (n,)
    longest = np.abs(raw.shift).max(axis=1) / unit  # (n,) px
    problems.add(
        (np.abs(degrees) > _MOST_DEGREES) | (longest > (box or RANGES["box"].possible[1])),
        lambda row: (
            f"an in-plane angle of {degrees[row]:g} degrees and a shift of {longest[row]:g} px, expected two "
            f"turns and, at the longest, the box of {box or 'some'} px (-999 and 999 stand for unknown)"
        ),
        "Repair or drop the row, or remove the columns of the poses.",
    )


def question_pixel_size(raw: RawParticles, size: float, box: int, *, header_agrees: bool) -> None:
    """Warn of a pixel size as a magnification ten times too small or too large gives it.

    Parameters
    ----------
    raw : RawParticles
        The metadata.
    size : float
        In Angstrom.
    box : int
        Side of the images in pixels, 0 if unknown.
    header_agrees : bool
        Whether the images themselves say so: small boxes of large pixels are then taken as they are.
    """
    limits = RANGES["pixel_size"]
    if size < limits.usual[0] or (
        size > limits.usual[1] and (box * size > _LARGEST_SIDE or not header_agrees)
    ):
        notify(
            "pixel-size-unusual",
            f"{raw.path}: {limits.says(size, limits.usual)} as a rule. If the magnification in the file is "
            "wrong by a factor of ten, so are the CTF and all resolutions: pass pixel_size=.",
            stacklevel=4,
        )


def _seem_metres(cs_mm: np.ndarray, problems: RowProblems) -> list[str]:
    """Say if the spherical aberration is that of a microscope in metres, written for millimetres."""
    odd = np.flatnonzero((cs_mm > _METRES[0] * (1 + _ROUNDING)) & (cs_mm < _METRES[1]) & problems.keep)
    if not odd.size:
        return []
    return [f"the spherical aberration is {cs_mm[odd[0]]:g} mm, as if it were in metres"]


def _seem_radians(what: str, values: np.ndarray, problems: RowProblems) -> list[str]:
    """Say if no angle exceeds pi degrees, as if radians had been written for degrees."""
    largest = float(np.abs(values[problems.keep]).max(initial=0.0) / RADIANS_PER_DEGREE)
    if not 0 < largest <= np.pi * (1 + _ROUNDING):
        return []
    return [f"no {what} is larger than {largest:.3g} degrees, as if it were in radians"]


def _question_repeats(raw: RawParticles, problems: RowProblems) -> None:
    """Warn of images that several rows name."""
    used = np.flatnonzero(problems.keep)
    if not used.size:
        return
    file = pd.factorize(pd.Series([plain_name(name) for name in raw.file_names], dtype=object))[0]
    key = file[raw.file_code[used]].astype(np.int64) * (int(raw.frame[used].max()) + 1) + raw.frame[used]
    again = used[pd.Series(key).duplicated().to_numpy()]
    if again.size:
        first = int(again[0])
        notify(
            "images-named-twice",
            f"{raw.path}: {again.size:,} of {used.size:,} rows name an image that another row named before, "
            f"the first is {problems.name_row(first)}, {raw.image_name(first)}. Selections that overlap may "
            "have been joined, or the set was expanded by symmetry; every row is counted. Drop the repeats "
            "unless they are meant.",
            stacklevel=4,
        )


def _say_what_is_unused(raw: RawParticles) -> None:
    """Name the columns of aberrations that hold something."""
    found: dict[str, None] = {}
    for table in (raw.metadata, raw.optics):
        for column in () if table is None else map(str, table.columns):
            field = column.partition("[")[0]
            if field in _UNUSED and _differs(table[column], _UNUSED[field]):
                found[field] = None
    if found:
        notify(
            "optics-unused",
            f"{raw.path}: {', '.join(found)} are kept, but not used: aberrations beyond defocus, astigmatism "
            "and Cs, and distortions of the magnification, are left in the images. Classes are blurred only "
            "where they are strong at the resolution that is reached.",
            stacklevel=4,
        )


def refuse_misspelt(path: Path, *tables: pd.DataFrame | None) -> None:
    """Raise ParticleDataError for a label that is nearly one which may be missing: its values would be too.

    Parameters
    ----------
    path : Path
        The file.
    *tables : DataFrame or None
        All of its tables in which labels are looked for.
    """
    columns = [str(column) for table in tables if table is not None for column in table.columns]
    there = {column.partition("[")[0] for column in columns}
    unknown = sorted(there.difference(_MAY_BE_MISSING, _NO_MISSPELLING))
    for label in sorted(_MAY_BE_MISSING - there):
        for near in difflib.get_close_matches(label, unknown, n=1, cutoff=_NEARLY):
            if not near.startswith(label):  # rlnImageSizeX is a label of its own
                raise ParticleDataError(
                    f"{path}: no {label}, but {near}, which looks like a misspelling of it. Correct the "
                    "name, or give it another one if it is something else."
                )


def are_unlike(one: float | None, other: float | None) -> bool:
    """Whether two lengths of a pixel are known and differ by more than rounding."""
    return one is not None and other is not None and abs(one - other) > _SAME_LENGTH * one


def _differs(column: pd.Series, neutral: float) -> bool:
    """Whether a column of numbers, or of lists of numbers as text, holds anything but a value."""
    if pd.api.types.is_numeric_dtype(column):
        values = column.to_numpy(dtype=np.float64)
    else:
        values = np.array([float(n) for text in column.unique() for n in _NUMBER.findall(str(text))])
    return bool(np.any(np.abs(values[np.isfinite(values)] - neutral) > 1e-6))
