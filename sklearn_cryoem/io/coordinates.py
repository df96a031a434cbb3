"""Where particles stand on their micrographs: particles that were picked twice, boxes to be moved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from sklearn_cryoem._core.validation import ParticleDataError, check_number
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.frames import pixel_growth

_MICROGRAPH = ("rlnMicrographName", "location/micrograph_uid", "location/micrograph_path")
_PIXEL_SIZE = (
    "rlnMicrographPixelSize",
    "location/micrograph_psize_A",
)  # not that of the movie before binning
_RELION_PLACE = ("rlnCoordinateX", "rlnCoordinateY")
# cryoSPARC: fractions of the sides, which are in the order of the axes of an array
_CRYOSPARC_PLACE = ("location/center_x_frac", "location/center_y_frac")
_SIDES = ("location/micrograph_shape[1]", "location/micrograph_shape[0]")
_SHIFT_3D = ("alignments3D/shift[0]", "alignments3D/shift[1]")
_NO_NAME = ("", "nan", "none", "<na>")


def duplicates(
    stack: ParticleStack,
    min_distance: float,
    values: ArrayLike | None = None,
    *,
    micrograph_pixel_size: float | None = None,
) -> NDArray[np.bool_]:
    """Which particles are there twice: they stand too close to a better one on the same micrograph.

    Parameters
    ----------
    stack : ParticleStack
        With coordinates. Where there are poses, distances are those of the centres that they found.
    min_distance : float
        In Angstrom: no two of the particles that remain are closer.
    values : array_like of shape (n_images,), optional
        The particle with the larger one stays, such as the posterior; by default, and of equals, the first.
    micrograph_pixel_size : float, optional
        Angstrom per pixel of the coordinates; by default what the columns say.

    Returns
    -------
    ndarray of shape (n_images,), bool

    Raises
    ------
    ParticleDataError
        If coordinates, micrographs or the pixel size are not known.

    Examples
    --------
    >>> import numpy as np
    >>> import pandas as pd
    >>> from sklearn_cryoem import ParticleStack
    >>> table = pd.DataFrame({"rlnMicrographName": ["a", "a", "b"], "rlnCoordinateX": [10.0, 30.0, 10.0],
    ...                       "rlnCoordinateY": [10.0, 10.0, 10.0]})
    >>> stack = ParticleStack(np.random.default_rng(0).normal(size=(3, 8, 8)), metadata=table)
    >>> duplicates(stack, 80.0, [0.5, 0.9, 0.1], micrograph_pixel_size=2.0).tolist()
    [True, False, False]
    """
    check_number("min_distance", min_distance, owner="duplicates", minimum=0)
    table = stack.metadata
    known = [name for name in _MICROGRAPH if name in table]
    if not known:
        raise ParticleDataError(
            f"The particles name no micrograph ({_MICROGRAPH[0]}), so that none can be found twice. Give the "
            "file that they were extracted to."
        )
    names = table[known[0]]
    nameless = names.isna() | names.astype(str).str.strip().str.lower().isin(_NO_NAME)
    if nameless.any():
        raise ParticleDataError(
            f"{nameless.sum():,} of the {len(table):,} particles name no micrograph ({known[0]}), first "
            f"particle {nameless.argmax() + 1}. Fill in the names, or leave these particles out."
        )
    place = _places(table) * _pixel_size(stack, micrograph_pixel_size) - _shift_angstrom(stack)
    number = pd.factorize(names)[0]
    far = np.ptp(place, axis=0).max(initial=0.0) + min_distance + 1.0  # from one micrograph to the next
    tree = cKDTree(np.column_stack([place, far * number]))
    pairs = tree.query_pairs(min_distance, output_type="ndarray")  # (n_pairs, 2)
    value = np.zeros(len(stack)) if values is None else np.asarray(values, dtype=np.float64)
    order = np.argsort(-value, kind="stable")
    rank = np.empty(len(stack), dtype=np.int64)
    rank[order] = np.arange(len(stack))
    pairs = np.sort(rank[pairs], axis=1)  # the better one first
    is_twice = np.zeros(len(stack), dtype=bool)
    for better, worse in pairs[np.argsort(pairs[:, 0], kind="stable")]:
        is_twice[order[worse]] |= not is_twice[order[better]]
    return is_twice


def recentred(stack: ParticleStack, *, micrograph_pixel_size: float | None = None) -> ParticleStack:
    """Return the particles with coordinates at the centres that were found, to extract them there again.

    Coordinates move by whole pixels of the micrograph, as ``relion_preprocess --recenter`` moves them; the
    rest, at most half a pixel, stays as the shift of the pose. The images are what they were: they belong to
    these poses once they are extracted at the new coordinates.

    Parameters
    ----------
    stack : ParticleStack
        With coordinates and poses.
    micrograph_pixel_size : float, optional
        Angstrom per pixel of the coordinates; by default what the columns say.

    Returns
    -------
    ParticleStack

    Raises
    ------
    ParticleDataError
        If there are no poses, or coordinates or their pixel size are not known.
    """
    if stack.poses is None:
        raise ParticleDataError("The particles have no poses, so no centre to move to. Align them first.")
    pixel_size = _pixel_size(stack, micrograph_pixel_size)
    shift, table = _shift_angstrom(stack), stack.metadata
    whole = np.rint(shift / pixel_size)  # the particle stands at minus the shift that centres it
    place = _places(table) - whole  # (n_images, 2)
    names = _RELION_PLACE
    if _RELION_PLACE[0] not in table:
        names, place = _CRYOSPARC_PLACE, (place / table[list(_SIDES)].to_numpy()).astype(np.float32)
    columns = {name: place[:, axis] for axis, name in enumerate(names)}
    if _SHIFT_3D[0] in table:  # a second alignment, of the same boxes
        own = table.get("alignments3D/psize_A", pd.Series(0.0, table.index)).to_numpy(dtype=np.float64)
        unit = np.where(own > 0, own, stack.pixel_size / pixel_growth(stack.images))
        left = table[list(_SHIFT_3D)].to_numpy(np.float64) - whole * pixel_size / unit[:, None]
        columns |= {name: left[:, axis].astype(np.float32) for axis, name in enumerate(_SHIFT_3D)}
    moved = stack.with_metadata(**columns)
    return moved.with_poses(replace(stack.poses, shift=shift - whole * pixel_size))


def _places(table: pd.DataFrame) -> NDArray[np.float64]:
    """Coordinates of the boxes in pixels of their micrographs; (n_images, 2)."""
    for names, sides in ((_RELION_PLACE, ()), (_CRYOSPARC_PLACE, _SIDES)):
        if not all(name in table for name in (*names, *sides)):
            continue
        numbers = table[[*names, *sides]].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
        place = numbers[:, :2] * numbers[:, 2:] if sides else numbers
        bad = ~np.isfinite(place).all(axis=1)
        if bad.any():
            raise ParticleDataError(
                f"{bad.sum():,} of the {len(table):,} particles have coordinates that are no numbers "
                f"({', '.join(names)}), first particle {bad.argmax() + 1}. Correct them, or leave these out."
            )
        return np.asarray(place)
    raise ParticleDataError(
        f"The particles have no coordinates ({_RELION_PLACE[0]}, {_CRYOSPARC_PLACE[0]}). Give the file that "
        "they were extracted to, or pass the file of a cryoSPARC job that holds them with passthrough=."
    )


def _pixel_size(stack: ParticleStack, given: float | None) -> NDArray[np.float64]:
    """Angstrom per pixel of the micrographs; (n_images, 1)."""
    check_number("micrograph_pixel_size", given, owner="coordinates", minimum=0, inclusive=False,
                 allow_none=True)  # fmt: skip
    if given is not None:
        return np.full((len(stack), 1), float(given))
    table, optics = stack.metadata, stack.optics
    for name in _PIXEL_SIZE:
        if name in table:
            sizes = table[name]
        elif optics is not None and name in optics:
            of_group = optics.set_index("rlnOpticsGroup")[name]
            sizes = table.get("rlnOpticsGroup", pd.Series(of_group.index[:1].repeat(len(table)))).map(
                of_group
            )
        else:
            continue
        values = pd.to_numeric(sizes, errors="coerce").to_numpy(dtype=np.float64)  # (n_images,)
        if (np.isfinite(values) & (values > 0)).all():
            return values[:, None]
    raise ParticleDataError(
        f"The pixel size of the micrographs, whose pixels coordinates count, is not known of all particles "
        f"({_PIXEL_SIZE[0]}). Pass micrograph_pixel_size=, in Angstrom."
    )


def _shift_angstrom(stack: ParticleStack) -> NDArray[np.float64]:
    """Shift that centres each particle, in Angstrom; (n_images, 2)."""
    if stack.poses is None:
        return np.zeros((len(stack), 2))
    if stack.pixel_size is None:
        raise ParticleDataError(
            "The shifts are in pixels of unknown size. Read the particles with pixel_size=."
        )
    return stack.poses.shift
