"""A stack as RELION's tables: the columns that came in, with poses and images brought up to date.

There are two styles: one table (RELION 1.x to 3.0), or optics groups and particles (3.1 to 5).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.io.cryosparc import relion_columns
from sklearn_cryoem.io.image_files import SIGN, sign_of_images
from sklearn_cryoem.io.records import RELION_CTF, holds_something, same_angles
from sklearn_cryoem.particles import CTFTable, ParticleStack
from sklearn_cryoem.particles.frames import file_boxes, pixel_growth
from sklearn_cryoem.particles.preprocess import raw_source

STAR_VERSIONS = ("3.0", "3.1")
_MAGNIFICATION = 10_000.0  # with it the detector's pixel size in um is the image's in Angstrom
_DECIMALS = 6  # RELION's own
_SHIFTS = {"rlnOriginX": "rlnOriginXAngst", "rlnOriginY": "rlnOriginYAngst"}
_IN_OPTICS = ("voltage_volts", "cs_angstrom", "amplitude_contrast", "phase_flipped", "premultiplied")
_OF_OPTICS = (
    *(RELION_CTF[name][0] for name in _IN_OPTICS), "rlnBeamTiltX", "rlnBeamTiltY", "rlnBeamTiltClass",
)  # fmt: skip
_IMPLIED = ("rlnOpticsGroup", "rlnOpticsGroupName", "rlnImageSize", "rlnImageDimensionality")


def relion_tables(
    stack: ParticleStack, image_names: list[str], *, new_images: bool, version: str | None = None
) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """Make RELION's tables of a stack.

    Parameters
    ----------
    stack : ParticleStack
        The particles.
    image_names : list of str
        Name of each image.
    new_images : bool
        Whether the images are written anew, as they are read, so that box and pixel size are the stack's.
    version : {"3.0", "3.1"} or None
        Style wanted; by default the one that came in, 3.1 for particles from elsewhere.

    Returns
    -------
    blocks : dict of str to DataFrame
        Tables by the name of their block, the particles last. Every RELION column that came in is there in
        its order with the same numbers; columns whose value has changed are overwritten, new ones stand at
        the end.
    lost : list of str
        Columns that have no place in it.
    """
    if version is not None and version not in STAR_VERSIONS:
        raise ValueError(f"star_version is {version!r}, expected one of {', '.join(STAR_VERSIONS)}, or None.")
    came_from_relion = "rlnImageName" in stack.metadata
    table, lost = (stack.metadata, []) if came_from_relion else relion_columns(stack)
    if new_images and came_from_relion and "rlnImageOriginalName" not in table:
        table["rlnImageOriginalName"] = table["rlnImageName"]
    table["rlnImageName"] = image_names
    if new_images and SIGN in table:
        table[SIGN] = sign_of_images(stack, as_read=True)
    optics = stack.optics
    old_style = came_from_relion and optics is None and "rlnOpticsGroup" not in table
    if optics is None and not old_style:
        optics = _new_optics(stack, table)
    if new_images:
        _set_image_size(stack, table, optics)
    if stack.ctf is not None:
        optics = _set_ctf(table, optics, stack.ctf)
    if stack.poses is not None:
        if (
            came_from_relion and stack.poses.view_rad is None
        ):  # those of cryoSPARC were taken over with their psi, or not at all
            table, lost = _without_stale_views(table, stack)
        _set_poses(table, stack, old_style=old_style, new_images=new_images)
    if version is not None and (version == "3.0") == (optics is not None):  # the other style is wanted
        box, pixel_size = (stack.box, stack.pixel_size) if new_images else raw_geometry(stack)
        if optics is None:
            table, optics = _to_optics_groups(table, pixel_size, box)
        else:
            table, dropped = _to_one_table(table, optics, pixel_size)
            optics, lost = None, lost + dropped
    return ({"": table} if optics is None else {"optics": optics, "particles": table}), lost


def raw_geometry(stack: ParticleStack) -> tuple[int, float | None]:
    """Box and pixel size of the images where they lie, before lazy down-sampling.

    Raises ParticleDataError if images of several pixel sizes were brought to one.
    """
    growth = pixel_growth(stack.images)
    if (growth != growth[:1]).any():
        raise ParticleDataError(
            "These images have several pixel sizes where they lie, and were rescaled to one: this format "
            "would have to give one for all. Write the format that came in, or new images (a .mrcs file)."
        )
    return raw_source(stack.images).box, None if stack.pixel_size is None else stack.pixel_size / growth.max(
        initial=1.0
    )


def _set_column(table: pd.DataFrame, name: str, values: np.ndarray, *, period: float | None = None) -> None:
    """Set a column, unless it holds the same numbers already: then what came in stays to the last digit."""
    if name not in table or not _are_same(values, _numbers(table[name]), period):
        table[name] = np.round(np.asarray(values, dtype=np.float64), _DECIMALS)


def _numbers(column: pd.Series) -> np.ndarray:
    return pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64)


def _are_same(values: np.ndarray, old: np.ndarray, period: float | None = None) -> bool:
    """Whether numbers agree to the digits that are written."""
    difference = np.asarray(values, dtype=np.float64) - old
    if period is not None:
        difference -= period * np.rint(difference / period)
    return bool((np.abs(difference) <= 0.51 * 10.0**-_DECIMALS).all())


def _new_optics(stack: ParticleStack, table: pd.DataFrame) -> pd.DataFrame:
    """Make an optics group for each group, setting and size of the stack; number the particles by it."""
    settings = {} if stack.ctf is None else {name: getattr(stack.ctf, name) for name in _IN_OPTICS}
    sizes = 1.0 / pixel_growth(stack.images)  # relative to that of the stack
    keys = [stack.optics_group, *settings.values(), file_boxes(stack.images), sizes]
    combined = np.column_stack(keys)  # (n_images, n_keys)
    distinct, number = np.unique(combined, axis=0, return_inverse=True)
    table["rlnOpticsGroup"] = number.reshape(-1) + 1
    optics = _numbered_optics(len(distinct))
    for name, values in zip(settings, distinct[:, 1:-2].T, strict=True):
        label, unit, default = RELION_CTF[name]
        if default is None or (values != default).any():
            optics[label] = (values / unit).round(_DECIMALS)
    size = None if stack.pixel_size is None else stack.pixel_size * distinct[:, -1]
    _set_geometry(optics, distinct[:, -2].astype(int), size)
    paths = stack.metadata.get("location/micrograph_path", pd.Series([""])).astype(str)
    if paths.ne("").all():
        table["rlnMicrographName"] = paths.str.removeprefix(">").to_numpy()
    elif not {"rlnMicrographName", "rlnGroupName"} & set(table):
        # RELION forms its groups of noise by this label, and by micrographs only where it is missing.
        table["rlnGroupName"] = [f"group_{group:06d}" for group in stack.noise_group]
    return optics


def _numbered_optics(n_groups: int) -> pd.DataFrame:
    numbers = np.arange(1, n_groups + 1)
    names = [f"opticsGroup{number}" for number in numbers]
    return pd.DataFrame({"rlnOpticsGroup": numbers, "rlnOpticsGroupName": names})


def _set_geometry(optics: pd.DataFrame, box: int | np.ndarray, size: float | np.ndarray | None) -> None:
    if size is not None:
        optics["rlnImagePixelSize"] = np.round(size, _DECIMALS)
    if np.all(box):
        optics["rlnImageSize"] = box
    optics["rlnImageDimensionality"] = 2


def _set_image_size(stack: ParticleStack, table: pd.DataFrame, optics: pd.DataFrame | None) -> None:
    """State the box and pixel size of newly written images."""
    if optics is not None:
        _set_geometry(optics, stack.box, stack.pixel_size)
        return
    if "rlnImageSize" in table:
        table["rlnImageSize"] = stack.box
    if stack.pixel_size is not None and "rlnMagnification" in table:
        table["rlnDetectorPixelSize"] = stack.pixel_size * pd.to_numeric(table["rlnMagnification"]) / 1e4
    elif stack.pixel_size is not None:
        table["rlnPixelSize"] = stack.pixel_size


def _set_ctf(table: pd.DataFrame, optics: pd.DataFrame | None, ctf: CTFTable) -> pd.DataFrame | None:
    """Bring the columns of the CTF up to date where they are; return the optics table."""
    for name, (label, unit, default) in RELION_CTF.items():
        values = getattr(ctf, name) / unit
        is_new = label not in table and (optics is None or label not in optics)
        if is_new and default is not None and (values == default).all():
            continue
        if is_new and optics is not None and name in _IN_OPTICS:
            optics = optics.assign(**{label: default})
        if optics is not None and label in optics:
            optics = _set_optics_column(table, optics, label, values, is_setting=name in _IN_OPTICS)
        else:
            _set_column(table, label, values, period=180.0 if name == "astigmatism_angle_rad" else None)
    return optics


def _set_optics_column(
    table: pd.DataFrame, optics: pd.DataFrame, label: str, values: np.ndarray, *, is_setting: bool
) -> pd.DataFrame:
    """Set a column of the optics table from the values of the particles; return that table.

    Where the particles of a group differ, groups are parted by a setting of the microscope, of which RELION
    wants voltage and Cs in this table; another column moves to the particles.
    """
    row = _optics_rows(table, optics)  # (n_images,)
    new = _numbers(optics[label]).copy()  # (n_groups,)
    if _are_same(values, new[row]):
        return optics
    values = np.round(values, _DECIMALS)
    if label in table or not is_setting:
        table[label] = values  # RELION takes the value of the particle where there are both
    new[row] = values
    if _are_same(values, new[row]):
        return optics.assign(**{label: new})
    if not is_setting:
        return optics.drop(columns=label)
    distinct, number = np.unique(np.column_stack([row, values]), axis=0, return_inverse=True)
    table["rlnOpticsGroup"] = number.reshape(-1) + 1
    parted = optics.iloc[distinct[:, 0].astype(np.int64)].reset_index(drop=True)
    return parted.assign(**{label: distinct[:, 1]} | dict(_numbered_optics(len(distinct))))


def _optics_rows(table: pd.DataFrame, optics: pd.DataFrame) -> np.ndarray:
    """Row of the optics table for each particle; (n_images,)."""
    if "rlnOpticsGroup" not in table:  # there is one group alone
        return np.zeros(len(table), dtype=np.int64)
    numbers = optics.get("rlnOpticsGroup", pd.Series(np.arange(1, len(optics) + 1)))
    return pd.Index(numbers).get_indexer(table["rlnOpticsGroup"])


def _without_stale_views(table: pd.DataFrame, stack: ParticleStack) -> tuple[pd.DataFrame, list[str]]:
    """Leave out view directions found with another psi than is written, and say so if they hold something."""
    views = [name for name in ("rlnAngleRot", "rlnAngleTilt") if name in table]
    psi = pd.to_numeric(table.get("rlnAnglePsi", pd.Series(np.nan, table.index)), errors="coerce")
    if not views or same_angles(np.deg2rad(psi.to_numpy(dtype=np.float64)), stack.poses.angle_rad):
        return table, []
    held = ", ".join(name for name in views if holds_something(table[name]))
    said = [f"{held} (of another alignment than the rlnAnglePsi that is written)"] if held else []
    return table.drop(columns=views), said


def _set_poses(table: pd.DataFrame, stack: ParticleStack, *, old_style: bool, new_images: bool) -> None:
    psi = np.rad2deg(stack.poses.angle_rad)
    _set_column(table, "rlnAnglePsi", (psi + 180.0) % 360.0 - 180.0, period=360.0)
    if stack.poses.view_rad is not None:
        rot, tilt = np.rad2deg(stack.poses.view_rad).T
        _set_column(table, "rlnAngleRot", (rot + 180.0) % 360.0 - 180.0, period=360.0)
        _set_column(table, "rlnAngleTilt", tilt)
    if stack.poses.mirrored.any() or "rlnIsFlip" in table:
        table["rlnIsFlip"] = stack.poses.mirrored.astype(np.int64)
    growth = 1.0 if new_images else pixel_growth(stack.images)[:, None]
    shift = stack.poses.shift  # (n_images, 2)
    is_angstrom = stack.pixel_size is not None
    has_angstrom = "rlnOriginXAngst" in table
    if is_angstrom and (has_angstrom or not old_style):
        _set_column(table, "rlnOriginXAngst", shift[:, 0])
        _set_column(table, "rlnOriginYAngst", shift[:, 1])
    if "rlnOriginX" in table or not is_angstrom or (old_style and not has_angstrom):
        in_pixels = shift * growth / (stack.pixel_size if is_angstrom else 1.0)
        _set_column(table, "rlnOriginX", in_pixels[:, 0])
        _set_column(table, "rlnOriginY", in_pixels[:, 1])


def _to_one_table(
    particles: pd.DataFrame, optics: pd.DataFrame, pixel_size: float | None
) -> tuple[pd.DataFrame, list[str]]:
    """Bring optics groups and particles to the one table of RELION 3.0; name the columns that are lost."""
    place = _optics_rows(particles, optics)  # (n_images,)
    table = particles.drop(columns=["rlnOpticsGroup"], errors="ignore")
    lost, carried = [], {*_OF_OPTICS, *(label for label, _, _ in RELION_CTF.values())}
    for name in optics:
        if name in carried:
            table[name] = optics[name].to_numpy()[place]
        elif name not in (*_IMPLIED, "rlnImagePixelSize") and holds_something(optics[name]):
            lost.append(str(name))
    if len(optics) > 1:
        if "rlnBeamTiltClass" in table:
            lost.append("rlnOpticsGroup")
        else:  # how RELION 3.0 told groups of optics apart
            table["rlnBeamTiltClass"] = place + 1
    if pixel_size is not None:
        table["rlnMagnification"] = _MAGNIFICATION
        table["rlnDetectorPixelSize"] = round(pixel_size * _MAGNIFICATION / 1e4, _DECIMALS)
    for in_pixels, in_angstrom in _SHIFTS.items():
        if in_angstrom in table:
            if pixel_size is None:
                raise ParticleDataError(
                    "Shifts in Angstrom cannot be written in pixels, as RELION 3.0 has them: the pixel size "
                    "is not known. Read the particles with pixel_size=."
                )
            table = _renamed(table, in_angstrom, in_pixels, 1.0 / pixel_size)
    return table, lost


def _to_optics_groups(
    particles: pd.DataFrame, pixel_size: float | None, box: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Part the one table of RELION 3.0 into particles and optics groups, one for each microscope setting."""
    if pixel_size is None:
        raise ParticleDataError(
            "RELION 3.1 states pixel size and shifts in Angstrom, and the pixel size is not known. "
            "Read the particles with pixel_size=."
        )
    there = [name for name in _OF_OPTICS if name in particles]
    settings = particles[there].drop_duplicates().reset_index(drop=True)
    number = np.zeros(len(particles), dtype=np.int64)
    if there:
        number = pd.MultiIndex.from_frame(settings).get_indexer(pd.MultiIndex.from_frame(particles[there]))
    optics = _numbered_optics(len(settings) if there else 1)
    for name in there:
        if name != "rlnBeamTiltClass":
            optics[name] = settings[name].to_numpy()
    _set_geometry(optics, box, pixel_size)
    stale = ("rlnMagnification", "rlnDetectorPixelSize", "rlnPixelSize", "rlnImagePixelSize", *there)
    table = particles.drop(columns=[name for name in stale if name in particles])
    table["rlnOpticsGroup"] = number + 1
    for in_pixels, in_angstrom in _SHIFTS.items():
        if in_pixels in table:
            table = _renamed(table, in_pixels, in_angstrom, pixel_size)
    return table, optics


def _renamed(table: pd.DataFrame, old: str, new: str, factor: float) -> pd.DataFrame:
    """The table with a column of another name and unit in the old one's place."""
    if new in table:  # both units were there
        return table.drop(columns=[old])
    values = pd.to_numeric(table[old]).to_numpy(dtype=np.float64) * factor
    renamed = table.rename(columns={old: new})
    renamed[new] = np.round(values, _DECIMALS)
    return renamed
