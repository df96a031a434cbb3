"""What references explain of each image: for noise groups and image scales, Eq. (4.12)-(4.13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from sklearn_cryoem.alignment.expectation import Posterior
from sklearn_cryoem.alignment.features import ImageFeatures
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.polar import angular_orders, even_orders, translation_phase

POOLED_IMAGES = 30.0  # of average noise that are added to every noise group
SCALE_SIGMA = 0.3  # standard deviation of the prior of image scales, about 1
SCALE_LIMITS = (0.2, 5.0)
TINY_SHARE = 1e-12  # of the power of the strongest ring: noise of rings that are empty
NEXT_TO_NOTHING = 1e-36  # noise of images that are zero

Int = NDArray[np.signedinteger[Any]]


_ClassTerms = tuple[Int, Float64, Float64]


@dataclass(frozen=True)
class ImageTerms:
    """Posterior means of the terms of |F - C A|^2 = |F|^2 - 2 cross + norm on each ring, Eq. (4.12).

    Attributes
    ----------
    cross : ndarray of shape (n_images, n_rings)
        Mean round each ring of Re conj(F) C A, A being turned and shifted to the image.
    norm : ndarray of shape (n_images, n_rings)
        Mean round each ring of C^2 |A|^2.
    power : ndarray of shape (n_images, n_rings)
        Mean round each ring of |F|^2.
    """

    cross: Float64
    norm: Float64
    power: Float64

    @property
    def residual(self) -> Float64:
        """Mean round each ring of |F - C A|^2; (n_images, n_rings)."""
        return self.power - 2.0 * self.cross + self.norm


def image_terms(
    features: ImageFeatures,
    posterior: Posterior,
    space: SearchSpace,
    values: Complex64,
) -> ImageTerms:
    """Cross and norm term of every image and ring, averaged over its posterior, Eq. (4.12).

    Parameters
    ----------
    features : ImageFeatures
        At the rings and orders of `space`.
    posterior : Posterior
        Of the same images.
    space : SearchSpace
        Shifts, angles and orders.
    values : ndarray of shape (n_clusters, n_rings, n_angles / 2), complex64
        The references that the posterior was taken with, on the polar grid of `space`.

    Notes
    -----
    The same products as the sums of the M-step, Eq. (4.5), with references in the place of images: for every
    class and order one product (n_images x n_shifts) by (n_shifts x n_rings) of those in use.
    """
    classes = posterior.row // space.n_shifts
    by_class = np.argsort(classes, kind="stable")
    bounds = np.searchsorted(classes[by_class], np.arange(len(values) + 1))
    images = features.orders[:, space.order]  # (n_images, n_orders, n_rings)
    n_even = features.ctf_power.shape[1]

    def terms_of(cluster: int) -> _ClassTerms:
        cells = by_class[bounds[cluster] : bounds[cluster + 1]]
        shift, image, turned = _turned(posterior, cells, space)  # (n_orders, n_images, n_shifts)
        phase = translation_phase(space.grid, -space.shifts_px[shift])  # (n_shifts, n_rings, n_angles / 2)
        shifted = angular_orders(phase * values[cluster], space.n_orders)[..., space.order]
        expected = np.matmul(turned, shifted.transpose(2, 0, 1))  # (n_orders, n_images, n_rings)
        cross = _real_product(images[image].transpose(1, 0, 2), expected)
        squared = values[cluster].real ** 2 + values[cluster].imag ** 2
        power = even_orders(squared, n_even).T  # (n_even, n_rings)
        spread = turned[:n_even].sum(axis=2)[..., None] * power[:, None]  # (n_even, n_images, n_rings)
        return image, cross, _real_product(features.ctf_power[image].transpose(1, 0, 2), spread)

    cross, norm = np.zeros(features.power.shape), np.zeros(features.power.shape)
    for image, class_cross, class_norm in map(terms_of, range(len(values))):
        cross[image] += class_cross  # every image once in a class
        norm[image] += class_norm
    return ImageTerms(cross, norm, features.power.astype(np.float64))


def group_sums(terms: ImageTerms, group: NDArray[np.int64], n_groups: int) -> tuple[Float64, Float64]:
    """Residuals summed over each noise group, and how many images they hold; each (n_groups, n_rings)."""
    member = (np.arange(n_groups)[:, None] == group).astype(np.float64)  # (n_groups, n_images)
    residual: Float64 = member @ terms.residual
    return residual, np.broadcast_to(member.sum(axis=1, keepdims=True), residual.shape).copy()


def image_scale(terms: ImageTerms, precision: Float32, scale: Float64) -> Float64:
    """Intensity of every image in units of the references, Eq. (4.13); (n_images,).

    Parameters
    ----------
    terms : ImageTerms
        Taken with the scales in use.
    precision : ndarray of shape (n_images, n_rings)
        1 / noise variance.
    scale : ndarray of shape (n_images,)
        The scales in use.
    """
    weight = 2.0 * np.pi * np.arange(1.0, precision.shape[1] + 1.0) * precision  # (n_images, n_rings)
    cross, norm = (weight * terms.cross).sum(axis=1) / scale, (weight * terms.norm).sum(axis=1) / scale**2
    prior = SCALE_SIGMA**-2
    found: Float64 = np.clip((cross + prior) / (norm + prior), *SCALE_LIMITS)
    return found


def group_noise(residual: Float64, n_images: Float64) -> Float64:
    """Noise of each group as a multiple of that of all images, Eq. (4.12); (n_groups, n_rings).

    Parameters
    ----------
    residual, n_images : ndarrays of shape (n_groups, n_rings)
        As returned by `group_sums`, or sums of them.

    Notes
    -----
    A group counts as if it held `POOLED_IMAGES` more images of average noise. One image says what the noise
    of ring r is within a factor of about 1 +- 1 / sqrt(pi r): a handful of images would give a spectrum of a
    micrograph that is noisier than micrographs differ.
    """
    if not len(residual):
        return np.empty((0, 0))
    pooled = residual.sum(axis=0) / np.maximum(n_images.sum(axis=0), 1e-9)  # (n_rings,)
    own = residual / np.maximum(pooled, smallest_noise(pooled))  # images, each times its noise
    relative: Float64 = (np.maximum(own, 0.0) + POOLED_IMAGES) / (n_images + POOLED_IMAGES)
    return relative


def _turned(posterior: Posterior, cells: Int, space: SearchSpace) -> tuple[Int, Int, Complex64]:
    """Sum over angles of P exp(i m psi) for the shifts and images that the cells of a class use."""
    shift, column = np.unique(posterior.row[cells] % space.n_shifts, return_inverse=True)
    image, line = np.unique(posterior.image[cells], return_inverse=True)
    shape = (len(image) * len(shift), space.n_angles)
    key = line * len(shift) + column
    table = sparse.csr_array((posterior.weight[cells], (key, posterior.angle[cells])), shape=shape)
    turned = (table @ space.analysis).view(np.complex64).conj()
    return shift, image, turned.T.reshape(space.n_orders, len(image), len(shift))


def _real_product(one: Complex64, other: Complex64) -> Float64:
    """Mean round each ring of the product of two functions given by their orders, even ones first."""
    product = one.real * other.real + one.imag * other.imag  # (n_orders, n_images, n_rings)
    total: Float64 = 2.0 * product.sum(axis=0, dtype=np.float64) - product[0]  # order 0 counts once
    return total


def smallest_noise(power: Float64) -> float:
    """Noise of rings without any, in the unit of the power of all rings (n_rings,): 0 would divide."""
    return TINY_SHARE * float(power.max()) + NEXT_TO_NOTHING


def log_noise_likelihood(power: Float32, noise: Float64, noise_fraction: float) -> Float64:
    """Log p(image | noise alone) of Eq. (1.3) by the quadrature of Eq. (4.3); (n_images,).

    Parameters
    ----------
    power : ndarray of shape (n_images, n_rings)
        Mean of |F|^2 round each ring.
    noise : ndarray of shape (n_rings,) or (n_images, n_rings)
        Noise variance per pixel, of all images or of each.
    noise_fraction : float
        Part of the noise that passes the image mask: the masked image has that fraction of the degrees of
        freedom.
    """
    area = 2.0 * np.pi * np.arange(1.0, power.shape[1] + 1.0)
    constant = -0.5 * noise_fraction * (area * np.log(2.0 * np.pi * noise)).sum(axis=-1)
    log: Float64 = constant - 0.5 * (power.astype(np.float64) * (area / noise)).sum(axis=-1)
    return log
