"""ProjectionClusterer: classes of particles as views of a volume, which is found with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import block_diag
from sklearn.utils import check_random_state

from sklearn_cryoem._core.memory import cache_bytes
from sklearn_cryoem._core.parallel import TaskPool
from sklearn_cryoem._core.validation import check_choice, check_number
from sklearn_cryoem.alignment.classes import AlignedClasses, aligned_classes
from sklearn_cryoem.alignment.em import PassState, fit_alignment
from sklearn_cryoem.alignment.features import SharedFeatures
from sklearn_cryoem.alignment.frames import Frames
from sklearn_cryoem.alignment.model import AlignmentModel
from sklearn_cryoem.alignment.poses import ImagePoses, find_poses
from sklearn_cryoem.estimators._common import FitTask, Path
from sklearn_cryoem.estimators.map_aligner import MAPAligner, alignment_images, search_settings
from sklearn_cryoem.estimators.model_files import CheckpointFile
from sklearn_cryoem.particles import CTFTable, ParticleStack, Poses
from sklearn_cryoem.projections.model import SLICES, SliceSettings, in_the_box, split_volumes
from sklearn_cryoem.projections.views import cell_frames, symmetry_group, view_angles
from sklearn_cryoem.projections.volumes import shell_correlation

START_ANGSTROM = 60.0  # of a random start: finer detail of it tells noise apart
MIN_START_RINGS = 5.0
STAGES = 1.0, 1.2, 1.4, 1.6, 2.0, 2.5  # resolutions of a start, in that of its random volumes
START_PASSES = 40, 40, 40, 30, 15, 8  # over the images of a start, at each of them, at most
START_IMAGES = 8000  # that a start goes over again and again
VIEW_STEPS = 1.0, 0.75  # between views of starts and of full passes: periods of the finest detail at the rim
BATCH_SIZE = 400  # images for each volume
HELD_OUT = 10  # every tenth image compares the starts
RESOLVED = 0.5  # correlation of the volumes of two half sets


class ProjectionClusterer(MAPAligner):
    """Sort particles by the views of one or several volumes, which are found from the same particles.

    The references of `MAPAligner` become the central slices of a volume, Eq. (8.1), seen from views all over
    the sphere, and its M-step the volume that explains the images best, Eq. (8.3)-(8.4). All images of all
    views then say what each view looks like, so that neither poses nor a first model are needed: a random
    volume of 60 Angstrom is the start. What is found is a beginning for a refinement elsewhere, and no more.

    Parameters
    ----------
    n_clusters : int, default=200
        Cells of views on the sphere (on the part of it that the symmetry leaves apart), for each volume.
    n_volumes : int, default=1
        Volumes: states of a particle, or several particles.
    flat : bool, default=False
        Whether one more class, the last, has no density at all: images that show no particle end there.
    symmetry : str, default="C1"
        Of all volumes: C1, C2, .., or D2, D3, .., with the main axis along z.
    mask_diameter : float or None, default=None
        Diameter of the soft ball that holds the volumes, in Angstrom (pixels where the pixel size is
        unknown). By default 0.9 of the box.
    max_shift : float or None, default=None
        Longest shift, in Angstrom (pixels where the pixel size is unknown). By default 0.2 of the box, with
        searches as in `MAPAligner`.
    max_resolution : float or None, default=None
        Finest detail used, in Angstrom (pixels where the pixel size is unknown). By default 24 Angstrom,
        which starts reach from 60. The number of views, and with it time, grows with
        its square.
    tau_fudge : float, default=2.0
        Factor on the prior variance of the volume, Eq. (8.4). Much less and the volume fades away.
    n_init : int, default=1
        Random starts. Of several, the one that gives a tenth of the images, which it did not see, the largest
        likelihood goes on: not every start finds the particle, see `start_scores_`.
    n_batches : int, default=60
        Mini-batches of each start, of 400 images for each volume. Up to 173 passes over at most 8000 images
        follow, Eq. (8.8), most of them at low resolution; each resolution ends once views stand still.
    max_iter : int, default=5
        Passes over all images after the starts, with more views, angles and shifts, at most.
    tol : float, default=0.01
        As of `MAPAligner`.
    checkpoint : path-like or None, default=None
        As of `MAPAligner`. Ctrl-C before the passes leaves no model, and with a checkpoint what was done.
    warm_start : bool, default=False
        Whether another `fit` goes on from the volumes of the last one, with full passes alone.
    n_jobs : int or None, default=None
        Number of workers. Results are the same bits for any number.
    random_state : int, RandomState instance or None, default=None
        Seed of the first volumes and of the order of the batches.
    verbose : int, default=0
        1 shows progress.

    Attributes
    ----------
    volumes_ : ndarray of shape (n_volumes, D, D, D)
        Masked densities, axes z, y, x, in the unit of a pixel of the images per pixel of depth. Their hand
        cannot be known from projections: the mirror image explains them as well.
    volume_resolution_ : ndarray of shape (n_volumes,)
        Resolution up to which volumes of two halves of the images have a correlation of 0.5, by the views
        found with all: too good where views are wrong.
    poses_ : Poses
        All three angles (`view_rad` has the first two) and the shift of every training image.
    labels_ : ndarray of shape (n_images,)
        Volume times `n_clusters` plus the cell round which most of the posterior lies, Eq. (8.7); the flat
        class comes last.
    direction_counts_ : ndarray of shape (n_volumes, n_clusters)
        Training images of each cell: the distribution of views.
    cell_angles_ : ndarray of shape (n_clusters, 2)
        rot and tilt of the centre of each cell, in radians.
    class_averages_ : ndarray of shape (n_classes, D, D)
        Averages of the images of each cell, CTF-corrected and regularised, not slices of the volume: what
        they have in common with it the images have said. The flat class has one, too.
    start_scores_ : ndarray of shape (n_init,)
        Mean log likelihood of the images held out from each start; empty for one start.
    class_sizes_, class_posterior_, log_evidence_, cluster_weights_, class_resolution_, reference_class_
        As of `MAPAligner`; the references are the views.
    resolution_, outlier_, noise_variance_, shift_sigma_, history_, log_posterior_, n_iter_
        As of `MAPAligner`.
    converged_, n_effective_clusters_, n_features_in_
        As of `MAPAligner`.

    Notes
    -----
    The work for an image grows with the views, shifts and angles of a search at `max_resolution`; with
    symmetry there are fewer views.

    Examples
    --------
    >>> from sklearn_cryoem.datasets import make_particles
    >>> from sklearn_cryoem.estimators import ProjectionClusterer
    >>> stack = make_particles("ribosome", 60, box=24, snr=1.0, max_shift=10.0, random_state=0)
    >>> model = ProjectionClusterer(12, max_shift=10.0, max_resolution=80.0, max_iter=10, random_state=0)
    >>> model = model.fit(stack)
    >>> model.volumes_.shape, model.poses_.view_rad.shape
    ((1, 24, 24, 24), (60, 2))
    """

    _references = SLICES
    _start_passes = sum(START_PASSES)
    _keeps_references = (
        "Set n_clusters, n_volumes, flat, symmetry, mask_diameter and max_resolution back to what they were"
    )
    # what `MAPAligner` has and a volume has no use for
    n_references, mirror, angle_range, class_prior = None, False, None, "estimated"

    def __init__(
        self,
        n_clusters: int = 200,
        *,
        n_volumes: int = 1,
        flat: bool = False,
        symmetry: str = "C1",
        mask_diameter: float | None = None,
        max_shift: float | None = None,
        max_resolution: float | None = None,
        tau_fudge: float = 2.0,
        n_init: int = 1,
        n_batches: int = 60,
        max_iter: int = 5,
        tol: float = 0.01,
        checkpoint: Path | None = None,
        warm_start: bool = False,
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.n_clusters = n_clusters
        self.n_volumes = n_volumes
        self.flat = flat
        self.symmetry = symmetry
        self.mask_diameter = mask_diameter
        self.max_shift = max_shift
        self.max_resolution = max_resolution
        self.tau_fudge = tau_fudge
        self.n_init = n_init
        self.n_batches = n_batches
        self.max_iter = max_iter
        self.tol = tol
        self.checkpoint = checkpoint
        self.warm_start = warm_start
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def _check_parameters(self) -> None:
        super()._check_parameters()
        for name in ("n_volumes", "n_init"):
            check_number(name, getattr(self, name), owner=self, minimum=1, integer=True)
        check_choice("flat", self.flat, (True, False), owner=self)
        symmetry_group(self.symmetry)

    def _at_work(self, stack: ParticleStack) -> ParticleStack:
        """The particles as they are: features end at the resolution of the volumes, which have their box."""
        return stack

    def _settings_for(self, stack: ParticleStack, stage: int | None = None) -> SliceSettings:
        """What the kernels take, of a stage of a start or of the passes that follow: lengths in pixels."""
        found = search_settings(
            stack,
            mask_diameter=self.mask_diameter,
            max_shift=self.max_shift,
            angle_range=None,
            max_resolution=self.max_resolution,
        )
        box, unit = stack.box, stack.pixel_length
        start = min(max(box * unit / START_ANGSTROM, MIN_START_RINGS), found.k_limit)
        limit = found.k_limit if self.max_resolution is not None else min(STAGES[-1] * start, found.k_limit)
        max_iter, fine = int(self.max_iter), stage is None
        if stage is not None:
            stage = next(i for i, step in enumerate(STAGES) if i == stage or step * start >= limit)
            start = limit = min(STAGES[stage] * start, limit)
            max_iter = START_PASSES[stage]
        step = VIEW_STEPS[fine] * box / (limit * found.mask_radius_px)  # radians
        n_views = int(np.ceil(4.0 * np.pi / step**2 / len(symmetry_group(self.symmetry))))
        n_volumes = int(self.n_volumes)
        least = n_volumes * int(self.n_clusters)
        if len(stack) < least:
            raise ValueError(
                f"{type(self).__name__} got {len(stack)} images for {least} cells of views. Ask for fewer "
                "n_clusters, or give more particles."
            )
        if fine:  # every cell has some
            n_views = max(n_views, 2 * int(self.n_clusters))
            cells = view_angles(int(self.n_clusters), self.symmetry)
            while True:
                views = view_angles(n_views, self.symmetry)
                if len(np.unique(cell_frames(views, cells, self.symmetry).label)) == len(cells):
                    break
                n_views += 1
        return SliceSettings(
            **{
                **vars(found),
                "n_references": n_volumes * n_views + bool(self.flat),
                "k_start": float(start),
                "k_limit": float(limit),
                "tau_fudge": float(self.tau_fudge),
                "n_batches": int(self.n_batches),
                "batch_size": min(BATCH_SIZE * n_volumes, len(stack)),
                "max_iter": max_iter,
                "tol": float(self.tol) if fine else 0.0,
                "n_volumes": n_volumes,
                "n_views": n_views,
                "symmetry": str(self.symmetry),
                "flat": bool(self.flat),
                "fine": fine,
            }
        )

    def _best_start(
        self, stack: ParticleStack, settings: SliceSettings, pool: TaskPool, kept: Any, task: FitTask
    ) -> tuple[AlignmentModel | None, list[Any]]:
        """Volumes of the best random start, by the images held out; they go on with more views and angles."""
        held = np.zeros(len(stack), dtype=bool)
        if self.n_init > 1:
            held[::HELD_OUT] = True
        rows = np.flatnonzero(~held)
        rows = rows[:: -(-len(rows) // START_IMAGES)]
        seen = SharedFeatures(alignment_images(stack[rows], settings), pool, cache_bytes())
        stages = [self._settings_for(stack, stage) for stage in range(len(STAGES))]
        stages = [one for one, last in zip(stages, [None, *stages], strict=False) if one != last]
        best, scores, files = None, [], []
        seeds = check_random_state(self.random_state).randint(np.iinfo(np.int32).max, size=self.n_init)
        for number, seed in enumerate(seeds):
            model = None
            for stage, coarse in enumerate(stages):
                if isinstance(kept, CheckpointFile):
                    files.append(CheckpointFile(kept.path.with_suffix(f".start{number}-{stage}.npz")))
                state, interrupted = fit_alignment(
                    seen,
                    coarse,
                    np.random.RandomState(seed),
                    start=model and model.seen_from(coarse),
                    checkpoint=files[-1] if files else None,
                    verbose=self.verbose,
                    on_step=task.step,
                    references=SLICES,
                )
                if interrupted:  # the passes that make use of it are still to come
                    raise KeyboardInterrupt
                model = state.model
            if held.any():
                unseen = SharedFeatures(alignment_images(stack[held], settings), pool)
                found = find_poses(unseen, model.seen_from(coarse), coarse, refine=False)
                scores.append(float(np.mean(found.log_evidence + found.log_noise)))
            if not scores or scores[-1] == max(scores):
                best = model
        self.start_scores_ = np.array(scores)
        return best.seen_from(settings), files

    def _united(
        self, features: SharedFeatures, state: PassState, settings: SliceSettings
    ) -> tuple[Frames, AlignedClasses, NDArray[np.float64]]:
        """Cells of the views, their averages, and the volumes of all images and of both halves."""
        angles = view_angles(settings.n_views, settings.symmetry)
        self.cell_angles_ = view_angles(int(self.n_clusters), settings.symmetry)
        cells = cell_frames(angles, self.cell_angles_, settings.symmetry)
        n_volumes, n_flat, n_cells = settings.n_volumes, int(settings.flat), len(self.cell_angles_)
        label = [cells.label + number * n_cells for number in range(n_volumes)]
        label += [np.full(n_flat, n_volumes * n_cells)]
        near = block_diag(*[cells.near] * n_volumes, np.eye(n_flat))
        frames = replace(Frames.identity(np.concatenate(label)), near=near)
        turn = np.concatenate([*[cells.angle_rad] * n_volumes, np.zeros(n_flat)])
        self._view_rad = np.concatenate([*[angles] * n_volumes, np.zeros((n_flat, 2))])
        split = split_volumes(features, state, settings)
        fraction, model = features.images.noise_fraction, state.model
        self.volumes_ = in_the_box(split.volumes, model.ball, features.images.box)
        correlation = [
            shell_correlation(*(volume * split.mask for volume in pair), split.grid.n_rings)
            for pair in zip(*split.halves, strict=True)
        ]
        below = np.column_stack([np.array(correlation) < RESOLVED, np.ones(n_volumes, dtype=bool)])
        self._resolved_rings = below.argmax(axis=1)  # the last ring before the first that is not
        classes = aligned_classes(
            split.stats, replace(frames, angle_rad=turn), model, split.grid, settings, fraction
        )
        return frames, classes, np.zeros(len(classes.mass))  # no image has much of a part in a volume

    def _store(
        self, stack: ParticleStack, state: PassState, classes: AlignedClasses, found: ImagePoses
    ) -> None:
        super()._store(stack, state, classes, found)
        del self.references_
        with np.errstate(divide="ignore"):
            self.volume_resolution_ = stack.box * stack.pixel_length / self._resolved_rings

    def _store_found(self, stack: ParticleStack, found: ImagePoses) -> None:
        super()._store_found(stack, found)
        n = int(self.n_volumes) * int(self.n_clusters)
        self.direction_counts_ = self.class_sizes_[:n].reshape(int(self.n_volumes), -1)

    def _poses(self, found: ImagePoses) -> Poses:
        return replace(super()._poses(found), view_rad=self._view_rad[found.reference])


def initial_model(
    averages: ArrayLike,
    pixel_size: float,
    *,
    sizes: ArrayLike | None = None,
    resolutions: ArrayLike | None = None,
    **options: Any,
) -> ProjectionClusterer:
    """Volume from class averages, such as those of an `SMLClusterer`: they take the place of the particles.

    Parameters
    ----------
    averages : array_like of shape (n_classes, D, D)
        CTF-corrected; leave junk out.
    pixel_size : float
        In Angstrom.
    sizes : array_like of shape (n_classes,), optional
        Particles of each class: the noise of an average falls with them. By default all weigh the same.
        Averages of no particle are left out.
    resolutions : array_like of shape (n_classes,), optional
        Resolution of each average in Angstrom, where half of its signal is taken to be left. Averages whose
        resolution is infinite or NaN hold no signal, and are left out.
    **options
        Parameters of `ProjectionClusterer`. By default there are 5 starts of 80 mini-batches, as many cells
        as averages but 100 at most, and shifts up to a twentieth of the box.

    Returns
    -------
    model : ProjectionClusterer
        Fitted to what is not left out; ``model.volumes_[0]`` is the volume.

    Raises
    ------
    ValueError
        If nothing is left.

    Examples
    --------
    >>> from sklearn_cryoem.datasets import make_particles
    >>> from sklearn_cryoem.estimators import initial_model
    >>> averages = make_particles("ribosome", 30, box=24, snr=9.0, random_state=0).read()
    >>> options = {"n_init": 1, "max_resolution": 80.0, "max_iter": 10, "random_state": 0}
    >>> initial_model(averages, 15.0, **options).volumes_.shape
    (1, 24, 24, 24)
    """
    images = np.asarray(averages, dtype=np.float32)
    n_particles = np.ones(len(images)) if sizes is None else np.asarray(sizes)
    resolution = np.zeros(len(images)) if resolutions is None else np.asarray(resolutions)
    known = (n_particles > 0) & np.isfinite(resolution)
    if not known.any():
        raise ValueError("initial_model got no average with particles and a resolution. Give better classes.")
    images, n_particles, resolution = images[known], n_particles[known], resolution[known]
    n, box = images.shape[:2]
    weight = np.sqrt(n_particles / np.mean(n_particles))
    blur = 4.0 * np.log(2.0) * np.square(resolution)
    # what multiplies an average of many particles, and fades at its resolution, is an envelope without a CTF
    envelope = CTFTable(
        **dict.fromkeys(("defocus_u_angstrom", "defocus_v_angstrom", "astigmatism_angle_rad"), np.zeros(n)),
        voltage_volts=3e5, cs_angstrom=0.0, amplitude_contrast=1.0, b_factor_angstrom2=blur, scale=weight,
    )  # fmt: skip
    scaled = (images * weight[:, None, None]).astype(np.float32)
    stack = ParticleStack(scaled, pixel_size=pixel_size, ctf=envelope).with_outliers(np.zeros(n, dtype=bool))
    chosen = {
        "n_clusters": min(n, 100), "n_init": 5, "n_batches": 80, "max_shift": 0.05 * box * pixel_size,
        **options,
    }  # fmt: skip
    return ProjectionClusterer(**chosen).fit(stack)
