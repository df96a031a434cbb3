"""RELION STAR files of particles, versions 1.x to 5, in the library's units."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_cryoem._core.validation import ParticleDataError, notify
from sklearn_cryoem.io.checks import refuse_misspelt_labels
from sklearn_cryoem.io.image_files import split_image_name
from sklearn_cryoem.io.records import RADIANS_PER_DEGREE, RELION_CTF, RawParticles, RowProblems
from sklearn_cryoem.io.star_file import name_of_line, read_star_file, warn_if_cut_off

# Which block or column gives a file away, what it is, and what to do instead. The first match counts.
_OTHER_FILES = [
    ("movies", "rlnMicrographMovieName", "a list of movies", "Extract particles from their averages first"),
    ("micrographs", "rlnMicrographName", "a list of micrographs", "Extract particles from them first"),
    ("optimiser_general", "rlnOptimiserIterationNr", "an optimiser file", "Read the *_data.star it names"),
    ("sampling_general", "rlnIs3DSampling", "a sampling file", "Read the *_data.star of the same run"),
    ("model_general", "rlnReferenceDimensionality", "a model file", "Read the *_data.star of the same run"),
    ("pipeline_general", "rlnPipeLineJobCounter", "a project's pipeline", "Read the particles.star of a job"),
    ("fsc", "rlnFourierShellCorrelation", "a post-processing result", "Read the particles that made the map"),
    ("coordinates", "rlnCoordinateX", "a list of coordinates", "Extract particles at these places first"),
]
_MAX_NUMBER = 2**31  # of images, groups or classes
_POOR_FIGURE_OF_MERIT = 0.05
_POOR_RESOLUTION_ANGSTROM = 8.0


@dataclass
class _Tables:
    """The particles and optics tables of one file, asked by label."""

    where: str  # file and block, for messages
    particles: pd.DataFrame
    optics: pd.DataFrame | None
    problems: RowProblems
    optics_row: np.ndarray | None = None  # (n,) row of `optics` for each particle

    def numbers(self, label: str, *, of_optics: bool = True) -> np.ndarray | None:
        """The column as float64 (n,), with the optics table spread over particles; None if absent.

        Where both tables have it, that of the optics is taken if it is `of_optics`.
        """
        in_optics = self.optics is not None and label in self.optics
        if in_optics and (of_optics or label not in self.particles):
            column = self.optics[label].iloc[self.optics_row]
        elif label in self.particles:
            column = self.particles[label]
        else:
            return None
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)
        self.problems.add(
            np.isnan(values) & column.notna().to_numpy(),
            lambda row: f"{label} is {column.iloc[row]!r}, not a number",
            "Repair that value.",
        )
        return values


def read_star(path: Path, *, permissive: bool, ctf: bool) -> tuple[RawParticles, RowProblems]:
    """Read the metadata of a STAR file of particles, and report the rows that cannot be used.

    Raises ParticleDataError if the file does not hold particles, or lacks what is needed.
    """
    block, particles, optics = _find_particles(read_star_file(path), path)
    refuse_misspelt_labels(path, particles, optics)
    warn_if_cut_off(path)
    problems = RowProblems(path, len(particles), permissive=permissive)
    problems.name_row = lambda row: f"particle {row + 1}{name_of_line(path, block, row)}"
    tables = _Tables(f"{path}, block data_{block}", particles, optics, problems)
    optics_group = _optics_groups(tables, path)
    names, code, frame = _image_names(tables)
    raw = RawParticles(
        path=path,
        metadata=particles,
        optics=optics,
        file_names=names,
        file_code=code,
        frame=frame,
        optics_group=optics_group,
        noise_group=_noise_groups(particles, code),
        pixel_size=_pixel_sizes(tables),
        box=tables.numbers("rlnImageSize"),
        ctf=_ctf(tables, path) if ctf else None,
    )
    _check_classes(tables)
    raw.angle_rad, raw.shift, raw.shift_unit_is_pixel = _poses(tables, path)
    if raw.angle_rad is not None and "rlnIsFlip" in particles:
        # RELION does not say about which axis, nor whether before or after the turn: taken as in `Poses`.
        flags = tables.numbers("rlnIsFlip")  # (n,)
        problems.add(~np.isin(flags, (0, 1)), "rlnIsFlip is neither 0 nor 1", "Repair that value.")
        raw.mirrored = flags == 1
    return raw, problems


def _find_particles(
    blocks: dict[str, pd.DataFrame], path: Path
) -> tuple[str, pd.DataFrame, pd.DataFrame | None]:
    """Name of the block of particles, its table, and the optics table if there is one."""
    candidates = [name for name, table in blocks.items() if "rlnImageName" in table]
    if not candidates:
        raise ParticleDataError(f"{path}: {_what_it_is(blocks)}")
    if len(candidates) > 1:
        listed = ", ".join(f"data_{name}" for name in candidates)
        raise ParticleDataError(
            f"{path}: several blocks hold particles ({listed}). Keep one of them, or read them "
            "from files of their own and join them with concatenate()."
        )
    name = candidates[0]
    if len(blocks[name]) == 0:
        raise ParticleDataError(
            f"{path}: block data_{name} holds no particle. Check the job that wrote it for an empty "
            "selection."
        )
    optics = blocks.get("optics")
    _refuse_tomograms(blocks[name], optics, blocks.get("general"), path)
    return name, blocks[name], optics


def _what_it_is(blocks: dict[str, pd.DataFrame]) -> str:
    columns = {str(column) for table in blocks.values() for column in table}
    for block, label, what, remedy in _OTHER_FILES:
        if block in blocks or any(column.startswith(label) for column in columns):
            own = "rlnExperimentalDataStarFile"
            named = [f" ({table[own].iloc[0]})" for table in blocks.values() if own in table and len(table)]
            return f"this is {what}, not particles: no column rlnImageName. {remedy}{''.join(named[:1])}."
    listed = ", ".join(f"data_{name}" for name in blocks)
    return (
        f"no particles in it: no block has the column rlnImageName (blocks: {listed}). "
        "Give the particles.star of an extraction, or the *_data.star of a classification."
    )


def _refuse_tomograms(
    particles: pd.DataFrame, optics: pd.DataFrame | None, general: pd.DataFrame | None, path: Path
) -> None:
    """Raise if a row is not one image: a sub-tomogram, or a stack with an image for each tilt."""

    def holds(table: pd.DataFrame | None, label: str, number: int) -> bool:
        column = pd.Series(dtype=float) if table is None or label not in table else table[label]
        return bool((pd.to_numeric(column, errors="coerce") == number).any())

    no_index = not particles["rlnImageName"].astype(str).str.contains("@", regex=False).any()
    label = "rlnImageDimensionality"
    stated = [table for table in (particles, optics) if table is not None and label in table]
    if stated:
        are_volumes = holds(stated[0], label, 3)
    else:
        has_z = not {"rlnCoordinateZ", "rlnOriginZAngst", "rlnOriginZ"}.isdisjoint(particles)
        are_volumes = no_index and has_z and "rlnCtfImage" in particles
    if are_volumes:
        raise ParticleDataError(
            f"{path}: these are sub-tomograms (3-D), not particle images. "
            "Project them, or use software for sub-tomogram averaging."
        )
    of_tomograms = any(str(label).startswith("rlnTomo") for label in particles)
    if holds(general, "rlnTomoSubTomosAre2DStacks", 1) or (of_tomograms and no_index):
        raise ParticleDataError(
            f"{path}: these are particles of tomograms: each row is the tilt series of one particle, a stack "
            "with an image for every tilt, as RELION 5 and Warp write them, and not one image. Use software "
            "for sub-tomogram averaging, or extract single images from untilted micrographs."
        )


def _optics_groups(tables: _Tables, path: Path) -> np.ndarray:
    """Optics group of each particle by its number in the file; sets `optics_row` of the tables."""
    particles, optics, problems = tables.particles, tables.optics, tables.problems
    numbers = np.ones(1, dtype=np.int64) if optics is None else _optics_numbers(optics, path)
    if "rlnOpticsGroup" in particles:
        values = pd.to_numeric(particles["rlnOpticsGroup"], errors="coerce").to_numpy(dtype=np.float64)
        whole = _are_whole(values)
        problems.add(~whole, "rlnOpticsGroup is missing or not a number", "Repair that value.")
        group = np.where(whole, values, 0).astype(np.int64)
    elif len(numbers) > 1:
        raise ParticleDataError(
            f"{tables.where}: no column rlnOpticsGroup, and data_optics has groups {numbers.tolist()}, so "
            "the voltage and pixel size of a particle are not known. Add the column, or keep the one row of "
            "data_optics that holds for all."
        )
    else:
        group = np.full(len(particles), numbers[0])
    if optics is None:
        return group
    place = pd.Index(numbers).get_indexer(group)  # (n,), -1 where there is none
    problems.add(
        place < 0,
        lambda row: f"optics group {group[row]} is not in block data_optics, which has {numbers.tolist()}",
        "Add its row to data_optics, or correct rlnOpticsGroup.",
    )
    tables.optics_row = place
    return group


def _optics_numbers(optics: pd.DataFrame, path: Path) -> np.ndarray:
    """Number of each row of the optics table."""
    numbers = pd.Series(np.arange(1.0, len(optics) + 1.0))
    if "rlnOpticsGroup" in optics:
        numbers = pd.to_numeric(optics["rlnOpticsGroup"], errors="coerce")
    whole = _are_whole(numbers.to_numpy(dtype=np.float64)).all()
    if len(numbers) == 0 or numbers.duplicated().any() or not whole:
        found = numbers.astype(np.int64).tolist() if whole else numbers.tolist()
        raise ParticleDataError(
            f"{path}, block data_optics: optics groups {found}, expected whole numbers, at least one, each "
            "once. Give every optics group one row with its own rlnOpticsGroup."
        )
    return numbers.to_numpy(dtype=np.int64)


def _are_whole(values: np.ndarray) -> np.ndarray:
    """Which values are whole numbers that a file may count by; NaN is not."""
    return (np.abs(values) < _MAX_NUMBER) & (values == np.floor(values))


def _image_names(tables: _Tables) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Distinct files, file of each particle, and place in that file from 0; of ``000001@stack.mrcs``."""
    names = tables.particles["rlnImageName"]
    missing = (names.isna() | (names.astype(str) == "")).to_numpy()
    tables.problems.add(missing, "rlnImageName is missing", "Repair that row; it may be cut off.")
    parts = [split_image_name(name) for name in names.astype(str).tolist()]
    number = ["1" if number is None else number for number, _ in parts]  # without one it is a single image
    frame = pd.to_numeric(pd.Series(number, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    sound = _are_whole(frame) & (frame >= 1)
    tables.problems.add(
        ~sound,
        lambda row: f"rlnImageName is {names.iloc[row]!r}, expected number@file, from 1",
        "Correct the name.",
    )
    code, files = pd.factorize(np.array([file for _, file in parts], dtype=object))
    return files.tolist(), code, np.where(sound, frame, 1).astype(np.int64) - 1


def _noise_groups(particles: pd.DataFrame, file_code: np.ndarray) -> np.ndarray:
    """Micrograph of each particle as a number; RELION's group, or the image file, where it is not named."""
    for label in ("rlnMicrographName", "rlnGroupName", "rlnGroupNumber"):
        if label in particles:
            return pd.factorize(particles[label].astype(str))[0]
    return file_code


def _pixel_sizes(tables: _Tables) -> np.ndarray | None:
    """Angstrom per pixel of each particle; None if the file does not say."""
    for label in ("rlnImagePixelSize", "rlnPixelSize"):
        if (sizes := tables.numbers(label)) is not None:
            return sizes
    detector_um, magnification = map(tables.numbers, ("rlnDetectorPixelSize", "rlnMagnification"))
    if detector_um is None or magnification is None:
        return None
    return detector_um * 1e4 / np.where(magnification > 0, magnification, np.nan)  # RELION 1.x to 3.0


def _ctf(tables: _Tables, path: Path) -> dict[str, np.ndarray]:
    # RELION takes sizes and what was done to the images from the optics table, and of the CTF itself what a
    # particle has of its own.
    columns = {
        name: tables.numbers(label, of_optics=name in ("phase_flipped", "premultiplied"))
        for name, (label, _, _) in RELION_CTF.items()
    }
    missing = [
        label for name, (label, _, default) in RELION_CTF.items() if columns[name] is None and default is None
    ]
    if missing:
        of_microscope = not any(label.startswith("rlnDefocus") for label in missing)
        nor = "" if tables.optics is None else ", nor in data_optics"
        remedy = "Add it to data_optics or to the particles" if of_microscope else "Estimate the CTF first"
        raise ParticleDataError(
            f"{tables.where}: no column {', '.join(missing)}{nor}. {remedy}, or read with ctf=False to take "
            "the CTF as 1."
        )
    _warn_of_poor_fits(tables.particles, path)
    return {
        name: np.full(len(tables.particles), default) if columns[name] is None else columns[name] * unit
        for name, (_, unit, default) in RELION_CTF.items()
    }


def _warn_of_poor_fits(particles: pd.DataFrame, path: Path) -> None:
    labels = ["rlnCtfFigureOfMerit", "rlnCtfMaxResolution"]
    if not particles.columns.isin(labels).sum() == len(labels):
        return
    # nothing else is read from them, so values that are no numbers do no harm
    merit, resolution = particles[labels].apply(pd.to_numeric, errors="coerce").median()
    if merit < _POOR_FIGURE_OF_MERIT and resolution > _POOR_RESOLUTION_ANGSTROM:
        notify(
            "ctf-fit-poor",
            f"{path}: the CTF fits look poor (median figure of merit {merit:.3f}, fitted to "
            f"{resolution:.1f} A). A wrong defocus blurs every class average: estimate the CTF "
            "again, or read with ctf=False.",
        )


def _poses(tables: _Tables, path: Path) -> tuple[np.ndarray | None, np.ndarray | None, bool]:
    """In-plane angle (n,) and shift (n, 2) if the file has both, and whether the shift is in pixels.

    Filaments have the direction of their tube, without shifts, until they are aligned.
    """
    prior = tables.numbers("rlnAnglePsiPrior") if "rlnAnglePsi" not in tables.particles else None
    for ending in ("Angst", ""):
        labels = [f"rlnOriginX{ending}", f"rlnOriginY{ending}"]
        there = [label for label in labels if label in tables.particles]
        if len(there) == 1:
            raise ParticleDataError(
                f"{tables.where}: {there[0]} is there, but of {' and '.join(labels)} the other is not. Add "
                "it, or remove both to read the particles without poses."
            )
        if not there:
            continue
        shift = np.column_stack([tables.numbers(label) for label in labels])  # (n, 2)
        angle = tables.numbers("rlnAnglePsi") if prior is None else prior
        if angle is None:
            if shift.any():
                notify(
                    "shifts-without-angles",
                    f"{path}: {' and '.join(labels)} are there, but no rlnAnglePsi, so the particles have no "
                    "poses and their shifts are not used. Add it if it was lost.",
                )
            return None, None, False
        return angle * RADIANS_PER_DEGREE, shift, ending == ""
    if prior is not None:
        return prior * RADIANS_PER_DEGREE, np.zeros((len(prior), 2)), False
    return None, None, False


def _check_classes(tables: _Tables) -> None:
    """Report class numbers that are no whole numbers; those below 1, and NaN, stand for no class."""
    values = tables.numbers("rlnClassNumber")
    if values is not None:
        tables.problems.add(
            ~(_are_whole(values) | np.isnan(values)),
            lambda row: f"rlnClassNumber is {values[row]:g}, expected a whole number, 0 for no class",
            "Repair that value, or remove the column.",
        )
