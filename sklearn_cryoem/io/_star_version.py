"""The two styles of STAR files: one table (RELION 1.x to 3.0), or optics groups and particles (3.1 to 5)."""

from __future__ import annotations

import numpy as np
import pandas as pd

from sklearn_cryoem._core.exceptions import ParticleDataError

STAR_VERSIONS = ("3.0", "3.1")
MAGNIFICATION = 10_000.0  # with it the detector's pixel size in um is the image's in Angstrom

_OF_OPTICS = (
    "rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast", "rlnBeamTiltX", "rlnBeamTiltY",
    "rlnBeamTiltClass", "rlnCtfDataArePhaseFlipped", "rlnCtfDataAreCtfPremultiplied",
)  # fmt: skip
_IMPLIED = ("rlnOpticsGroup", "rlnOpticsGroupName", "rlnImageSize", "rlnImageDimensionality")
_SHIFTS = {"rlnOriginX": "rlnOriginXAngst", "rlnOriginY": "rlnOriginYAngst"}
_DECIMALS = 6


def to_one_table(
    particles: pd.DataFrame, optics: pd.DataFrame, pixel_size: float | None
) -> tuple[pd.DataFrame, list[str]]:
    """Bring optics groups and particles to the one table of RELION 3.0.

    Parameters
    ----------
    particles, optics : DataFrame
        Tables of RELION 3.1, every particle with the ``rlnOpticsGroup`` of a row of `optics`.
    pixel_size : float or None
        Angstrom per pixel of the images as they lie in their files.

    Returns
    -------
    particles : DataFrame
        One table; shifts in pixels.
    lost : list of str
        Columns of `optics` that hold something RELION 3.0 has no column for.
    """
    numbers = (
        optics["rlnOpticsGroup"] if "rlnOpticsGroup" in optics.columns else np.arange(1, len(optics) + 1)
    )
    place = pd.Index(numbers).get_indexer(particles["rlnOpticsGroup"])  # (n_images,)
    table = particles.drop(columns=["rlnOpticsGroup"])
    lost = []
    for name in optics.columns:
        if name in _OF_OPTICS:
            table[name] = optics[name].to_numpy()[place]
        elif name not in (*_IMPLIED, "rlnImagePixelSize") and holds_something(optics[name]):
            lost.append(str(name))
    if len(optics) > 1:
        if "rlnBeamTiltClass" in table.columns:
            lost.append("rlnOpticsGroup")
        else:  # how RELION 3.0 told groups of optics apart
            table["rlnBeamTiltClass"] = place + 1
    if pixel_size is not None:
        table["rlnMagnification"] = MAGNIFICATION
        table["rlnDetectorPixelSize"] = round(pixel_size * MAGNIFICATION / 1e4, _DECIMALS)
    for in_pixels, in_angstrom in _SHIFTS.items():
        if in_angstrom in table.columns:
            if pixel_size is None:
                raise ParticleDataError(
                    "Shifts in Angstrom cannot be written in pixels, as RELION 3.0 has them: the pixel size "
                    "is not known. Read the particles with pixel_size=."
                )
            table = _renamed(table, in_angstrom, in_pixels, 1.0 / pixel_size)
    return table, lost


def to_optics_groups(
    particles: pd.DataFrame, pixel_size: float | None, box: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part the one table of RELION 3.0 into particles and optics groups.

    Parameters
    ----------
    particles : DataFrame
        The table.
    pixel_size : float or None
        Angstrom per pixel of the images as they lie in their files.
    box : int
        Their side in pixels, 0 if unknown.

    Returns
    -------
    particles, optics : DataFrame
        A group for each setting of the microscope; shifts in Angstrom.

    Raises
    ------
    ParticleDataError
        If the pixel size is not known: RELION 3.1 states shifts in Angstrom.
    """
    if pixel_size is None:
        raise ParticleDataError(
            "RELION 3.1 states pixel size and shifts in Angstrom, and the pixel size is not known. "
            "Read the particles with pixel_size=."
        )
    there = [name for name in _OF_OPTICS if name in particles.columns]
    if there:
        settings = particles[there].drop_duplicates().reset_index(drop=True)
        number = (
            pd.MultiIndex.from_frame(settings).get_indexer(pd.MultiIndex.from_frame(particles[there])) + 1
        )
    else:
        settings, number = pd.DataFrame(index=[0]), np.ones(len(particles), dtype=np.int64)
    groups = np.arange(1, len(settings) + 1)
    optics = pd.DataFrame(
        {"rlnOpticsGroup": groups, "rlnOpticsGroupName": [f"opticsGroup{i}" for i in groups]}
    )
    for name in there:
        if name != "rlnBeamTiltClass":
            optics[name] = settings[name].to_numpy()
    optics["rlnImagePixelSize"] = round(pixel_size, _DECIMALS)
    if box:
        optics["rlnImageSize"] = box
    optics["rlnImageDimensionality"] = 2
    stale = ("rlnMagnification", "rlnDetectorPixelSize", "rlnPixelSize", "rlnImagePixelSize", *there)
    table = particles.drop(columns=[name for name in stale if name in particles.columns])
    table["rlnOpticsGroup"] = number
    for in_pixels, in_angstrom in _SHIFTS.items():
        if in_pixels in table.columns:
            table = _renamed(table, in_pixels, in_angstrom, pixel_size)
    return table, optics


def holds_something(column: pd.Series) -> bool:
    """Whether a column is worth a word when it is left out: not if it is nothing but zeros."""
    values = column.to_numpy()
    return values.dtype.kind not in "fiub" or bool(np.any(values != 0))


def _renamed(table: pd.DataFrame, old: str, new: str, factor: float) -> pd.DataFrame:
    """The table with a column of another name and unit in the old one's place."""
    if new in table.columns:  # both units were there
        return table.drop(columns=[old])
    values = pd.to_numeric(table[old]).to_numpy(dtype=np.float64) * factor
    renamed = table.rename(columns={old: new})
    renamed[new] = np.round(values, _DECIMALS)
    return renamed
