"""Classes and poses of images under a fitted model, refined between the points of the grid, Eq. (4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import even_blocks
from sklearn_cryoem.alignment.expectation import Posterior
from sklearn_cryoem.alignment.features import FeatureSource, ImageFeatures
from sklearn_cryoem.alignment.known import to_image_frame
from sklearn_cryoem.alignment.model import AlignmentModel, AlignmentSettings
from sklearn_cryoem.alignment.mutual import Frames
from sklearn_cryoem.alignment.passes import PlacedRows, placed_rows, run_pass
from sklearn_cryoem.alignment.plan import IMAGES_PER_SHARD, Plan
from sklearn_cryoem.alignment.residuals import log_noise_likelihood
from sklearn_cryoem.alignment.search import SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.polar import (
    angular_orders,
    even_orders,
    from_angular_orders,
    translation_phase,
)

Int = NDArray[np.int64]

FINE_POINTS = 7  # per axis of the local grid, which spans one step of the search to each side
REFINEMENT_ROUNDS = 2
PLACING_RINGS = 8.0  # at most, of the search of all the reach: a shift to a third of their period


@dataclass(frozen=True)
class ImagePoses:
    """Class and pose of every image.

    Attributes
    ----------
    cluster : ndarray of shape (n_images,), int
        Most probable class.
    angle_rad : ndarray of shape (n_images,)
        In-plane angle psi in [0, 2 pi).
    shift_px : ndarray of shape (n_images, 2)
        (x, y) that, added to the image's content, centres it.
    log_evidence : ndarray of shape (n_images,)
        log p(image) / p(image | noise alone).
    class_posterior : ndarray of shape (n_images,)
        Posterior of the class, over all shifts and angles.
    log_noise : ndarray of shape (n_images,)
        log p(image | noise alone), Eq. (1.3), up to the resolution limit.
    mirrored : ndarray of shape (n_images,), bool
        Whether the centred image is mirrored before it is turned, as in `Poses`.
    """

    cluster: Int
    angle_rad: Float64
    shift_px: Float64
    log_evidence: Float64
    class_posterior: Float64
    log_noise: Float64
    mirrored: NDArray[np.bool_]

    @classmethod
    def concatenate(cls, parts: Sequence[ImagePoses]) -> ImagePoses:
        """Poses of the images of all parts, in their order."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def take(self, rows: Int) -> ImagePoses:
        """Those of some images, in that order."""
        return ImagePoses(*(getattr(self, field.name)[rows] for field in fields(self)))


def find_poses(
    source: FeatureSource,
    model: AlignmentModel,
    settings: AlignmentSettings,
    *,
    frames: Frames | None = None,
    refine: bool = True,
) -> ImagePoses:
    """Class and pose of every image: the most probable cell, refined in angle and shift.

    Where the source has known poses, those found are the known ones and what was found round them.

    Parameters
    ----------
    source : FeatureSource
        The images, any of the model's box, and who works on them.
    model : AlignmentModel
        A fitted model.
    settings : AlignmentSettings
        Those it was fitted with.
    frames : Frames or None
        Classes of the references and their common frame; None where each reference is a class.
    refine : bool
        Whether to go below the steps of the search.
    """
    space = settings.space(source.box, model.k_max)
    wanted = _Wanted(source.n_rings(settings.k_limit), frames, refine)
    rows = np.arange(source.n_images)
    place_images(source, model, settings)
    return _searched(source, rows, Plan.of(source, model, space), wanted)[0]


def place_images(source: FeatureSource, model: AlignmentModel, settings: AlignmentSettings) -> None:
    """Bring images to where a coarse search of all the reach finds them, from their known poses, Eq. (4.16).

    Images of a fit are placed anew as well: they get the poses that they would get as new ones.
    """
    source.shift_px = source.known.shift_px
    if settings.reach_px <= settings.max_shift_px:
        return
    wide = replace(settings, max_shift_px=settings.reach_px, adaptive_fraction=1.0)
    space = wide.space(source.box, min(settings.k_start, model.k_max, PLACING_RINGS))
    anywhere = replace(model, shift_sigma_px=0.5 * settings.reach_px)
    wanted = _Wanted(space.n_rings, None, refine=False)  # power beyond these rings need not be read
    rows = np.arange(source.n_images)
    found, lies_px = _searched(source, rows, Plan.of(source, anywhere, space), wanted)
    follow_images(source, settings, rows, lies_px, found.log_evidence)


def follow_images(
    source: FeatureSource, settings: AlignmentSettings, rows: Int, lies_px: Float64, log_evidence: Float64
) -> None:
    """Bring images that were found far out, and are told from noise, to where they lie, Eq. (4.16)."""
    told = log_evidence > 0.0
    source.follow(rows[told], lies_px[told], settings.max_shift_px, settings.reach_px)


