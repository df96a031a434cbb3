"""Classes and poses of images under a fitted model, refined between the points of the grid, Eq. (4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.parallel import even_blocks
from sklearn_cryoem.alignment.expectation import Posterior
from sklearn_cryoem.alignment.features import FeatureCache, ImageFeatures, SharedFeatures
from sklearn_cryoem.alignment.frames import Frames, to_image_frame
from sklearn_cryoem.alignment.model import AlignmentModel, log_noise_likelihood
from sklearn_cryoem.alignment.passes import placed_rows
from sklearn_cryoem.alignment.prepared import IMAGES_PER_BLOCK, PlacedRows, PreparedSearch, searched
from sklearn_cryoem.alignment.search import AlignmentSettings, SearchSpace
from sklearn_cryoem.physics.fourier import Complex64, Float32, Float64
from sklearn_cryoem.physics.polar import angular_orders, even_orders, from_angular_orders, translation_phase

Int = NDArray[np.int64]

FINE_POINTS = 7  # per axis of the local grid, which spans one step of the search to each side
REFINEMENT_ROUNDS = 2
MAX_PLACING_RINGS = 8.0  # that count, of the search of all the reach: a shift to a third of their period
FOLLOW_FROM = 0.5  # of the range of a search: images found further out are followed


@dataclass(frozen=True)
class ImagePoses:
    """Class and pose of every image.

    Attributes
    ----------
    label : ndarray of shape (n_images,), int
        Most probable class.
    angle_rad : ndarray of shape (n_images,)
        In-plane angle psi in [0, 2 pi).
    shift_px : ndarray of shape (n_images, 2)
        (x, y) that, added to the image's content, centres it.
    mirrored : ndarray of shape (n_images,), bool
        Whether the centred image is mirrored before it is turned, as in `Poses`.
    log_evidence : ndarray of shape (n_images,)
        log p(image) / p(image | noise alone).
    class_posterior : ndarray of shape (n_images,)
        Posterior of the class, over all shifts and angles.
    log_noise : ndarray of shape (n_images,)
        log p(image | noise alone), Eq. (1.3), up to the resolution limit.
    reference : ndarray of shape (n_images,), int
        Most probable reference.
    """

    label: Int
    angle_rad: Float64
    shift_px: Float64
    mirrored: NDArray[np.bool_]
    log_evidence: Float64
    class_posterior: Float64
    log_noise: Float64
    reference: Int

    @classmethod
    def concatenate(cls, parts: Sequence[ImagePoses]) -> ImagePoses:
        """Poses of the images of all parts, in their order."""
        names = [field.name for field in fields(cls)]
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))

    def take(self, rows: Int) -> ImagePoses:
        """Those of some images, in that order."""
        return ImagePoses(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class _Wanted(PreparedSearch):
    """A search, and what is asked of every image.

    Attributes
    ----------
    frames : Frames
        Classes of the references and their common frame.
    n_limit : int
        Rings of the likelihood.
    refine : bool
        Whether to go below the steps of the search.
    """

    frames: Frames
    n_limit: int
    refine: bool


def find_poses(
    features: SharedFeatures,
    model: AlignmentModel,
    settings: AlignmentSettings,
    *,
    frames: Frames | None = None,
    refine: bool = True,
) -> ImagePoses:
    """Class and pose of every image: the most probable cell, refined in angle and shift.

    Where poses are known, those found are the known ones and what was found round them.

    Parameters
    ----------
    features : SharedFeatures
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
    space = settings.space(features.images.box, model.k_max, model.n_orders)
    frames = Frames.identity(np.arange(len(model.weight))) if frames is None else frames
    wanted = _Wanted(
        **vars(PreparedSearch.of(features, model, space)),
        frames=frames.with_mirrors() if space.mirror else frames,
        n_limit=features.images.n_rings(settings.k_limit),
        refine=refine,
    )
    return _find(features, placed_shifts(features, model, settings), wanted)


def placed_shifts(features: SharedFeatures, model: AlignmentModel, settings: AlignmentSettings) -> Float64:
    """Shifts (n_images, 2) at which a search of all the reach, from the known ones, finds images, Eq. (4.16).

    Images of a fit are placed anew as well: they get the poses that they would get as new ones.
    """
    known_px = features.images.known.shift_px
    if settings.reach_px <= settings.max_shift_px:
        return known_px
    wide = replace(settings, max_shift_px=settings.reach_px)
    n_rings = min(settings.k_start, model.k_max, MAX_PLACING_RINGS + settings.n_ignored)
    space = wide.space(features.images.box, n_rings)
    anywhere = replace(model, shift_sigma_px=0.5 * settings.reach_px)
    wanted = _Wanted(
        **vars(PreparedSearch.of(features, anywhere, replace(space, coarse=None))),
        frames=Frames.identity(np.arange(len(model.weight) * (1 + space.mirror))),
        n_limit=space.n_rings,  # power beyond these rings need not be read
        refine=False,
    )
    found = _find(features, known_px, wanted)
    rows = np.arange(len(known_px))
    return followed_shifts(known_px, settings, rows, known_px, found.shift_px, found.log_evidence)


