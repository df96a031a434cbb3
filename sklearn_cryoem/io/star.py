"""RELION STAR files of particles, versions 1.x to 5, in the library's units."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem._core.notices import notify
from sklearn_cryoem.io._checks import refuse_misspelt
from sklearn_cryoem.io._locate import split_image_name
from sklearn_cryoem.io._raw import (
    ANGSTROM_PER_MM,
    RADIANS_PER_DEGREE,
    VOLTS_PER_KILOVOLT,
    RawParticles,
    RowProblems,
)
from sklearn_cryoem.io._star_file import find_particles, line_of_row, read_star_blocks, seems_cut_off

logger = logging.getLogger(__name__)

# Ours on the left; RELION's label, its unit in ours, and what to take where the column is missing.
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
_TOO_LARGE = 2**31  # for a number of images, groups or classes
_POOR_FIGURE_OF_MERIT = 0.05
_POOR_RESOLUTION_ANGSTROM = 8.0


@dataclass
class _Table:
    """The particles and optics tables of one file, asked by label."""

    path: Path
    block: str
    particles: pd.DataFrame
    optics: pd.DataFrame | None
    problems: RowProblems
    optics_row: np.ndarray | None = None  # (n,) row of `optics` for each particle

    def has(self, label: str) -> bool:
        """Whether either table has the column."""
        return self._home(label) is not None

    def _home(self, label: str) -> pd.DataFrame | None:
        # Optics first: since RELION 3.1 what it says holds, and a column left among the particles is stale.
        for table in (self.optics, self.particles):
            if table is not None and label in table.columns:
                return table
        return None

    def numbers(self, label: str) -> np.ndarray | None:
        """The column as float64 (n,), with the optics table spread over particles; None if absent."""
        home = self._home(label)
        if home is None:
            return None
        column = home[label]
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
        bad = np.isnan(values) & column.notna().to_numpy()
        if home is self.optics:
            values, bad = values[self.optics_row], bad[self.optics_row]
            column = column.iloc[self.optics_row]
        self.problems.add(
            bad, lambda row: f"{label} is {column.iloc[row]!r}, not a number", "Repair that value."
        )
        return values

    def text(self, label: str) -> pd.Series:
        """The column of the particles as text."""
        return self.particles[label].astype(str)


def read_star(path: Path, *, permissive: bool, ctf: bool) -> tuple[RawParticles, RowProblems]:
    """Read the metadata of a STAR file of particles.

    Parameters
    ----------
    path : Path
        The file.
    permissive : bool
        Whether bad rows are dropped instead of raising.
    ctf : bool
        Whether CTF parameters are wanted.

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
    block, particles, optics = find_particles(read_star_blocks(path), path)
    refuse_misspelt(path, particles, optics)
    if seems_cut_off(path):
        notify(
            "last-line-open",
            f"{path}: the last line has no end and is shorter than all others, as if the file had been cut "
            "off in the midst of a value. Compare its length with the original's, or end it with a line "
            "break if it is whole.",
            stacklevel=4,
        )
    problems = RowProblems(path, len(particles), permissive=permissive)
    problems.name_row = lambda row: _name_row(path, block, row)
    table = _Table(path, block, particles, optics, problems)
    optics_group = _optics_groups(table)
    names, code, frame = _image_names(table)
    raw = RawParticles(
        path=path,
        metadata=particles,
        optics=optics,
        file_names=names,
        file_code=code,
        frame=frame,
        optics_group=optics_group,
        noise_group=_noise_groups(table, code),
        pixel_size=_pixel_sizes(table),
        box=table.numbers("rlnImageSize"),
        ctf=_ctf(table) if ctf else None,
    )
    _check_classes(table)
    raw.angle_rad, raw.shift, raw.shift_unit_is_pixel = _poses(table)
    raw.mirrored = None if raw.angle_rad is None else _mirrors(table)
    return raw, problems


def _name_row(path: Path, block: str, row: int) -> str:
    line = line_of_row(path, block, row)
    return f"particle {row + 1}" + (f" (line {line})" if line is not None else "")