def _searched(source: FeatureSource, rows: Int, plan: Plan, wanted: _Wanted) -> tuple[ImagePoses, Float64]:
    """Poses of some images, and the shift (n, 2) at which each lies in the frame of its reference."""
    pool = source.pool
    shared = pool.share(plan), pool.share(wanted)
    found, lies_px = zip(*pool.map(_poses_of, placed_rows(source, rows), source.shared, *shared), strict=True)
    for each in shared:
        pool.discard(each)
    return ImagePoses.concatenate(found), np.concatenate(lies_px)


@dataclass(frozen=True)
class _Wanted:
    """What is asked of every image: rings of its likelihood, frame of its pose, and how fine that is."""

    n_limit: int
    frames: Frames | None
    refine: bool


def _poses_of(
    task: PlacedRows, source: FeatureSource, plan: Plan, wanted: _Wanted
) -> tuple[ImagePoses, Float64]:
    """What `_searched` returns, of the images of one task."""
    rows = task[0]
    source.place(*task)
    source.scale = plan.scale
    found: list[ImagePoses] = []
    lies: list[Float64] = []
    done = 0
    for features, posterior in plan.posteriors(source, rows):
        shards = even_blocks(len(features), IMAGES_PER_SHARD, 1)
        for block, part in zip(shards, posterior.split(shards), strict=True):
            some = features.take(block, plan.space.n_rings, plan.space.n_orders)
            mine = rows[done + block.start : done + block.stop]
            poses, lies_px = _poses_of_shard(mine, some, part, source, plan, wanted)
            found.append(poses)
            lies.append(lies_px)
        done += len(features)
    return ImagePoses.concatenate(found), np.concatenate(lies)


def _poses_of_shard(
    rows: Int,
    features: ImageFeatures,
    posterior: Posterior,
    source: FeatureSource,
    plan: Plan,
    wanted: _Wanted,
) -> tuple[ImagePoses, Float64]:
    model, space, n_limit, frames = plan.model, plan.space, wanted.n_limit, wanted.frames
    reference, shift = np.divmod(posterior.best_row, space.n_shifts)
    angle = space.angles_rad[posterior.best_angle]
    pose = to_image_frame(angle, space.shifts_px[shift])
    noise = model.noise[:n_limit] / model.relative_precision(source.group[rows], n_limit)
    if wanted.refine:
        precision = model.precision(source.group[rows], space.n_rings)
        angle, pose = refine_poses(
            features, precision, plan.values[reference], space, angle, pose, model.shift_sigma_px
        )
    power = features.power if n_limit == space.n_rings else source.power(rows, n_limit)
    mirrored = np.zeros(len(reference), dtype=bool)
    known = source.poses(rows)
    lies_px = known.followed_by(angle, pose).shift_px
    group_of = np.arange(plan.n_references)  # each reference is a class, unless frames unite some
    if frames is not None:
        group_of = frames.group
        angle, pose, mirrored = frames.poses(reference, angle, pose)
    final = known.followed_by(angle, pose, mirrored)
    poses = ImagePoses(
        group_of[reference],
        final.angle_rad,
        final.shift_px,
        posterior.log_evidence,
        class_posterior(posterior, group_of, group_of[reference], space.n_shifts),
        log_noise_likelihood(power, noise, source.noise_fraction),
        final.mirrored,
    )
    return poses, lies_px


def find_scales(
    source: FeatureSource,
    model: AlignmentModel,
    settings: AlignmentSettings,
    *,
    unit: float | None = None,
) -> float:
    """Set the scales of `source` to the intensities of its images under a fitted model, Eq. (4.13).

    Parameters
    ----------
    source, model, settings
        As in `find_poses`.
    unit : float or None
        What this returned for the images that the model was fitted to; None for those themselves, whose mean
        becomes 1. Noise in references makes all images look weaker than they are, by this common factor.

    Returns
    -------
    unit : float
    """
    source.scale = np.ones(source.n_images)
    place_images(source, model, settings)
    space = settings.space(source.box, model.k_max)
    found = run_pass(source, np.arange(source.n_images), model, space).scale
    if found is not None:
        unit = float(found.mean()) if unit is None else unit
        source.scale = found / unit
    return 1.0 if unit is None else unit


