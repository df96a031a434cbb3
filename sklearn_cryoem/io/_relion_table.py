"""A stack as RELION's tables: the columns that came in, with poses, labels and images brought up to date."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.io._from_cryosparc import relion_columns, same_angles
from sklearn_cryoem.io._image_names import SIGN, raw_source, sign_of_images
from sklearn_cryoem.io._star_version import STAR_VERSIONS, holds_something, to_one_table, to_optics_groups
from sklearn_cryoem.io.star import RELION_CTF
from sklearn_cryoem.particles import CTFTable, ParticleStack
from sklearn_cryoem.particles.frame import pixel_growth

_NEW_DECIMALS = 6  # RELION's own
_VIEWS = ("rlnAngleRot", "rlnAngleTilt")
_IN_OPTICS = ("voltage_volts", "cs_angstrom", "amplitude_contrast", "phase_flipped", "premultiplied")


@dataclass
class RelionTables:
    """What goes into a STAR file: the particles, and the optics groups unless the style is older than 3.1."""

    particles: pd.DataFrame
    optics: pd.DataFrame | None
    lost: list[str]  # columns that have no place in it

    def blocks(self) -> dict[str, pd.DataFrame]:
        """Tables by the name of their block."""
        if self.optics is None:
            return {"": self.particles}
        return {"optics": self.optics, "particles": self.particles}


def relion_tables(
    stack: ParticleStack, image_names: list[str], *, new_images: bool, version: str | None = None
) -> RelionTables:
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
    RelionTables
        Every RELION column that came in, in its order, with the same numbers; columns whose value has changed
        are overwritten, columns that are new stand at the end.
    """
    came_from_relion = "rlnImageName" in stack.metadata.columns
    if version is not None and version not in STAR_VERSIONS:
        raise ValueError(f"star_version is {version!r}, expected one of {', '.join(STAR_VERSIONS)}, or None.")
    table, lost = stack.metadata, []
    if not came_from_relion:
        table, lost = relion_columns(stack)
    if new_images and came_from_relion and "rlnImageOriginalName" not in table.columns:
        table["rlnImageOriginalName"] = table["rlnImageName"]
    table["rlnImageName"] = image_names
    if new_images and SIGN in table.columns:
        table[SIGN] = sign_of_images(stack, as_read=True)
    optics = stack.optics
    old_style = came_from_relion and optics is None and "rlnOpticsGroup" not in table.columns
    if optics is None and not old_style:
        optics = _new_optics(stack, table)
    if new_images:
        _set_image_size(stack, table, optics)
    if stack.ctf is not None:
        _set_ctf(table, optics, stack.ctf)
    if stack.poses is not None:
        if came_from_relion:  # those of cryoSPARC were taken over with their psi, or not at all
            table, lost = _without_stale_views(table, stack)
        _set_poses(table, stack, old_style=old_style, new_images=new_images)
    converts = version is not None and (version == "3.0") == (optics is not None)
    if not converts:
        return RelionTables(table, optics, lost)
    box, pixel_size = (stack.box, stack.pixel_size) if new_images else raw_geometry(stack)
    if version == "3.0":
        table, dropped = to_one_table(table, optics, pixel_size)
        return RelionTables(table, None, lost + dropped)
    return RelionTables(*to_optics_groups(table, pixel_size, box), lost)


def set_column(table: pd.DataFrame, name: str, values: np.ndarray, *, period: float | None = None) -> None:
    """Set a column, unless it holds the same numbers already: then what came in stays to the last digit."""
    values = np.asarray(values, dtype=np.float64)
    if name in table.columns:
        old = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
        difference = values - old
        if period is not None:
            difference -= period * np.rint(difference / period)
        if (np.abs(difference) <= 0.51 * 10.0**-_NEW_DECIMALS).all():
            return
    table[name] = np.round(values, _NEW_DECIMALS)


def _new_optics(stack: ParticleStack, table: pd.DataFrame) -> pd.DataFrame:
    """Make an optics group for each group and microscope setting of the stack; number the particles by it."""
    keys = {"group": stack.optics_group}
    if stack.ctf is not None:
        keys |= {name: getattr(stack.ctf, name) for name in _IN_OPTICS}
    combined = np.column_stack(list(keys.values()))  # (n_images, n_keys)
    distinct, number = np.unique(combined, axis=0, return_inverse=True)
    table["rlnOpticsGroup"] = number.reshape(-1) + 1
    optics = pd.DataFrame({"rlnOpticsGroup": np.arange(1, len(distinct) + 1)})
    optics["rlnOpticsGroupName"] = [f"opticsGroup{place}" for place in optics["rlnOpticsGroup"]]
    if stack.ctf is not None:
        for name, values in zip(_IN_OPTICS, distinct[:, 1:].T, strict=True):
            label, unit, default = RELION_CTF[name]
            if default is None or (values != default).any():
                optics[label] = (values / unit).round(_NEW_DECIMALS)
    raw_box, raw_pixel_size = raw_geometry(stack)
    if raw_pixel_size is not None:
        optics["rlnImagePixelSize"] = round(raw_pixel_size, _NEW_DECIMALS)
    if raw_box:
        optics["rlnImageSize"] = raw_box
    optics["rlnImageDimensionality"] = 2
    paths = stack.metadata.get("location/micrograph_path", pd.Series([""])).astype(str)
    if paths.ne("").all():
        table["rlnMicrographName"] = paths.str.removeprefix(">").to_numpy()
    elif not {"rlnMicrographName", "rlnGroupName"} & set(table.columns):
        # RELION forms its groups of noise by this label, and by micrographs only where it is missing.
        table["rlnGroupName"] = [f"group_{group:06d}" for group in stack.noise_group]
    return optics