def _optics_groups(table: _Table) -> np.ndarray:
    """Optics group of each particle by its number in the file; sets `optics_row` of the table."""
    particles, optics = table.particles, table.optics
    numbers = np.ones(1, dtype=np.int64) if optics is None else _optics_numbers(optics, table.path)
    if "rlnOpticsGroup" in particles.columns:
        values = pd.to_numeric(particles["rlnOpticsGroup"], errors="coerce").to_numpy(dtype=np.float64)
        bad = ~(np.abs(values) < _TOO_LARGE) | (values != np.floor(values))
        table.problems.add(bad, "rlnOpticsGroup is missing or not a number", "Repair that value.")
        group = np.where(bad, 0, values).astype(np.int64)
    elif len(numbers) > 1:
        raise ParticleDataError(
            f"{table.path}, block data_{table.block}: no column rlnOpticsGroup, and data_optics has groups "
            f"{numbers.tolist()}, so nobody can say whose voltage and pixel size hold for a particle. "
            "Add the column, or keep the one row of data_optics that holds for all."
        )
    else:
        group = np.full(len(particles), numbers[0])
    if optics is None:
        return group
    order = np.argsort(numbers)
    place = np.minimum(np.searchsorted(numbers[order], group), len(numbers) - 1)
    table.optics_row = order[place]
    table.problems.add(
        numbers[table.optics_row] != group,
        lambda row: f"optics group {group[row]} is not in block data_optics, which has {numbers.tolist()}",
        "Add its row to data_optics, or correct rlnOpticsGroup.",
    )
    return group


def _optics_numbers(optics: pd.DataFrame, path: Path) -> np.ndarray:
    """Number of each row of the optics table."""
    if "rlnOpticsGroup" not in optics.columns:
        numbers = pd.Series(np.arange(1.0, len(optics) + 1.0))
    else:
        numbers = pd.to_numeric(optics["rlnOpticsGroup"], errors="coerce")
    whole = (numbers.abs() < _TOO_LARGE) & (numbers == np.floor(numbers))
    if len(numbers) == 0 or numbers.duplicated().any() or not whole.all():
        found = numbers.tolist() if not whole.all() else numbers.astype(np.int64).tolist()
        raise ParticleDataError(
            f"{path}, block data_optics: optics groups {found}, expected whole numbers, at least one, each "
            "once. Give every optics group one row with its own rlnOpticsGroup."
        )
    return numbers.to_numpy(dtype=np.int64)


def _image_names(table: _Table) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Distinct files, file of each particle, and place in that file from 0; of ``000001@stack.mrcs``."""
    names = table.particles["rlnImageName"]
    missing = (names.isna() | (names.astype(str) == "")).to_numpy()
    table.problems.add(missing, "rlnImageName is missing", "Repair that row; it may be cut off.")
    parts = [split_image_name(name) for name in table.text("rlnImageName").tolist()]
    number = ["1" if number is None else number for number, _ in parts]  # without one it is a single image
    file = np.array([file for _, file in parts], dtype=object)
    frame = pd.to_numeric(pd.Series(number, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    bad = ~((frame >= 1) & (frame == np.floor(frame)) & (frame < _TOO_LARGE))
    table.problems.add(
        bad,
        lambda row: (
            f"rlnImageName is {table.particles['rlnImageName'].iloc[row]!r}, expected number@file, from 1"
        ),
        "Correct the name.",
    )
    code, names = pd.factorize(file)
    return names.tolist(), code, np.where(bad, 1, frame).astype(np.int64) - 1


def _noise_groups(table: _Table, file_code: np.ndarray) -> np.ndarray:
    """Micrograph of each particle as a number; RELION's group, or the image file, where it is not named."""
    for label in ("rlnMicrographName", "rlnGroupName", "rlnGroupNumber"):
        if label in table.particles.columns:
            return pd.factorize(table.text(label))[0]
    return file_code


def _pixel_sizes(table: _Table) -> np.ndarray | None:
    """Angstrom per pixel of each particle; None if the file does not say."""
    for label in ("rlnImagePixelSize", "rlnPixelSize"):
        if table.has(label):
            return table.numbers(label)
    if table.has("rlnDetectorPixelSize") and table.has("rlnMagnification"):  # RELION 1.x to 3.0
        detector_um, magnification = table.numbers("rlnDetectorPixelSize"), table.numbers("rlnMagnification")
        return detector_um * 1e4 / np.where(magnification > 0, magnification, np.nan)
    return None