def class_posterior(posterior: Posterior, group_of: Int, cluster: Int, n_shifts: int) -> Float64:
    """Posterior of each image's class, summed over its references, shifts and angles; (n_images,)."""
    own = group_of[posterior.row // n_shifts] == cluster[posterior.image]
    return np.asarray(np.bincount(posterior.image[own], posterior.weight[own], len(cluster)), np.float64)


def refine_poses(
    features: ImageFeatures,
    precision: Float32,
    references: Complex64,
    space: SearchSpace,
    angle_rad: Float64,
    shift_px: Float64,
    shift_sigma_px: float,
) -> tuple[Float64, Float64]:
    """Climb the log posterior of Eq. (4.2) below the steps of the grid, in shift and angle in turn.

    Parameters
    ----------
    features : ImageFeatures
        At the rings and orders of `space`.
    precision : ndarray of shape (n_rings,) or (n_images, n_rings)
        1 / noise variance, of all images or of each.
    references : ndarray of shape (n_images, n_rings, n_angles / 2)
        Reference of each image on the polar grid.
    space : SearchSpace
        Steps of the grid.
    angle_rad, shift_px : ndarrays of shape (n_images,) and (n_images, 2)
        Where to start.
    shift_sigma_px : float
        Of the shift prior, Eq. (4.1).

    Returns
    -------
    angle_rad, shift_px : ndarrays
        Never more than one step of the search from the start in a round, nor outside a window of angles.
    """
    grid, n_orders = space.grid, space.n_orders
    area = ((2.0 * np.pi * grid.radius).astype(np.float32) * precision)[..., None]  # (..., n_rings, 1)
    m = np.arange(n_orders)
    a = angular_orders(references, n_orders) * area  # (n, n_rings, n_orders)
    x = from_angular_orders(features.orders.transpose(0, 2, 1), grid.n_angles)  # (n, n_rings, n_angles / 2)
    norm = _norm_over_angles(features, references, area, n_orders)  # (n, n_orders)
    shift_steps = np.linspace(-1.0, 1.0, FINE_POINTS) * space.shift_step_px
    angle_steps = np.linspace(-1.0, 1.0, FINE_POINTS) * space.angle_step_rad
    gain = np.where(m == 0, 1.0, 2.0)
    near = np.exp(1j * m[:, None] * angle_steps)  # (n_orders, FINE_POINTS)
    for _ in range(REFINEMENT_ROUNDS):
        turned = from_angular_orders(a * np.exp(1j * m * angle_rad[:, None])[:, None, :], grid.n_angles)
        shift_px = shift_px + _shift_correction(
            x.conj() * turned, space, shift_px, shift_steps, shift_sigma_px
        )
        centred = angular_orders(x * translation_phase(grid, shift_px), n_orders)
        c = (centred.conj() * a).sum(axis=1) - norm  # (n, n_orders)
        log = ((gain * c * np.exp(1j * m * angle_rad[:, None])) @ near).real  # (n, FINE_POINTS)
        angle_rad = angle_rad + _peak(log, angle_steps)
        if space.angle_range_rad is not None:
            angle_rad = np.clip(angle_rad, -space.angle_range_rad, space.angle_range_rad)
    return angle_rad, shift_px


def _norm_over_angles(
    features: ImageFeatures, references: Complex64, area: Float32, n_orders: int
) -> Complex64:
    """Angular orders of 1/2 sum beta C^2 |A|^2, each image with its own reference, Eq. (4.4)."""
    n_even = features.ctf_power.shape[1]
    power = even_orders(references.real**2 + references.imag**2, n_even) * area  # (n, n_rings, n_even)
    norm = np.zeros((len(features), n_orders), dtype=np.complex64)
    norm[:, : 2 * n_even : 2] = 0.5 * np.einsum("ner,nre->ne", features.ctf_power.conj(), power)
    return norm


def _shift_correction(
    product: Complex64, space: SearchSpace, shift_px: Float64, steps: Float64, sigma_px: float
) -> Float64:
    """Offset (x, y) of the best shift near `shift_px`, on a fine grid and then a parabola; (n, 2)."""
    y, x = (axis.ravel() for axis in np.meshgrid(steps, steps, indexing="ij"))
    offsets = np.column_stack([x, y])  # (FINE_POINTS^2, 2)
    here = product * translation_phase(space.grid, -shift_px)
    fine = translation_phase(space.grid, -offsets).reshape(len(offsets), -1)
    scale = 2.0 / product.shape[-1] / 2.0  # two half circles, mean over n_angles
    log = scale * (here.reshape(len(here), -1) @ fine.T).real.astype(np.float64)  # (n, FINE_POINTS^2)
    moved = shift_px[:, None, :] + offsets
    log -= 0.5 * (moved**2).sum(axis=2) / sigma_px**2
    table = log.reshape(len(log), len(steps), len(steps))
    row, column = np.unravel_index(log.argmax(axis=1), table.shape[1:])
    images = np.arange(len(log))
    return np.column_stack([_peak(table[images, row], steps), _peak(table[images, :, column], steps)])


def _peak(log: Float64, steps: Float64) -> Float64:
    """Position of the maximum of each row, by a parabola through it and its neighbours; (n,)."""
    images = np.arange(len(log))
    at = np.clip(log.argmax(axis=1), 1, len(steps) - 2)
    left, middle, right = (log[images, at + d] for d in (-1, 0, 1))
    curvature = left - 2.0 * middle + right
    safe = np.where(curvature < 0.0, curvature, -1.0)
    offset = np.where(curvature < 0.0, 0.5 * (left - right) / safe, 0.0)
    peak: Float64 = steps[at] + np.clip(offset, -1.0, 1.0) * (steps[1] - steps[0])
    return peak
