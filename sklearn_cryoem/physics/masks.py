"""Soft circular masks about the centre pixel, D // 2, which is the rotation axis."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from sklearn_cryoem.physics.fourier import Float32, Float64, HalfPlane, fourier_features, images_from_features

MASK_SHARE = 0.9  # of the box: diameter of the mask by default
EDGE_SHARE, MIN_EDGE_PX = 0.05, 2.0  # of the box, and in pixels: width of the soft edge
MIN_DIAMETER_PX = 4.0
MIN_MASK_SHARE, MAX_MASK_SHARE = 0.25, 0.95  # of the box: diameters outside are questioned
BAND_MARGIN = 4.0  # Fourier pixels beyond the band in which its features are masked: a mask spreads that far
BAND_EDGE = 1.5  # Fourier pixels at the end of a band, where half of what a mask mixes is missing


def check_mask_diameter(diameter: float | None, box: int, pixel_size: float | None) -> None:
    """Raise unless a mask diameter goes with the box: at least four pixels, and no more than the box.

    Parameters
    ----------
    diameter : float or None
        In Angstrom (pixels where the pixel size is unknown); None for the default.
    box : int
        Side D of the images in pixels.
    pixel_size : float or None
        In Angstrom.

    Raises
    ------
    ValueError
        If it is no number, smaller or larger.
    """
    if diameter is None:
        return
    length, unit = (1.0, "pixels") if pixel_size is None else (pixel_size, "Angstrom")
    smallest, largest = MIN_DIAMETER_PX * length, box * length
    if not isinstance(diameter, numbers.Real) or not smallest <= diameter <= largest:
        raise ValueError(
            f"mask_diameter is {diameter} {unit}, expected {smallest:.4g} ({MIN_DIAMETER_PX:g} pixels) to "
            f"{largest:.4g} (the box). Give a little more than the particle's diameter, in {unit}."
        )


def box_problem(box: int, pixel_size: float | None, diameter: float) -> tuple[str, str] | None:
    """Name and text of what is wrong with a mask in a box; None if it goes well.

    Parameters
    ----------
    box : int
        Side of the images in pixels.
    pixel_size : float or None
        In Angstrom.
    diameter : float
        Of the mask, in Angstrom (pixels where the pixel size is unknown).

    Returns
    -------
    tuple of (str, str) or None
    """
    unit = "px" if pixel_size is None else "A"
    side = box * (pixel_size or 1.0)
    share = diameter / side
    if share > MAX_MASK_SHARE:
        return "box-too-tight", (
            f"mask_diameter {diameter:g} {unit} takes {share:.0%} of the box ({side:.4g} {unit}), so that no "
            "background is left to judge the noise by. Give the particle's diameter, or extract larger boxes."
        )
    if share < MIN_MASK_SHARE:
        return "mask-too-small", (
            f"mask_diameter {diameter:g} {unit} is {share:.0%} of the box ({side:.4g} {unit}). Particles are "
            f"larger as a rule: make sure that it is in {'pixels' if unit == 'px' else 'Angstrom'}."
        )
    return None


def mask_disc(diameter: float | None, box: int, pixel_size: float | None) -> tuple[float, float]:
    """Soft disc that `mask_diameter` stands for: radius of its flat part and width of its edge, in pixels.

    As in RELION, the disc is 1 up to half the diameter, and its edge lies outside of that. The edge ends
    within the box: a larger disc, above 0.9 of the box, has its flat part cut by as much.

    Parameters
    ----------
    diameter, box, pixel_size
        As of `check_mask_diameter`. By default the diameter is 0.9 of the box.

    Returns
    -------
    radius_px, edge_px : float
        As of `soft_disc`.
    """
    check_mask_diameter(diameter, box, pixel_size)
    edge_px = max(MIN_EDGE_PX, EDGE_SHARE * box)
    diameter_px = MASK_SHARE * box if diameter is None else diameter / (pixel_size or 1.0)
    return float(min(0.5 * diameter_px, 0.5 * box - edge_px)), edge_px


def pixel_radius(box: int, centre: ArrayLike = (0.0, 0.0)) -> NDArray[np.float64]:
    """Distance in pixels of every pixel from ``centre``, given as (x, y) from the centre pixel.

    Parameters
    ----------
    box : int
        Side D of the images in pixels.
    centre : array_like of shape (2,) or (n_images, 2)
        (x, y) in pixels: x along columns, y along rows, from the pixel D // 2.

    Returns
    -------
    radius : ndarray of shape (D, D) or (n_images, D, D)
    """
    return np.asarray(np.sqrt(_radius_squared(box, centre, np.float64)))


def _radius_squared(box: int, centre: ArrayLike, dtype: DTypeLike) -> NDArray[Any]:
    offset = np.asarray(centre, dtype=np.float64)
    if offset.shape[-1:] != (2,) or offset.ndim > 2:
        raise ValueError(
            f"centre has shape {offset.shape}, expected (2,) or (n_images, 2). "
            "Give (x, y) in pixels from the centre pixel D // 2."
        )
    axis = np.arange(box) - box // 2  # (D,)
    x = axis - offset[..., :1]  # (..., D)
    y = axis - offset[..., 1:]  # (..., D)
    return np.asarray((x**2).astype(dtype)[..., None, :] + (y**2).astype(dtype)[..., :, None])


def soft_disc(box: int, radius_px: float, edge_px: float, centre: ArrayLike = (0.0, 0.0)) -> Float32:
    """Disc of ones with a raised-cosine edge: 1 up to `radius_px`, 0 from ``radius_px + edge_px`` on.

    Parameters
    ----------
    box : int
        Side D of the images in pixels.
    radius_px, edge_px : float
        Radius of the flat part and width of the edge in pixels. With `edge_px` 0 the disc is sharp.
    centre : array_like of shape (2,) or (n_images, 2)
        (x, y) of the disc in pixels from the centre pixel D // 2; several centres give a batch of discs.

    Returns
    -------
    disc : ndarray of shape (D, D) or (n_images, D, D), float32

    Raises
    ------
    ValueError
        If the radius or the edge is negative, or `centre` does not hold pairs.
    """
    if radius_px < 0 or edge_px < 0:
        raise ValueError(
            f"radius_px is {radius_px:g} and edge_px is {edge_px:g}, expected both at least 0. "
            "Choose a mask diameter larger than its edge."
        )
    if edge_px == 0:
        return (pixel_radius(box, centre) <= radius_px).astype(np.float32)
    disc: Float32 = _radius_squared(box, centre, np.float32)  # in place from here: one disc an image
    np.sqrt(disc, out=disc)
    disc -= np.float32(radius_px)
    disc *= np.float32(np.pi / edge_px)
    np.clip(disc, np.float32(0.0), np.float32(np.pi), out=disc)
    np.cos(disc, out=disc)
    disc += np.float32(1.0)
    disc *= np.float32(0.5)
    return disc


def mask_background(
    images: Float32, radius_px: float, edge_px: float, centres: ArrayLike | None = None
) -> Float32:
    """Remove what lies outside a soft disc: subtract the mean outside, multiply by the disc.

    Up to the constant subtracted this is RELION's mask filled with the background mean. Only the zero
    frequency sees that constant, and no feature uses it, Eq. (1.2).

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        Real images.
    radius_px, edge_px : float
        As in `soft_disc`.
    centres : array_like of shape (n_images, 2), optional
        (x, y) of each image's disc in pixels from the centre pixel; by default all at the centre pixel.

    Returns
    -------
    masked : ndarray of shape (n_images, D, D), float32

    Raises
    ------
    ValueError
        If the disc leaves no background, so that its mean does not exist.
    """
    box = images.shape[-1]
    if centres is None:
        disc = _centred_disc(box, radius_px, edge_px)
    else:
        disc = soft_disc(box, radius_px, edge_px, centres)
    outside = np.float32(1.0) - disc.reshape(-1, box, box)  # (1 or n_images, D, D)
    weight = outside.sum(axis=-1).sum(axis=-1, dtype=np.float64)
    if np.any(weight < 1.0):
        raise ValueError(
            f"A disc of radius {radius_px:g} pixels covers the whole box of {box} pixels, so there is no "
            f"background. Use a radius below {box // 2} pixels, or larger images."
        )
    # sums of rows in float32, of all rows in float64: no temporary has the size of the images
    total = np.einsum("nij,nij->ni", images, outside).sum(axis=-1, dtype=np.float64)
    background = total / weight  # (n_images,)
    masked: Float32 = images - background[:, None, None].astype(np.float32)
    masked *= disc
    return masked


@lru_cache(maxsize=8)
def _centred_disc(box: int, radius_px: float, edge_px: float) -> Float32:
    return soft_disc(box, radius_px, edge_px)


@dataclass(frozen=True)
class Support:
    """The soft disc that holds the particle, for features instead of images.

    Attributes
    ----------
    plane : HalfPlane
        Which coefficients the features are.
    radius_px, edge_px : float
        As in `soft_disc`.
    """

    plane: HalfPlane
    radius_px: float
    edge_px: float

    @cached_property
    def share(self) -> float:
        """Share f of the power of white noise that the disc leaves."""
        return float(np.mean(_centred_disc(self.plane.box, self.radius_px, self.edge_px) ** 2))

    def masked(self, features: Float64) -> Float64:
        """Features of the images that `features` stand for, without what lies outside the disc, Eq. (3.16).

        Parameters
        ----------
        features : ndarray of shape (n, P)
            Real features, of the whole plane or of the first shells of it.

        Returns
        -------
        masked : ndarray of shape (n, P), float64
            The outermost 1.5 Fourier pixels stay as they are: what the mask brings there lies half beyond.

        Notes
        -----
        Two FFTs a row, in single precision, of a box no larger than the band needs.
        """
        n_kept, box = features.shape[1] // 2, self.plane.box
        kx, ky, k_max = self.plane.kx[:n_kept], self.plane.ky[:n_kept], float(self.plane.radius[n_kept - 1])
        small = min(box, int(2 * np.ceil(k_max + BAND_MARGIN)))
        plane, ratio = HalfPlane(small, k_max, kx, ky), small / box
        values = np.ascontiguousarray(features, dtype=np.float32).view(np.complex64)  # (n, J)
        images = mask_background(
            images_from_features(values, plane), self.radius_px * ratio, self.edge_px * ratio
        )
        masked = fourier_features(images, plane).view(np.float32).astype(np.float64)
        inner = np.repeat(plane.radius <= k_max - BAND_EDGE, 2)
        return np.where(inner, masked, features)
