"""Where an alignment stands: all that its next step depends on, and what comes out in the end."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem._core.em import RandomTuple, random_tuple
from sklearn_cryoem.alignment.maximisation import Statistics
from sklearn_cryoem.alignment.model import AlignmentModel
from sklearn_cryoem.physics.fourier import Float64
from sklearn_cryoem.physics.polar import PolarGrid

Rows = NDArray[np.int64]
Candidate = tuple[AlignmentModel, Float64]


@dataclass(frozen=True)
class FittedAlignment:
    """Outcome of `fit_alignment`.

    Attributes
    ----------
    model : AlignmentModel
        The last model.
    statistics : Statistics
        Sums of the last pass, in the frames of the model's references.
    grid : PolarGrid
        Polar grid of these sums.
    evidence : ndarray of shape (n_iter,)
        Mean log evidence of an image in each full pass, against noise alone.
    likelihood : ndarray of shape (n_iter,)
        The same and the mean log likelihood of noise alone, up to the rings in use.
    resolved : ndarray of shape (n_iter,), int
        Last ring that the best reference resolves after each full pass.
    n_iter : int
        Full passes made.
    converged : bool
        Whether the passes stopped of themselves.
    changed : float
        Fraction of the images whose reference or pose changed in the last pass.
    interrupted : bool
        Whether Ctrl-C ended it.
    """

    model: AlignmentModel
    statistics: Statistics
    grid: PolarGrid
    evidence: Float64
    likelihood: Float64
    resolved: NDArray[np.int64]
    n_iter: int
    converged: bool
    changed: float
    interrupted: bool = False


@dataclass(frozen=True)
class OnlineState:
    """Where mini-batches stand: all that the next one depends on.

    Attributes
    ----------
    candidates : tuple of (AlignmentModel, ndarray of shape (n_images, 2))
        Models of the starts that are done, and the shifts of the images that they came to.
    drawn_with : tuple
        State of the generator before the batches of this start were drawn.
    rng : tuple
        Its state now.
    number : int
        Batches done.
    model, stats, broad
        As they go from batch to batch.
    shift_px : ndarray of shape (n_images, 2) or None
        Shifts that the images are brought into next; None for the known ones.
    """

    candidates: tuple[Candidate, ...]
    drawn_with: RandomTuple
    rng: RandomTuple
    number: int
    model: AlignmentModel
    stats: Statistics | None
    broad: bool
    shift_px: Float64 | None = None

    @classmethod
    def before(
        cls, model: AlignmentModel, rng: np.random.RandomState, candidates: tuple[Candidate, ...] = ()
    ) -> OnlineState:
        """Before the first batch; nothing is known, so posteriors will be broad."""
        drawn_with = random_tuple(rng)
        return cls(candidates, drawn_with, drawn_with, 0, model, None, broad=True)


@dataclass(frozen=True)
class PassState:
    """Where full passes stand.

    Attributes
    ----------
    model : AlignmentModel
        For the next pass.
    stats : Statistics or None
        Sums of the last pass, in the frames of the model's references.
    evidence, likelihood, resolved : lists
        As in `FittedAlignment`.
    k_max : float
        Resolution of the last pass.
    label, best_angle : ndarrays of shape (n_images,), int, or None
        What the last pass found.
    lies_px : ndarray of shape (n_images, 2) or None
        The shift of each image by it.
    broad : bool
        Whether its posteriors were.
    changed : float
        Part of the images that it changed.
    converged : bool
        Whether no further pass is needed.
    scale : ndarray of shape (n_images,) or None
        Intensities of the images.
    shift_px : ndarray of shape (n_images, 2) or None
        Shifts that they are brought into next; None for the known ones.
    """

    model: AlignmentModel
    stats: Statistics | None = None
    evidence: list[float] = field(default_factory=list)
    likelihood: list[float] = field(default_factory=list)
    resolved: list[int] = field(default_factory=list)
    k_max: float = 0.0
    label: Rows | None = None
    lies_px: Float64 | None = None
    best_angle: Rows | None = None
    broad: bool = False
    changed: float = 1.0
    converged: bool = False
    scale: Float64 | None = None
    shift_px: Float64 | None = None
