"""From the parameters of a MAPAligner and a stack to what the alignment kernels take."""

from dataclasses import dataclass, replace

import numpy as np

from sklearn_cryoem._core.memory import cache_bytes
from sklearn_cryoem._core.validation import check_choice, check_number
from sklearn_cryoem.alignment.features import FeatureSource
from sklearn_cryoem.alignment.known import KnownPoses
from sklearn_cryoem.alignment.model import CLASS_PRIORS, AlignmentSettings
from sklearn_cryoem.alignment.update import masked_references
from sklearn_cryoem.particles import CTFTable
from sklearn_cryoem.physics.masks import mask_disc
from sklearn_cryoem.physics.rotation import aligned_images

NOISE_MODELS = ("shell", "group")
REACH_FRACTION = 0.2  # of the box: longest shift
RANGE_FRACTION = 0.08  # of the box: longest shift of one search, which follows the image
SMALLEST_START = 6.0  # Fourier pixels
IMAGES_PER_REFERENCE_AND_BATCH, SMALLEST_BATCH = 4, 200
REFERENCES_PER_CLASS = 2.5
IMAGES_PER_REFERENCE = 40  # at least, where there are more references than classes


def check_parameters(aligner):
    """Raise on any parameter of the aligner that is out of range."""
    positive = {"owner": aligner, "minimum": 0, "inclusive": False}
    check_number("n_clusters", aligner.n_clusters, owner=aligner, minimum=1, integer=True)
    check_number(
        "n_references", aligner.n_references, owner=aligner, minimum=aligner.n_clusters, integer=True,
        allow_none=True,
    )  # fmt: skip
    for name in ("mask_diameter", "shift_step", "angle_step", "max_resolution"):
        check_number(name, getattr(aligner, name), **positive, allow_none=True)
    check_number("max_shift", aligner.max_shift, owner=aligner, minimum=0, allow_none=True)
    check_number(
        "angle_range", aligner.angle_range, owner=aligner, minimum=0, maximum=np.pi, allow_none=True
    )  # fmt: skip
    check_number("initial_resolution", aligner.initial_resolution, **positive)
    check_number("tau_fudge", aligner.tau_fudge, **positive)
    check_choice("class_prior", aligner.class_prior, CLASS_PRIORS, owner=aligner)
    check_choice("noise", aligner.noise, NOISE_MODELS, owner=aligner)
    check_choice("align_mirrored", aligner.align_mirrored, (True, False), owner=aligner)
    check_choice("image_scale", aligner.image_scale, (True, False), owner=aligner)
    check_number("n_init", aligner.n_init, owner=aligner, minimum=1, integer=True)
    check_number("n_batches", aligner.n_batches, owner=aligner, minimum=0, integer=True)
    check_number("batch_size", aligner.batch_size, owner=aligner, minimum=1, integer=True, allow_none=True)
    check_number("max_iter", aligner.max_iter, owner=aligner, minimum=1, integer=True)
    check_number("tol", aligner.tol, owner=aligner, minimum=0)
    check_number("adaptive_fraction", aligner.adaptive_fraction, owner=aligner, minimum=0, maximum=1)
    check_choice("warm_start", aligner.warm_start, (True, False), owner=aligner)


