"""What the numbers of particles may be, whatever file they come from: refused, warned of, or taken."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_cryoem._core.validation import ParticleDataError, notify
from sklearn_cryoem.io.image_files import plain_name
from sklearn_cryoem.io.records import (
    ANGSTROM_PER_MM,
    CRYOSPARC_CTF,
    RADIANS_PER_DEGREE,
    RELION_CTF,
    VOLTS_PER_KILOVOLT,
    RawParticles,
    RowProblems,
)
from sklearn_cryoem.particles.frames import UNKNOWN_PIXEL_SIZE, pixel_sizes_differ


@dataclass(frozen=True)
class Range:
    """What a number may be. Limits are in `unit`, which is `factor` of the library's units.

    Values beyond `possible` are refused with `remedy`; values beyond `usual` give a warning.
    """

    what: str
    unit: str
    factor: float
    possible: tuple[float, float]
    usual: tuple[float, float]
    remedy: str
    hint: str = ""

    def describe(self, value: float, limits: tuple[float, float]) -> str:
        """Say what was found and what was expected."""
        unit = f" {self.unit}" if self.unit else ""
        expected = f"{limits[0]:,g} to {limits[1]:,g}{unit}{self.hint}"
        return f"{self.what} is {value / self.factor:g}{unit}, expected {expected}"

    def is_impossible(self, values: np.ndarray) -> np.ndarray:
        """Which values lie beyond what is possible; NaN does not."""
        low, high = (limit * self.factor for limit in self.possible)
        return (values < low) | (values > high)

    def is_unusual(self, values: np.ndarray) -> np.ndarray:
        """Which values lie beyond what is usual by more than single precision rounds; NaN does not."""
        low, high = (limit * self.factor for limit in self.usual)
        return (values < low - _ROUNDING * abs(low)) | (values > high + _ROUNDING * abs(high))


_ESTIMATE = "Estimate the CTF again, or read with ctf=False to take the CTF as 1."
_CORRECT = "Correct it in the file, or read with ctf=False to take the CTF as 1."
_REPAIR_POSE = "Repair or drop the row, or remove the columns of the poses."
_POSITIVE = " (positive is underfocus)"
_MAX_DEGREES = 720.0
_TURNS = (-_MAX_DEGREES, _MAX_DEGREES)
_FLAG = (0.0, 1.0)
RANGES = {
    name: Range(*row)
    for name, *row in [
        ("defocus_u_angstrom", "defocus U", "A", 1.0, (0.0, 2e5), (1000.0, 8e4), _ESTIMATE, _POSITIVE),
        ("defocus_v_angstrom", "defocus V", "A", 1.0, (0.0, 2e5), (1000.0, 8e4), _ESTIMATE, _POSITIVE),
        ("astigmatism_angle_rad", "the angle of astigmatism", "degrees", RADIANS_PER_DEGREE,
         _TURNS, _TURNS, _ESTIMATE),
        ("voltage_volts", "the voltage", "kV", VOLTS_PER_KILOVOLT, (10.0, 3000.0), (60.0, 400.0), _CORRECT),
        ("cs_angstrom", "the spherical aberration", "mm", ANGSTROM_PER_MM, (0.0, 20.0), (0.0, 5.0), _CORRECT),
        ("amplitude_contrast", "the amplitude contrast", "", 1.0, (0.0, 1.0), (0.01, 0.5), _CORRECT,
         ", a fraction"),
        ("phase_shift_rad", "the phase shift", "degrees", RADIANS_PER_DEGREE, (-360.0, 360.0),
         (-90.0, 180.0), _CORRECT),
        ("b_factor_angstrom2", "the B-factor of the CTF", "A^2", 1.0, (-500.0, 2000.0), (-200.0, 500.0),
         _CORRECT),
        ("scale", "the scale factor of the CTF", "", 1.0, (1e-3, 1e3), (0.1, 10.0), _CORRECT),
        ("phase_flipped", "the flag of phase-flipped images", "", 1.0, _FLAG, _FLAG, _CORRECT),
        ("premultiplied", "the flag of CTF-premultiplied images", "", 1.0, _FLAG, _FLAG, _CORRECT),
        ("astigmatism", "the astigmatism (defocus U - V)", "A", 1.0, (0.0, 2e5), (0.0, 5000.0), _ESTIMATE),
        ("box", "the box", "px", 1.0, (4.0, 65536.0), (4.0, 65536.0), "Correct it in the file."),
        ("pixel_size", "the pixel size", "A", 1.0, (0.05, 100.0), (0.3, 10.0),
         "Correct it in the file, or pass pixel_size=."),
    ]
}  # fmt: skip
_CS_IN_METRES = (0.001, 0.005)  # mm: a Cs of 1 to 5 mm; correctors of Cs have 0, 0.001 or 0.01 mm
_MAX_SIDE = 800.0  # Angstrom of a box of large pixels: beyond it the magnification is questioned
_MIN_ANGLES = 20  # to tell radians from degrees by their range
_ROUNDING = 1e-6  # relative, of numbers in single precision
_UNUSED = {  # what two dimensions do without, and the value that says nothing
    "rlnBeamTiltX": 0.0, "rlnBeamTiltY": 0.0, "rlnOddZernike": 0.0, "rlnEvenZernike": 0.0,
    "rlnMagMat00": 1.0, "rlnMagMat01": 0.0, "rlnMagMat10": 0.0, "rlnMagMat11": 1.0,
    "ctf/shift_A": 0.0, "ctf/tilt_A": 0.0, "ctf/trefoil_A": 0.0, "ctf/tetra_A": 0.0, "ctf/anisomag": 0.0,
}  # fmt: skip
_OPTIONAL_LABELS = {  # what is read where it is there: without it another value is taken in silence
    *(label for label, _, default in [*RELION_CTF.values(), *CRYOSPARC_CTF.values()] if default is not None),
    "rlnAnglePsi", "rlnAnglePsiPrior", "rlnOriginXAngst", "rlnOriginYAngst", "rlnOriginX",
    "rlnOriginY", "rlnIsFlip", "rlnClassNumber", "rlnOpticsGroup", "rlnImagePixelSize", "rlnPixelSize",
    "rlnDetectorPixelSize", "rlnMagnification", "rlnImageSize", "rlnMicrographName", "rlnGroupName",
    "uid", "blob/psize_A", "blob/shape", "blob/sign",
    "ctf/exp_group_id", "alignments2D/pose", "alignments2D/shift", "alignments2D/psize_A",
    "alignments2D/class", "alignments3D/pose", "alignments3D/shift", "alignments3D/psize_A",
    "location/micrograph_uid", "location/micrograph_path",
}  # fmt: skip
_SIMILAR_LABELS = {"rlnOriginZ", "rlnOriginZAngst", "alignments3D/class", "rlnMicrographNameNoDW"}
_MISSPELT = 0.88  # similarity of labels that differ in one letter of ten or more
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")


def check_values(raw: RawParticles, problems: RowProblems) -> None:
    """Report rows whose numbers are impossible, and warn of what is unusual.

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
    unusual = []
    ctf = raw.ctf or {}
    for name, values in ctf.items():
        what, remedy = RANGES[name].what, RANGES[name].remedy
        problems.add(np.isnan(values), f"the CTF parameter {name} is missing (NaN)", remedy)
        unusual += _check_range(name, values, problems)
        if name in ("phase_flipped", "premultiplied"):
            problems.add(~np.isin(values, (0, 1)), f"{what} is neither 0 nor 1", remedy)
    if raw.box is not None:
        unusual += _check_range("box", raw.box, problems)
    if ctf:
        split = np.abs(ctf["defocus_u_angstrom"] - ctf["defocus_v_angstrom"])  # (n,)
        unusual += _check_range("astigmatism", split, problems)
        unusual += _seems_in_metres(ctf["cs_angstrom"] / ANGSTROM_PER_MM, problems)
        unusual += _seem_radians("phase shift", ctf["phase_shift_rad"], problems)
    if raw.angle_rad is not None:
        missing = ~(np.isfinite(raw.angle_rad) & np.isfinite(raw.shift).all(axis=1))
        problems.add(missing, "an in-plane angle or a shift is missing (NaN)", _REPAIR_POSE)
    if raw.angle_rad is not None and len(raw.angle_rad) >= _MIN_ANGLES:
        unusual += _seem_radians("in-plane angle", raw.angle_rad, problems)
    if unusual:
        notify(
            "unusual-values",
            f"{raw.path}: unusual values: {'; '.join(unusual)}. Make sure that they are right, and in the "
            "right unit.",
        )
    _warn_of_repeated_images(raw, problems)
    _warn_of_unused_optics(raw)