def _ctf(table: _Table) -> dict[str, np.ndarray]:
    missing = [label for label, _, default in RELION_CTF.values() if default is None and not table.has(label)]
    if missing:
        of_microscope = not any(label.startswith("rlnDefocus") for label in missing)
        where = "" if table.optics is None else ", nor in data_optics"
        remedy = "Add it to data_optics or to the particles" if of_microscope else "Estimate the CTF first"
        raise ParticleDataError(
            f"{table.path}, block data_{table.block}: no column {', '.join(missing)}{where}. {remedy}, or "
            "read with ctf=False to take the CTF as 1."
        )
    _warn_of_poor_fits(table)
    ctf = {}
    for name, (label, unit, default) in RELION_CTF.items():
        values = table.numbers(label)
        ctf[name] = np.full(len(table.particles), default) if values is None else values * unit
    return ctf


def _warn_of_poor_fits(table: _Table) -> None:
    labels = ("rlnCtfFigureOfMerit", "rlnCtfMaxResolution")
    if not all(label in table.particles.columns for label in labels):
        return
    # nothing else is read from them, so values that are no numbers do no harm
    numbers = [pd.to_numeric(table.particles[label], errors="coerce").dropna() for label in labels]
    merit, resolution = (float(some.median()) if len(some) else np.nan for some in numbers)
    if merit < _POOR_FIGURE_OF_MERIT and resolution > _POOR_RESOLUTION_ANGSTROM:
        notify(
            "ctf-fit-poor",
            f"{table.path}: the CTF fits look poor (median figure of merit {merit:.3f}, fitted to "
            f"{resolution:.1f} A). A wrong defocus blurs every class average: estimate the CTF "
            "again, or read with ctf=False.",
            stacklevel=4,
        )


def _poses(table: _Table) -> tuple[np.ndarray | None, np.ndarray | None, bool]:
    """In-plane angle (n,) and shift (n, 2) if the file has both, and whether the shift is in pixels."""
    has_angle = "rlnAnglePsi" in table.particles.columns
    for x, y, in_pixels in [
        ("rlnOriginXAngst", "rlnOriginYAngst", False),
        ("rlnOriginX", "rlnOriginY", True),
    ]:
        there = [label for label in (x, y) if label in table.particles.columns]
        if len(there) == 1:
            raise ParticleDataError(
                f"{table.path}, block data_{table.block}: {there[0]} is there, but of {x} and {y} the other "
                "is not. Add it, or remove both to read the particles without poses."
            )
        if there and not has_angle:
            _warn_of_shifts(table, x, y)
            return None, None, False
        if there:
            angle = table.numbers("rlnAnglePsi") * RADIANS_PER_DEGREE  # (n,)
            shift = np.column_stack([table.numbers(x), table.numbers(y)])  # (n, 2)
            bad = ~(np.isfinite(angle) & np.isfinite(shift).all(axis=1))
            table.problems.add(bad, f"rlnAnglePsi, {x} or {y} is missing (NaN)", "Repair or drop the row.")
            return angle, shift, in_pixels
    return None, None, False


def _warn_of_shifts(table: _Table, x: str, y: str) -> None:
    """Say that shifts without angles are no poses, unless there are none."""
    if any(np.any(table.numbers(label)) for label in (x, y)):
        notify(
            "shifts-without-angles",
            f"{table.path}: {x} and {y} are there, but no rlnAnglePsi, so the particles have no poses and "
            "their shifts are not used. Add it if it was lost.",
            stacklevel=4,
        )


def _check_classes(table: _Table) -> None:
    """Report class numbers that are no whole numbers; those below 1, and NaN, stand for no class."""
    values = table.numbers("rlnClassNumber")
    if values is not None:
        odd = (np.abs(values) >= _TOO_LARGE) | (values != np.floor(values)) & ~np.isnan(values)
        table.problems.add(
            odd,
            lambda row: f"rlnClassNumber is {values[row]:g}, expected a whole number, 0 for no class",
            "Repair that value, or remove the column.",
        )


def _mirrors(table: _Table) -> np.ndarray | None:
    """Which images are mirrored (n,); None if the file does not say.

    RELION says only that such an image should be mirrored, not about which axis, nor whether before or after
    its turn: taken as in `Poses`.
    """
    if "rlnIsFlip" not in table.particles.columns:
        return None
    flags = table.numbers("rlnIsFlip")  # (n,)
    table.problems.add(~np.isin(flags, (0, 1)), "rlnIsFlip is neither 0 nor 1", "Repair that value.")
    return flags == 1