def number_of_references(aligner, n_images):
    """References that EM works with: as asked, or 2.5 to a class as long as there are images for them."""
    if aligner.n_references is not None:
        return int(aligner.n_references)
    most = round(REFERENCES_PER_CLASS * aligner.n_clusters)
    return int(np.clip(n_images // IMAGES_PER_REFERENCE, aligner.n_clusters, most))


def starting_point(aligner, stack, settings):
    """Model of the last fit for a warm start, or None where there was no fit.

    Parameters
    ----------
    aligner : MAPAligner
        With ``warm_start=True``.
    stack : ParticleStack
        The particles to go on with.
    settings : AlignmentSettings
        What is asked for now.
    """
    if not hasattr(aligner, "_model"):
        return None
    model = aligner._model
    box, n_references = model.references.shape[-1], len(model.references)
    if box != stack.box or aligner._pixel_size != stack.pixel_size:
        raise ValueError(
            f"MAPAligner(warm_start=True) was fitted to images of {box} pixels of {aligner._pixel_size} A; "
            f"these have {stack.box} of {stack.pixel_size} A. Bring them to the same box and pixel size, "
            "or set warm_start=False."
        )
    if n_references != settings.n_references:
        raise ValueError(
            f"MAPAligner(warm_start=True) was fitted with {n_references} references; now there would be "
            f"{settings.n_references}. Set n_references={n_references}, or warm_start=False."
        )
    if settings.angle_range_rad is not None:  # known poses are in the frame of the classes
        frames = aligner._frames
        moved = aligned_images(model.references, -frames.angle_rad, frames.shift_px, frames.mirrored)
        model = replace(model, references=masked_references(moved, settings))
    return replace(model, k_max=float(np.clip(model.k_max, settings.k_start, settings.k_limit)))


def alignment_settings(aligner, stack):
    """Lengths of the aligner in pixels and Fourier pixels of the stack."""
    unit = stack.pixel_length
    box = stack.box
    radius, edge = mask_disc(aligner.mask_diameter, box, stack.pixel_size)
    limit = float((box - 1) // 2)
    if aligner.max_resolution is not None:
        limit = float(np.clip(box * unit / aligner.max_resolution, 2.0, limit))
    start = max(box * unit / aligner.initial_resolution, SMALLEST_START)
    n_references = number_of_references(aligner, len(stack))
    reach = REACH_FRACTION * box if aligner.max_shift is None else aligner.max_shift / unit
    batch = max(SMALLEST_BATCH, IMAGES_PER_REFERENCE_AND_BATCH * n_references)
    return AlignmentSettings(
        n_references=n_references,
        mask_radius_px=radius,
        mask_edge_px=edge,
        max_shift_px=float(min(reach, RANGE_FRACTION * box)),
        reach_px=float(reach),
        k_start=float(min(start, limit)),
        k_limit=limit,
        shift_step_px=None if aligner.shift_step is None else float(aligner.shift_step / unit),
        angle_step_rad=None if aligner.angle_step is None else float(aligner.angle_step),
        tau_fudge=float(aligner.tau_fudge),
        class_prior=aligner.class_prior,
        n_init=int(aligner.n_init),
        n_batches=int(aligner.n_batches),
        batch_size=int(min(batch if aligner.batch_size is None else aligner.batch_size, len(stack))),
        max_iter=int(aligner.max_iter),
        tol=float(aligner.tol),
        adaptive_fraction=float(aligner.adaptive_fraction),
        angle_range_rad=None if aligner.angle_range is None else float(aligner.angle_range),
    )


def known_poses(stack, settings):
    """Poses of a stack round which `settings` asks to search, in pixels; None for a search of all poses."""
    if settings.angle_range_rad is None:
        return None
    if stack.poses is None:
        raise ValueError(
            "MAPAligner with angle_range searches round known poses, and this stack has none. Give them with "
            "stack.with_poses(poses), for example poses_ of a first run, or leave angle_range out."
        )
    poses = stack.poses
    return KnownPoses(poses.angle_rad, poses.shift_px(stack.pixel_size), poses.mirrored)


def feature_source(stack, settings, *, keep=True, group=None, scaled=False):
    """Polar features of a stack, read block by block.

    Parameters
    ----------
    stack : ParticleStack
        The particles.
    settings : AlignmentSettings
        Masks and resolution limit, and whether to search round the poses of the stack.
    keep : bool
        Whether features may be kept for another pass.
    group : ndarray of shape (n_images,), int, or None
        Noise group of every image, as returned by `group_codes`.
    scaled : bool
        Whether every image has an intensity of its own, 1 at first.
    """
    box, edge = stack.box, settings.mask_edge_px
    if stack.ctf is not None and stack.pixel_size is None:
        raise ValueError(
            "The stack has CTF parameters but no pixel size, so its CTF cannot be evaluated. "
            "Give ParticleStack(pixel_size=...), or drop the CTF with stack.with_ctf(None)."
        )

    return FeatureSource(
        len(stack),
        box,
        stack.read,
        None if stack.ctf is None else CTFOnRings(stack.ctf, box * stack.pixel_size),
        mask_radius_px=min(settings.mask_radius_px + settings.max_shift_px, 0.5 * box - edge),
        mask_edge_px=edge,
        k_max=settings.k_limit,
        reference_radius_px=settings.mask_radius_px + edge,
        cache_bytes=cache_bytes() if keep else 0.0,
        group=group,
        scale=np.ones(len(stack)) if scaled else None,
        known=known_poses(stack, settings),
    )


@dataclass(frozen=True)
class CTFOnRings:
    """CTF of particles at frequencies in Fourier pixels; goes with them to worker processes.

    Attributes
    ----------
    table : CTFTable
        Of all particles.
    box_angstrom : float
        Edge of their box.
    """

    table: CTFTable
    box_angstrom: float

    def __call__(self, rows, radius, azimuth):
        """CTF of `rows` (n, J) at frequencies (J,)."""
        return self.table[rows].evaluate(radius / self.box_angstrom, azimuth)


def group_codes(stack, noise_groups):
    """Noise group of every particle as its place among sorted `noise_groups`, -1 for any other; or None.

    Parameters
    ----------
    stack : ParticleStack
        The particles.
    noise_groups : ndarray of shape (n_groups,) or None
        Numbers of the groups that were fitted; None where all particles share one noise spectrum.
    """
    if noise_groups is None:
        return None
    place = np.searchsorted(noise_groups, stack.noise_group)
    place = np.minimum(place, len(noise_groups) - 1)
    return np.where(noise_groups[place] == stack.noise_group, place, -1)