def add_impossible(name: str, values: np.ndarray, problems: RowProblems) -> None:
    """Report rows whose value of a name in `RANGES` is impossible; NaN is not."""
    limits = RANGES[name]
    impossible = limits.is_impossible(values)
    problems.add(impossible, lambda row: limits.describe(values[row], limits.possible), limits.remedy)


def _check_range(name: str, values: np.ndarray, problems: RowProblems) -> list[str]:
    """Report rows whose value of a name in `RANGES` is impossible, and say which are unusual."""
    limits = RANGES[name]
    add_impossible(name, values, problems)
    rows = np.flatnonzero(limits.is_unusual(values) & problems.keep)
    if not rows.size:
        return []
    first = int(rows[0])
    said = limits.describe(values[first], limits.usual)
    return [f"{said} as a rule ({rows.size:,} of {problems.keep.sum():,}, first {problems.name_row(first)})"]


def _seems_in_metres(cs_mm: np.ndarray, problems: RowProblems) -> list[str]:
    low, high = _CS_IN_METRES
    rows = np.flatnonzero((cs_mm > low * (1 + _ROUNDING)) & (cs_mm < high) & problems.keep)
    return [f"the spherical aberration is {cs_mm[row]:g} mm, as if it were in metres" for row in rows[:1]]