def followed_shifts(
    known_px: Float64,
    settings: AlignmentSettings,
    rows: Int,
    shift_px: Float64,
    found_px: Float64,
    log_evidence: Float64,
) -> Float64:
    """Shifts that all images are brought into next: those found far out are followed, Eq. (4.16).

    Parameters
    ----------
    known_px, shift_px : ndarrays of shape (n_images, 2)
        Known shifts, and those that the images were brought into.
    settings : AlignmentSettings
        Range of one search, and reach of all.
    rows : ndarray of shape (n,), int
        Images that were searched.
    found_px : ndarray of shape (n, 2)
        Shift at which each was found.
    log_evidence : ndarray of shape (n,)
        Images that noise alone explains as well are left where they are.
    """
    distance = np.hypot(*(found_px - shift_px[rows]).T)
    chosen = (log_evidence > 0.0) & (distance > FOLLOW_FROM * settings.max_shift_px)
    first = known_px[rows[chosen]]
    way = found_px[chosen] - first
    longest = max(settings.reach_px - settings.max_shift_px, 0.0)
    way *= np.minimum(1.0, longest / np.maximum(np.hypot(*way.T), 1e-12))[:, None]
    updated = shift_px.copy()
    updated[rows[chosen]] = first + way
    return updated


def _find(features: SharedFeatures, shift_px: Float64, wanted: _Wanted) -> ImagePoses:
    """Poses of all images, each brought into its shift first."""
    rows = np.arange(len(shift_px))
    return ImagePoses.concatenate(list(searched(features, _poses_of, placed_rows(rows, shift_px), wanted)))


def _poses_of(task: PlacedRows, cache: FeatureCache, wanted: _Wanted) -> ImagePoses:
    """Poses of the images of one task."""
    rows, shift_px = task
    found, done = [], 0
    for features, posterior in wanted.posteriors(cache, rows, shift_px):
        blocks = even_blocks(len(features), IMAGES_PER_BLOCK, 1)
        for block, part in zip(blocks, posterior.split(blocks), strict=True):
            some = features.take(block, wanted.space.n_rings, wanted.space.n_orders)
            mine = slice(done + block.start, done + block.stop)
            found.append(_poses_of_block(rows[mine], shift_px[mine], some, part, cache, wanted))
        done += len(features)
    return ImagePoses.concatenate(found)


def _poses_of_block(
    rows: Int,
    shift_px: Float64,
    features: ImageFeatures,
    posterior: Posterior,
    cache: FeatureCache,
    wanted: _Wanted,
) -> ImagePoses:
    frames, n_limit, model, space = wanted.frames, wanted.n_limit, wanted.model, wanted.space
    row, angle_at, label = posterior.best_row, posterior.best_angle, None
    if frames.near is not None:
        row, angle_at, label = posterior.near(frames.near, space.n_shifts)
    reference, shift = np.divmod(row, space.n_shifts)
    angle = space.angles_rad[angle_at]
    pose = to_image_frame(angle, space.shifts_px[shift])
    if wanted.refine:
        mine = wanted.values[reference]
        angle, pose = refine_poses(features, wanted.precision, mine, space, angle, pose, model.shift_sigma_px)
    angle, pose, mirrored = frames.poses(reference, angle, pose)
    final = cache.images.known.take(rows, shift_px).followed_by(angle, pose, mirrored)
    label = frames.label[reference] if label is None else label
    power = features.power if n_limit == space.n_rings else cache.power(rows, shift_px, n_limit)
    return ImagePoses(
        label,
        final.angle_rad,
        final.shift_px,
        final.mirrored,
        posterior.log_evidence,
        class_posterior(posterior, frames.label, label, space.n_shifts),
        log_noise_likelihood(power, model.noise[:n_limit], cache.images.noise_fraction, space.n_ignored),
        reference,
    )


def class_posterior(posterior: Posterior, class_of: Int, label: Int, n_shifts: int) -> Float64:
    """Posterior of each image's class, summed over its references, shifts and angles; (n_images,)."""
    own = class_of[posterior.row // n_shifts] == label[posterior.image]
    mine, others = (np.bincount(posterior.image[c], posterior.weight[c], len(label)) for c in (own, ~own))
    return np.asarray(mine / (mine + others))  # exactly 1 where all others are negligible


def without_own(posterior: Float64, nats: Float64) -> Float64:
    """Posterior of the class of each image without the nats that its own part in it adds, Eq. (4.20)."""
    mine = posterior * np.exp(-np.minimum(nats, 500.0))
    return np.asarray(mine / (mine + (1.0 - posterior)))


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
    precision : ndarray of shape (n_rings,)
        1 / noise variance.
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
    area = ((2.0 * np.pi * grid.radius).astype(np.float32) * precision)[:, None]  # (n_rings, 1)
    m = np.arange(n_orders)
    a = angular_orders(references, n_orders) * area  # (n, n_rings, n_orders)
    x = from_angular_orders(features.orders.transpose(0, 2, 1), grid.n_angles)  # (n, n_rings, n_angles / 2)
    norm = _norm_over_angles(features, references, area, n_orders)  # (n, n_orders)
    norm[:, 2] -= 0.5 * space.kappa  # Eq. (4.23)
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
    centred = product * translation_phase(space.grid, -shift_px)
    fine = translation_phase(space.grid, -offsets).reshape(len(offsets), -1)
    scale = 1.0 / product.shape[-1]  # mean over the half circle: the other half holds the same
    log = scale * (centred.reshape(len(centred), -1) @ fine.T).real.astype(np.float64)  # (n, FINE_POINTS^2)
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
