"""Parsing STAR files, and telling particles from the many other things RELION keeps in them."""

from __future__ import annotations

import linecache
from pathlib import Path

import pandas as pd

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.io._star_tables import read_tables

_LOOKED_AT = 2**16  # bytes from the end
Blocks = dict[str, pd.DataFrame | dict]

# Labels whose values are text even where they look like numbers: "0012" must not become 12.
TEXT_LABELS = [
    "rlnImageName", "rlnImageOriginalName", "rlnMicrographName", "rlnMicrographNameNoDW", "rlnGroupName",
    "rlnOpticsGroupName", "rlnMtfFileName", "rlnCtfImage", "rlnReconstructImageName", "rlnTomoName",
    "rlnTomoParticleName", "rlnMicrographMovieName", "rlnOriginalParticleName", "rlnParticleName",
]  # fmt: skip

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


def read_star_blocks(path: Path) -> Blocks:
    """Parse a STAR file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict
        Name of each block, without ``data_``: its table (a loop) or dict (single values).

    Raises
    ------
    ParticleDataError
        If the file is empty or not a sound STAR file.
    """
    if path.stat().st_size == 0:
        raise ParticleDataError(f"{path}: the file is empty. Write or copy it again.")
    try:
        blocks = read_tables(path, TEXT_LABELS)
    except ParticleDataError:
        raise
    except UnicodeDecodeError as error:
        raise ParticleDataError(
            f"{path}: not text in UTF-8 ({error.reason}). Save it as UTF-8, or write it again if it "
            "is damaged."
        ) from error
    except (ValueError, KeyError, TypeError, IndexError, pd.errors.ParserError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        raise ParticleDataError(
            f"{path}: cannot be parsed as STAR ({reason}). Look for a row with too few or too many values, "
            "or an open quote; a file that was cut off while being written must be written again."
        ) from error
    finally:
        linecache.clearcache()  # starfile reads through it, and leaves stale lines there when it fails
    blocks = {name: block for name, block in blocks.items() if block is not None}
    if not blocks:
        raise ParticleDataError(
            f"{path}: no data_ block in it, so it is not a STAR file (or not UTF-8 text). "
            "Give a particles.star, a .cs or a .mrcs file."
        )
    return blocks


def find_particles(blocks: Blocks, path: Path) -> tuple[str, pd.DataFrame, pd.DataFrame | None]:
    """Pick the particles and the optics table out of the blocks of a file.

    Returns
    -------
    name : str
        Name of the block of particles.
    particles : DataFrame
        One row per particle, with the column rlnImageName.
    optics : DataFrame or None
        One row per optics group.

    Raises
    ------
    ParticleDataError
        If the file holds something else; the message says what.
    """
    named = {name: _as_table(block) for name, block in blocks.items()}
    candidates = [name for name, table in named.items() if "rlnImageName" in table.columns]
    if not candidates:
        raise ParticleDataError(f"{path}: {_what_it_is(named)}")
    if len(candidates) > 1:
        listed = ", ".join(f"data_{name}" for name in candidates)
        raise ParticleDataError(
            f"{path}: several blocks hold particles ({listed}). Keep one of them, or read them "
            "from files of their own and join them with concatenate()."
        )
    name = candidates[0]
    particles, optics = named[name], named.get("optics")
    if len(particles) == 0:
        raise ParticleDataError(
            f"{path}: block data_{name} holds no particle. Check the job that wrote it for an empty "
            "selection."
        )
    _refuse_tomograms(particles, optics, blocks.get("general"), path)
    return name, particles, optics


def _as_table(block: pd.DataFrame | dict) -> pd.DataFrame:
    return block if isinstance(block, pd.DataFrame) else pd.DataFrame([block])


def _refuse_tomograms(
    particles: pd.DataFrame, optics: pd.DataFrame | None, general: pd.DataFrame | dict | None, path: Path
) -> None:
    """Raise if a row is not one image: a sub-tomogram, or a stack with an image for each tilt."""
    no_index = not particles["rlnImageName"].astype(str).str.contains("@", regex=False).any()
    of_tomograms = any(str(label).startswith("rlnTomo") for label in particles.columns)
    stacks = None if general is None else _as_table(general).get("rlnTomoSubTomosAre2DStacks")
    are_stacks = stacks is not None and bool((pd.to_numeric(stacks, errors="coerce") == 1).any())
    dimensions = [
        table["rlnImageDimensionality"]
        for table in (particles, optics)
        if table is not None and "rlnImageDimensionality" in table.columns
    ]
    if dimensions:
        are_volumes = bool((pd.to_numeric(dimensions[0], errors="coerce") == 3).any())
    else:
        in_three = {"rlnCoordinateZ", "rlnOriginZAngst", "rlnOriginZ"} & set(particles.columns)
        are_volumes = no_index and bool(in_three) and "rlnCtfImage" in particles.columns
    if are_volumes:
        raise ParticleDataError(
            f"{path}: these are sub-tomograms (3-D), not particle images. "
            "Project them, or use software for sub-tomogram averaging."
        )
    if are_stacks or (of_tomograms and no_index):
        raise ParticleDataError(
            f"{path}: these are particles of tomograms: each row is the tilt series of one particle, a stack "
            "with an image for every tilt, as RELION 5 and Warp write them, and not one image. Use software "
            "for sub-tomogram averaging, or extract single images from untilted micrographs."
        )


def _what_it_is(named: dict[str, pd.DataFrame]) -> str:
    columns = {column for table in named.values() for column in table.columns}
    for block, label, what, remedy in _OTHER_FILES:
        if block in named or any(column.startswith(label) for column in columns):
            own = "rlnExperimentalDataStarFile"
            named_file = next(
                (str(table[own].iloc[0]) for table in named.values() if own in table.columns), ""
            )
            hint = f" ({named_file})" if named_file else ""
            return f"this is {what}, not particles: no column rlnImageName. {remedy}{hint}."
    listed = ", ".join(f"data_{name}" for name in named)
    return (
        f"no particles in it: no block has the column rlnImageName (blocks: {listed}). "
        "Give the particles.star of an extraction, or the *_data.star of a classification."
    )


def seems_cut_off(path: Path) -> bool:
    """Whether the last row has no line end, which alone is common, and is shorter than those before it."""
    with open(path, "rb") as stream:
        stream.seek(max(path.stat().st_size - _LOOKED_AT, 0))
        *others, last = stream.read().splitlines(keepends=True)
    if last.endswith((b"\n", b"\r")):
        return False
    lengths = [len(line.rstrip()) for line in others if len(line.split()) == len(last.split())]
    return bool(lengths) and len(last) < min(lengths)


def line_of_row(path: Path, block: str, row: int) -> int | None:
    """Line (from 1) on which a row (from 0) of a loop stands; None if it cannot be told."""
    in_block, in_loop, seen = False, False, -1
    with open(path, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            text = line.strip()
            if text.startswith("data_"):
                in_block, in_loop = text[5:] == block, False
            elif in_block and text.startswith("loop_"):
                in_loop = True
            elif in_block and in_loop and text and text[0] not in "_#":
                seen += 1
                if seen == row:
                    return number
    return None