def _seem_radians(what: str, values: np.ndarray, problems: RowProblems) -> list[str]:
    """Say if no angle exceeds pi degrees, as if radians had been written for degrees."""
    largest = float(np.abs(values[problems.keep]).max(initial=0.0) / RADIANS_PER_DEGREE)
    if not 0 < largest <= np.pi * (1 + _ROUNDING):
        return []
    return [f"no {what} is larger than {largest:.3g} degrees, as if it were in radians"]


def check_poses(
    raw: RawParticles, problems: RowProblems, rows: np.ndarray, box: int, pixel_size: float | None
) -> None:
    """Report angles of several turns and shifts beyond the box, which programs write for unknown poses.

    Parameters
    ----------
    raw, problems
        As for `check_values`.
    rows : ndarray of shape (n,), bool
        The particles that have this box and pixel size.
    box : int
        Side of the images in pixels, 0 if unknown.
    pixel_size : float or None
        In Angstrom.
    """
    if raw.angle_rad is None:
        return
    unit = 1.0 if raw.shift_unit_is_pixel or pixel_size is None else pixel_size
    degrees = raw.angle_rad / RADIANS_PER_DEGREE  # (n,)
    longest = np.abs(raw.shift).max(axis=1) / unit  # (n,) px
    problems.add(
        rows & ((np.abs(degrees) > _MAX_DEGREES) | (longest > (box or RANGES["box"].possible[1]))),
        lambda row: (
            f"an in-plane angle of {degrees[row]:g} degrees and a shift of {longest[row]:g} px, expected two "
            f"turns and, at the longest, the box of {box or 'some'} px (-999 and 999 stand for unknown)"
        ),
        _REPAIR_POSE,
    )


