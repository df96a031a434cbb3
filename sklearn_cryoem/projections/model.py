"""References that are the slices of volumes: how they begin and how the M-step makes them, section 8."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import even_blocks
from sklearn_cryoem.alignment.em import PassState
from sklearn_cryoem.alignment.features import FeatureCache, SharedFeatures
from sklearn_cryoem.alignment.maximisation import Statistics
from sklearn_cryoem.alignment.model import (
    EMPTY_SHARE,
    MIN_NOISE,
    MIN_SHIFT_SIGMA_PX,
    AlignmentModel,
    PolarStatistics,
    explained_power,
    polar_statistics,
    smallest_noise,
)
from sklearn_cryoem.alignment.passes import run_pass
from sklearn_cryoem.alignment.products import ring_power
from sklearn_cryoem.alignment.search import AlignmentSettings, SearchSpace, shift_grid
from sklearn_cryoem.alignment.start import IMAGES_FOR_NOISE, IMAGES_PER_TASK, References
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.masks import soft_disc
from sklearn_cryoem.physics.polar import PolarGrid, polar_transform
from sklearn_cryoem.projections.views import symmetry_group, view_angles, view_rotations
from sklearn_cryoem.projections.volumes import (
    gridded,
    lattice_size,
    normal_kernel,
    prior_variance,
    resized,
    slices,
    soft_ball,
    solve_volume,
)

SHIFTS_PER_PERIOD = 2.5, 5.0  # of the finest period in use: in starts, and in full passes
MOMENTUM = 0.9  # of the volumes of a start, Eq. (8.8)
MIN_SIGNAL = 0.02  # of the power of the images: prior variance at least
MIN_START_NOISE = 0.3  # of the power of the images
EXPLAINED = 0.05  # of the signal of the images: rings whose slices hold less are not resolved


@dataclass(frozen=True)
class SliceSettings(AlignmentSettings):
    """What is chosen before a fit of volumes, beside what an alignment takes.

    Attributes
    ----------
    n_volumes, n_views : int
        Volumes, and views of each.
    symmetry : str
        As of `symmetry_group`.
    flat : bool
        Whether one more reference is empty: images that show no particle go there.
    fine : bool
        False for starts, while views are vague: every other angle, few shifts, and Eq. (8.8).
    """

    n_volumes: int = 1
    n_views: int = 1
    symmetry: str = "C1"
    flat: bool = False
    fine: bool = False

    def space(self, box: int, k_max: float, n_orders: int | None = None) -> SearchSpace:
        """Search space with steps of angle as wide as those of the views, and finer ones of shifts.

        Poses are not refined before the M-step, and the volume is as sharp as they are.
        """
        space = super().space(box, k_max, n_orders)
        step_px = self.shift_step(box, k_max)
        longest_px = max(self.max_shift_px, step_px) if self.fine and self.max_shift_px else self.max_shift_px
        shifts = shift_grid(longest_px, step_px)
        if not self.fine:
            coarse = space.coarse and replace(space.coarse, n_angles=_half(space.coarse.n_angles))
            space = replace(space, n_angles=_half(space.n_angles), coarse=coarse)
        return replace(space, shifts_px=shifts, shift_step_px=step_px)

    def shift_step(self, box: int, k_max: float) -> float:
        """Distance in pixels of neighbouring shifts at a resolution."""
        return box / k_max / SHIFTS_PER_PERIOD[self.fine]


def _half(n_angles: int) -> int:
    """Half as many angles, and a multiple of 4."""
    return max(4, 4 * -(-n_angles // 8))


@dataclass(frozen=True)
class SliceModel(AlignmentModel):
    """Volumes, as `references` of shape (n_volumes, n, n, n) before they are masked, and their views.

    Attributes
    ----------
    rotations : ndarray of shape (n_views, 3, 3)
        Views, of which each volume has as many references; one empty reference more has no volume.
    signal : ndarray of shape (n_rings,)
        Prior variance of the Fourier coefficients of the masked volumes on rings 1, 2, ..
    ball : tuple of float
        Radius and edge of the mask, as parts of the box.
    found : ndarray
        Volumes of the last M-step, from which `references` may have moved on, Eq. (8.8).
    """

    at_once: ClassVar[int] = 256

    rotations: Float64
    signal: Float64
    ball: tuple[float, float]
    found: Float32

    def seen_from(self, settings: SliceSettings) -> SliceModel:
        """The same volumes with the views of other settings, and a resolution within their range."""
        n_views, n_volumes = settings.n_views, settings.n_volumes
        shares = np.add.reduceat(self.weight, np.arange(n_volumes + settings.flat) * len(self.rotations))
        return replace(
            self,
            references=self.found,
            k_max=float(np.clip(self.k_max, settings.k_start, settings.k_limit)),
            rotations=view_rotations(view_angles(n_views, settings.symmetry)),
            weight=spread(shares, n_volumes, n_views),
            balance=np.zeros(n_volumes * n_views + settings.flat),
        )

    def polar(self, grid: PolarGrid, block: slice = slice(None)) -> Complex64:
        """Some slices, Eq. (8.1); (k, n_rings, n_angles / 2)."""
        n, n_views = max(lattice_size(grid.n_rings), self.references.shape[-1]), len(self.rotations)
        number, view = np.divmod(np.arange(len(self.weight))[block], n_views)  # a last one has no volume
        values = np.zeros((len(number), grid.n_rings, grid.n_angles // 2), dtype=np.complex64)
        for volume in np.unique(number[number < len(self.references)]):
            dense = resized(self.references[volume].astype(np.float64), n) * soft_ball(n, *self.ball)
            values[number == volume] = slices(
                dense.astype(np.float32), self.rotations[view[number == volume]], grid
            )
        return values


def starting_volumes(
    features: SharedFeatures, settings: SliceSettings, rng: np.random.RandomState
) -> SliceModel:
    """Random volumes of the power that the images have, up to `k_start`, and a first noise spectrum.

    The noise is measured outside the mask of the images, and what they have more inside of it is their
    signal, Eq. (8.4).
    """
    images, n_images = features.images, features.images.n_images
    rows = np.sort(rng.permutation(n_images)[:IMAGES_FOR_NOISE])
    blocks = [rows[block] for block in even_blocks(len(rows), IMAGES_PER_TASK)]
    parts = list(features.map(_spectra, blocks, images.n_rings(images.k_limit)))
    inside, outside, ctf_power = np.mean(np.concatenate(parts, axis=1), axis=1)  # each (n_rings,)
    floor = inside * MIN_START_NOISE + smallest_noise(inside)
    noise = np.clip(outside * images.noise_fraction, floor, np.maximum(inside, floor))
    signal = np.maximum(inside - noise, MIN_SIGNAL * floor / MIN_START_NOISE) / np.maximum(ctf_power, 1e-3)
    padded = np.pad(signal, 1, mode="edge")
    signal = (padded[:-2] + 2.0 * padded[1:-1] + padded[2:]) / 4.0
    box = images.box
    n_rings = int(np.clip(settings.k_start, 1, len(signal)))
    n = lattice_size(n_rings)
    ball = settings.mask_radius_px / box, settings.mask_edge_px / box
    variance = prior_variance(signal[:n_rings], n) / np.mean(soft_ball(n, *ball) ** 2)
    white = rng.standard_normal((settings.n_volumes, n, n, n))
    spectrum = np.fft.rfftn(white, axes=(1, 2, 3)) * np.sqrt(variance)
    n_references = settings.n_volumes * settings.n_views + settings.flat
    volumes = np.fft.irfftn(spectrum, s=(n, n, n), axes=(1, 2, 3)).astype(np.float32)
    return SliceModel(
        references=volumes,
        noise=noise / images.noise_fraction,
        weight=np.full(n_references, 1.0 / n_references),
        balance=np.zeros(n_references),
        shift_sigma_px=max(0.5 * settings.max_shift_px, 1.0),
        k_max=settings.k_start,
        resolution=np.zeros(settings.n_volumes, dtype=np.int64),
        rotations=view_rotations(view_angles(settings.n_views, settings.symmetry)),
        signal=signal,
        ball=ball,
        found=volumes,
    )


def _spectra(rows: NDArray[np.int64], cache: FeatureCache, n_rings: int) -> Float64:
    """Power inside the mask, that of noise outside of it, and of the CTF; (3, n_rows, n_rings)."""
    images = cache.images
    shift = images.known.shift_px[rows]
    features = cache(rows, shift, n_rings, 1)
    rim = 1.0 - soft_disc(images.box, images.mask_radius_px, images.mask_edge_px)
    pixels = images.read(rows)
    mean = (pixels * rim).sum(axis=(1, 2), keepdims=True) / rim.sum()
    outside = ring_power(polar_transform((pixels - mean) * rim, images.grid(n_rings)[0]))
    power = outside / np.mean(rim.astype(np.float64) ** 2)
    return np.stack([features.power, power, features.ctf_power[:, 0].real]).astype(np.float64)


def update_volumes(
    stats: Statistics,
    model: SliceModel,
    grid: PolarGrid,
    settings: SliceSettings,
    noise_fraction: float,
    n_jobs: int | None = None,
) -> tuple[SliceModel, Statistics]:
    """The M-step after the sums: volumes, noise and priors, Eq. (8.3)-(8.4); parameters as `update_model`."""
    n_rings = grid.n_rings
    polar = polar_statistics(stats, grid)
    volumes = solve_volumes(polar, model, grid, settings)
    updated = replace(model, references=volumes, found=volumes)
    values = updated.polar(grid)
    power = stats.power / np.maximum(stats.n_images, 1e-9)
    floor = MIN_NOISE * power + smallest_noise(power)
    residual = power - explained_power(polar, values).sum(axis=0) / np.maximum(stats.n_images, 1e-9)
    residual = np.maximum(residual, floor) / noise_fraction
    return (
        replace(
            updated,
            references=volumes if settings.fine else _moved_on(volumes, model),
            noise=np.concatenate([residual, model.noise[n_rings:]]),
            weight=volume_weights(stats.mass, settings),
            shift_sigma_px=max(
                MIN_SHIFT_SIGMA_PX,
                0.5 * settings.shift_step(grid.box, n_rings),  # shifts within a step all lie at 0
                float(np.sqrt(0.5 * stats.shift_square[0] / stats.mass.sum())),
            ),
            resolution=_resolved(values, model.signal[:n_rings], settings),
        ),
        stats,
    )


def _moved_on(volumes: Float32, model: SliceModel) -> Float32:
    """Volumes further along their last step, but for one that turns back, Eq. (8.8)."""
    n = volumes.shape[-1]
    seen, last = (
        np.array([resized(volume.astype(np.float64), n) for volume in some])
        for some in (model.references, model.found)
    )
    step = volumes - last
    if np.vdot(seen - volumes, step) > 0.0:
        return volumes
    return np.asarray(volumes + MOMENTUM * step, dtype=np.float32)


def solve_volumes(
    polar: PolarStatistics, model: SliceModel, grid: PolarGrid, settings: SliceSettings
) -> Float32:
    """Volumes (n_volumes, n, n, n), before they are masked, from the sums of their views, Eq. (8.3)-(8.4)."""
    n_views, n = settings.n_views, lattice_size(grid.n_rings)
    group = symmetry_group(settings.symmetry)
    mask = soft_ball(n, *model.ball)
    variance = settings.tau_fudge / np.mean(mask**2) * prior_variance(model.signal[: grid.n_rings], n)
    weight = (2.0 * grid.ring_weight / model.noise[: grid.n_rings]).astype(np.float32)[:, None]
    found = []
    for number, volume in enumerate(model.references.astype(np.float64)):
        views = slice(number * n_views, (number + 1) * n_views)
        numerator, denominator = weight * polar.numerator[views], weight * polar.denominator[views]
        turned = [model.rotations @ operation.T for operation in group]
        share = 1.0 / len(group)  # of the data of a view, that each of its symmetric copies has
        gradient = share * np.sum([gridded(numerator, rotations, grid, n) for rotations in turned], axis=0)
        kernels = [normal_kernel(denominator, rotations, grid, n) for rotations in turned]
        kernel = share * np.sum(kernels, axis=0)
        found.append(solve_volume(gradient, kernel, variance, mask, resized(volume, n)))
    return np.array(found, dtype=np.float32)


def volume_weights(mass: Float64, settings: SliceSettings) -> Float64:
    """Prior of every reference: the share of its volume, spread evenly over its views, Eq. (8.5)."""
    n_views, n_volumes = settings.n_views, settings.n_volumes
    n_groups = n_volumes + settings.flat
    shares = np.add.reduceat(mass, np.arange(n_groups) * n_views) / mass.sum()
    shares = (shares + EMPTY_SHARE / n_groups) / (1.0 + EMPTY_SHARE)
    return spread(shares, n_volumes, n_views)


def spread(shares: Float64, n_volumes: int, n_views: int) -> Float64:
    """Share of each reference from those of the volumes and of the empty reference, if there is one."""
    return np.concatenate([np.repeat(shares[:n_volumes] / n_views, n_views), shares[n_volumes:]])


def _resolved(values: Complex64, signal: Float64, settings: SliceSettings) -> NDArray[np.int64]:
    """Last ring of each volume on which its slices hold a fair part of the signal of the images."""
    shape = (settings.n_volumes, settings.n_views, len(signal))
    power = ring_power(values[: shape[0] * shape[1]]).reshape(shape).mean(axis=1)
    below = power < EXPLAINED * signal
    return np.asarray(np.where(below.any(axis=1), below.argmax(axis=1), len(signal)), dtype=np.int64)


@dataclass(frozen=True)
class SplitVolumes:
    """What a last look at all images gives: volumes before they are masked, of all and of two halves.

    Attributes
    ----------
    volumes : ndarray of shape (n_volumes, n, n, n)
        Of all images.
    halves : tuple of two ndarrays of the same shape
        Of the images of even and of odd row numbers, seen from the same views.
    mask : ndarray of shape (n, n, n)
        Their mask.
    stats : Statistics
        Sums over all images.
    grid : PolarGrid
        Of the sums.
    """

    volumes: Float32
    halves: tuple[Float32, Float32]
    mask: Float64
    stats: Statistics
    grid: PolarGrid


def split_volumes(features: SharedFeatures, state: PassState, settings: SliceSettings) -> SplitVolumes:
    """Volumes of all images and of two halves, by their posteriors under the model of a fit, Eq. (8.6)."""
    model, n_images = state.model, features.images.n_images
    if not isinstance(model, SliceModel):
        raise TypeError("The state is of an alignment whose references are free. Fit volumes first.")
    space = settings.space(features.images.box, model.k_max)
    parts = [
        run_pass(features, rows, state.start_shift_px, model, space, broad=state.broad).statistics
        for rows in (np.arange(0, n_images, 2), np.arange(1, n_images, 2))
    ]
    whole, *halves = (
        solve_volumes(polar_statistics(stats, space.grid), model, space.grid, settings)
        for stats in (parts[0] + parts[1], *parts)
    )
    mask = soft_ball(whole.shape[-1], *model.ball)
    return SplitVolumes(whole, (halves[0], halves[1]), mask, parts[0] + parts[1], space.grid)


def in_the_box(volumes: Float32, ball: tuple[float, float], box: int) -> Float32:
    """Masked volumes with the voxels of the images, of which a projection is the sum along its axis."""
    mask = soft_ball(box, *ball) * box**-0.5  # slices are unitary, and Eq. (1.1) is, in two dimensions
    return np.array([resized(volume.astype(np.float64), box) * mask for volume in volumes], dtype=np.float32)


SLICES = References(starting_volumes, update_volumes, None)