def raw_geometry(stack: ParticleStack) -> tuple[int, float | None]:
    """Box and pixel size of the images where they lie, before lazy down-sampling.

    Raises
    ------
    ParticleDataError
        If images of several pixel sizes were brought to one.
    """
    source = raw_source(stack)
    growth = pixel_growth(stack.images)
    if isinstance(growth, np.ndarray):
        raise ParticleDataError(
            "These images have several pixel sizes where they lie, and were rescaled to one: this format "
            "would have to give one for all. Write the format that came in, or new images (a .mrcs file)."
        )
    return source.box, None if stack.pixel_size is None else stack.pixel_size / growth


def _set_image_size(stack: ParticleStack, table: pd.DataFrame, optics: pd.DataFrame | None) -> None:
    """State the box and pixel size of newly written images."""
    home = table if optics is None else optics
    if optics is not None or "rlnImageSize" in home.columns:
        home["rlnImageSize"] = stack.box
    if stack.pixel_size is None:
        return
    if optics is not None:
        home["rlnImagePixelSize"] = stack.pixel_size
    elif "rlnMagnification" in home.columns:
        home["rlnDetectorPixelSize"] = stack.pixel_size * pd.to_numeric(home["rlnMagnification"]) / 1e4
    else:
        home["rlnPixelSize"] = stack.pixel_size


def _set_ctf(table: pd.DataFrame, optics: pd.DataFrame | None, ctf: CTFTable) -> None:
    for name, (label, unit, default) in RELION_CTF.items():
        in_optics = optics is not None and label in optics.columns
        values = getattr(ctf, name) / unit
        is_default = default is not None and (values == default).all()
        if not in_optics and not (is_default and label not in table.columns):
            period = 180.0 if name == "astigmatism_angle_rad" else None
            set_column(table, label, values, period=period)


def _without_stale_views(table: pd.DataFrame, stack: ParticleStack) -> tuple[pd.DataFrame, list[str]]:
    """Leave out view directions found with another psi than is written, and say so if they hold something."""
    views = [name for name in _VIEWS if name in table.columns]
    psi = pd.to_numeric(table.get("rlnAnglePsi", pd.Series(np.nan, table.index)), errors="coerce")
    if not views or same_angles(np.deg2rad(psi.to_numpy(dtype=np.float64)), stack.poses.angle_rad):
        return table, []
    held = ", ".join(name for name in views if holds_something(table[name]))
    said = [f"{held} (of another alignment than the rlnAnglePsi that is written)"] if held else []
    return table.drop(columns=views), said


def _set_poses(table: pd.DataFrame, stack: ParticleStack, *, old_style: bool, new_images: bool) -> None:
    psi = np.rad2deg(stack.poses.angle_rad)
    set_column(table, "rlnAnglePsi", (psi + 180.0) % 360.0 - 180.0, period=360.0)
    if stack.poses.mirrored.any() or "rlnIsFlip" in table.columns:
        table["rlnIsFlip"] = stack.poses.mirrored.astype(np.int64)
    growth = np.asarray(1.0 if new_images else pixel_growth(stack.images)).reshape(
        -1, 1
    )  # (1 or n_images, 1)
    if stack.pixel_size is None:
        scale = growth
        in_pixels, in_angstrom = stack.poses.shift * scale, None
    else:
        in_pixels, in_angstrom = stack.poses.shift * growth / stack.pixel_size, stack.poses.shift
    has_angstrom, has_pixels = "rlnOriginXAngst" in table.columns, "rlnOriginX" in table.columns
    if in_angstrom is not None and (has_angstrom or not old_style):
        set_column(table, "rlnOriginXAngst", in_angstrom[:, 0])
        set_column(table, "rlnOriginYAngst", in_angstrom[:, 1])
    if has_pixels or in_angstrom is None or (old_style and not has_angstrom):
        set_column(table, "rlnOriginX", in_pixels[:, 0])
        set_column(table, "rlnOriginY", in_pixels[:, 1])