def check_pixel_size(path: Path, size: float, box: int, headers: list[float | None]) -> None:
    """Warn if the headers of the images give another pixel size, or it is one that hardly any images have.

    A magnification that is wrong by a factor of ten gives such a size. Small boxes of large pixels are taken
    as they are if the headers agree. `box` is 0 where it is unknown; `headers` is empty where none was read.
    """
    differing = pixel_sizes_differ(size, headers)
    if differing is not None:
        notify("pixel-size-differs", f"{path}: {differing}")
        return
    limits = RANGES["pixel_size"]
    headers_agree = not headers or any(header not in (None, UNKNOWN_PIXEL_SIZE) for header in headers)
    too_large = size > limits.usual[1] and (box * size > _MAX_SIDE or not headers_agree)
    if size < limits.usual[0] or too_large:
        notify(
            "pixel-size-unusual",
            f"{path}: {limits.describe(size, limits.usual)} as a rule. If the magnification in the file is "
            "wrong by a factor of ten, so are the CTF and all resolutions: pass pixel_size=.",
        )


def _warn_of_repeated_images(raw: RawParticles, problems: RowProblems) -> None:
    used = np.flatnonzero(problems.keep)
    if not used.size:
        return
    file = pd.factorize(pd.Series([plain_name(name) for name in raw.file_names], dtype=object))[0]
    frame = raw.frame[used]
    image = file[raw.file_code[used]].astype(np.int64) * (int(frame.max()) + 1) + frame  # one number an image
    again = used[pd.Series(image).duplicated().to_numpy()]
    if again.size:
        first = int(again[0])
        notify(
            "images-named-twice",
            f"{raw.path}: {again.size:,} of {used.size:,} rows name an image that another row named before, "
            f"the first is {problems.name_row(first)}, {raw.image_name(first)}. Selections that overlap may "
            "have been joined, or the set was expanded by symmetry; every row is counted. Drop the repeats "
            "unless they are meant.",
        )


def _warn_of_unused_optics(raw: RawParticles) -> None:
    """Name the columns of aberrations that hold something."""
    tables = [table for table in (raw.metadata, raw.optics) if table is not None]
    found = {
        field: None
        for table in tables
        for column in map(str, table.columns)
        if (field := column.partition("[")[0]) in _UNUSED and _differs(table[column], _UNUSED[field])
    }
    if found:
        notify(
            "optics-unused",
            f"{raw.path}: {', '.join(found)} are kept, but not used: aberrations beyond defocus, astigmatism "
            "and Cs, and distortions of the magnification, are left in the images. Classes are blurred only "
            "where they are strong at the resolution that is reached.",
        )


def _differs(column: pd.Series, neutral: float) -> bool:
    """Whether a column of numbers, or of lists of numbers as text, holds anything but a value."""
    if pd.api.types.is_numeric_dtype(column):
        values = column.to_numpy(dtype=np.float64)
    else:
        values = np.array([float(n) for text in column.unique() for n in _NUMBER.findall(str(text))])
    return bool(np.any(np.abs(values[np.isfinite(values)] - neutral) > 1e-6))


def refuse_misspelt_labels(path: Path, *tables: pd.DataFrame | None) -> None:
    """Raise ParticleDataError for a label that looks like a misspelling of one that is optional.

    Its values would be missing in silence. `tables` are all in which labels are looked for.
    """
    columns = [str(column) for table in tables if table is not None for column in table.columns]
    there = {column.partition("[")[0] for column in columns}
    unknown = sorted(there.difference(_OPTIONAL_LABELS, _SIMILAR_LABELS))
    for label in sorted(_OPTIONAL_LABELS - there):
        for near in difflib.get_close_matches(label, unknown, n=1, cutoff=_MISSPELT):
            if not near.startswith(label):  # rlnImageSizeX is a label of its own
                raise ParticleDataError(
                    f"{path}: no {label}, but {near}, which looks like a misspelling of it. Correct the "
                    "name, or give it another one if it is something else."
                )
