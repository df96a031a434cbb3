"""Particles as hard as those of a real session at the microscope, with the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.utils import check_random_state

from sklearn_cryoem.datasets.draws import (
    draw_neighbours,
    draw_picks,
    draw_places,
    draw_second_picks,
    draw_truth,
    draw_views,
    frequencies,
    grainy_junk_image,
    unit_variance,
    view_density,
)
from sklearn_cryoem.datasets.forward import ForwardModel, ctf_of
from sklearn_cryoem.datasets.simulate import COMMON_RANGES, check_simulation, make_images, resolve_volumes
from sklearn_cryoem.datasets.volumes import Volume, centred, diameter_angstrom
from sklearn_cryoem.particles import CTFTable, ParticleStack
from sklearn_cryoem.physics.fourier import Float32, Float64

_OWNER = "make_session"

PARTICLES_A_MICROGRAPH = 50  # on average

# optics: one microscope, aligned once; a target defocus for each micrograph, and a field that is not flat
VOLTAGE_VOLTS, CS_ANGSTROM, AMPLITUDE_CONTRAST = 300e3, 2.7e7, 0.1
DEFOCUS_SD_ANGSTROM = 150.0  # of particles within a micrograph: their height in the ice, its tilt
ASTIGMATISM_ANGSTROM, ASTIGMATISM_SD_ANGSTROM = 200.0, 40.0  # of the session; from micrograph to micrograph
ASTIGMATISM_ANGLE_SD_RAD = np.radians(6.0)

# ice: thickness relative to the session's, log-normal; noise of the ice grows with it, contrast falls. The
# median spectrum of beta-galactosidase simulated at a ratio of 0.1 lies 3.0 times above its floor at 0.11
# cycles a pixel and 1.3 times at 0.22; that of the real particles of EMPIAR-10204 3.6 and 1.2 times
THICKNESS_SD = 0.35
CONTRAST_SD = 0.15  # log-normal, from particle to particle within a micrograph
NOISE_FLOOR = 0.5  # white: counting
NOISE_RISE, NOISE_RISE_SD = 3.0, 0.3  # at frequency 0 and mean thickness; log-normal by micrograph
NOISE_DECAY, NOISE_DECAY_SD = 0.06, 0.25  # cycles a pixel; log-normal
THON_RINGS = 0.12  # what ice scatters is seen through the CTF as well: times its square


def make_session(
    volume: str | Volume | Sequence[str | Volume] = "ribosome",
    n_samples: int = 1000,
    *,
    box: int = 64,
    pixel_size: float | None = None,
    snr: float = 0.1,
    preferred_views: float = 0.55,
    max_shift: float | None = None,
    crowding: float = 0.3,
    junk_fraction: float = 0.2,
    picked_twice: float = 0.0,
    defocus: tuple[float, float] = (8000.0, 22000.0),
    path: str | Path | None = None,
    overwrite: bool = False,
    n_jobs: int | None = None,
    random_state: Any = None,
    verbose: int = 0,
) -> ParticleStack:
    """Simulate the particles of a whole session at the microscope, as hard as real ones, with the truth.

    The forward model is that of `make_particles`; what differs is what is drawn. Particles come micrograph by
    micrograph, about 50 each, from one microscope (300 kV, Cs 2.7 mm):

    - **Views** prefer two directions at right angles, three quarters of them the first: caps with a standard
      deviation of 20 degrees along each axis; the others are uniform.
    - **Picks** are off centre: along each axis a normal distribution of 0.3 `max_shift`, cut at that radius,
      and 15 % anywhere within it. The centre of every volume is moved to its centre of mass first, so that a
      true shift is the distance from the particle's own centre.
    - **Neighbours** stand in the box, at least a diameter away, cut off by its edge as real ones are.
    - **Junk** is, as often, an empty field, ice contamination, the edge of the carbon, or a clump of two or
      three particles that touch, with none in the middle.
    - **Defocus** is uniform in the range from micrograph to micrograph, with a standard deviation of 150 A
      inside one. Astigmatism is 200 A along an angle of the session, both with little jitter.
    - **Ice** differs by micrograph in thickness (log-normal, 0.35). Noise has a white floor, a rise towards
      low frequencies that grows with the thickness and has its own slope, and weak Thon rings: the ice is
      seen through the CTF. The signal is weaker by the root of the thickness.
    - **Contrast** varies besides from particle to particle (log-normal, 0.15); no CTF knows of it.

    Images are cut out of a field twice as wide, so rings of the CTF leave the box and nothing wraps
    round, and are normalised as RELION does: mean 0 and standard deviation 1 farther than 0.375 of the box
    from the centre.

    Parameters
    ----------
    volume : str, Volume or sequence of these
        As in `make_particles`; several are as frequent each.
    n_samples : int
        Number of images.
    box : int
        Side of the images in pixels.
    pixel_size : float, optional
        In Angstrom; by default as in `make_particles`.
    snr : float
        Variance of the signal at contrast 1, over the box and averaged over particles, divided by that of the
        noise.
    preferred_views : float
        Share of the views that lie near a preferred direction; 0 makes all of them uniform.
    max_shift : float, optional
        Longest distance of a pick from the particle's centre, in Angstrom; by default an eighth of the box.
    crowding : float
        Mean number of neighbours in a box (Poisson).
    junk_fraction : float
        Probability that an image is junk.
    picked_twice : float
        Probability that a pick finds the particle of the pick before it once more, with noise of its own.
    defocus : (float, float)
        Range of the mean defocus of micrographs in Angstrom, positive is underfocus.
    path : str or Path, optional
        Write the images to this .mrcs file, block by block, and return a stack that reads them from there.
    overwrite : bool
        Whether an existing file at `path` is replaced.
    n_jobs : int, optional
        Number of workers (threads). The images are the same bits for any number.
    random_state : int, RandomState instance or None
        Seed of everything drawn.
    verbose : int
        1 shows a progress bar.

    Returns
    -------
    stack : ParticleStack
        Its ``noise_group`` is the micrograph, its ``metadata`` say where on it each pick is. Its ``truth``
        has the columns of that of `make_particles` and ``micrograph``, ``particle`` (the first row that shows
        the same one), ``contrast`` (factor of the signal, of mean square 1), ``view_density`` (of the
        particle's view, 1 where views are uniform; NaN for junk without one) and ``n_neighbours``.

    Raises
    ------
    ValueError
        If a parameter is out of range.
    FileExistsError
        If `path` exists and `overwrite` is false.

    Notes
    -----
    Four times the work of `make_particles`, and as much again for every neighbour: about 400 images of 64
    pixels a second and core.

    Examples
    --------
    >>> from sklearn_cryoem.datasets import make_session
    >>> stack = make_session("ribosome", n_samples=100, box=32, random_state=0)
    >>> len(set(stack.noise_group)), list(stack.truth.columns[-4:])
    (2, ['particle', 'contrast', 'view_density', 'n_neighbours'])
    """
    check_simulation(locals(), _RANGES, owner=_OWNER)
    given, pixel_size = resolve_volumes(volume, box, pixel_size)
    volumes = [centred(item) for item in given]
    entropy = check_random_state(random_state).randint(2**32, size=4, dtype=np.uint32)
    rng, image_seed = np.random.SeedSequence(entropy.tolist()).spawn(2)
    model = draw_session(
        volumes,
        n_samples,
        np.random.default_rng(rng),
        box=box,
        pixel_size=pixel_size,
        preferred_views=preferred_views,
        max_shift=box / 8 * pixel_size if max_shift is None else max_shift,
        crowding=crowding,
        junk_fraction=junk_fraction,
        picked_twice=picked_twice,
        defocus=defocus,
    ).scaled_to(snr)
    source = make_images(
        model, image_seed, path=path, dtype="float32", overwrite=overwrite, n_jobs=n_jobs, verbose=verbose
    )
    truth = model.truth
    return ParticleStack(
        source, pixel_size=pixel_size, ctf=model.ctf, noise_group=truth["micrograph"], truth=truth,
        metadata=draw_places(truth, np.random.default_rng(entropy), box, pixel_size),
    )  # fmt: skip


_RANGES: dict[str, dict[str, Any]] = {
    **COMMON_RANGES,
    "snr": {"minimum": 0.0, "inclusive": False},
    "preferred_views": {"minimum": 0.0, "maximum": 1.0},
    "max_shift": {"minimum": 0.0, "allow_none": True},
    "crowding": {"minimum": 0.0},
    "picked_twice": {"minimum": 0.0, "maximum": 1.0},
}


@dataclass(frozen=True, eq=False, kw_only=True)
class SessionModel(ForwardModel):
    """The forward model with neighbours, noise by micrograph, and every image normalised.

    Attributes
    ----------
    ice : DataFrame
        One row per micrograph: relative ``thickness``, and ``rise`` and ``decay`` of its noise, Eq. (7.2).
    neighbours : ForwardModel
        One row per neighbour, at the centre of its own image; its ``row`` is that of the image it stands in,
        and ``x_px, y_px`` where.
    """

    ice: pd.DataFrame
    neighbours: ForwardModel

    def shown(self, rows: np.ndarray) -> Float32:
        """Particles and their neighbours, cut off at the edge of the box; (n_rows, D, D)."""
        images = np.ascontiguousarray(self.cropped(self.wide_signal(rows)))
        self._add_neighbours(images, rows)
        return images

    def _add_neighbours(self, images: Float32, rows: np.ndarray) -> None:
        table = self.neighbours.truth
        which = np.flatnonzero(np.isin(table["row"], rows))
        if not len(which):
            return
        wide = replace(self.neighbours, scale=self.scale).wide_signal(which)  # (n, 2 D, 2 D)
        padded = np.pad(wide, ((0, 0), (1, 1), (1, 1)))  # beyond lies nothing
        axis = np.arange(self.box) - self.box // 2 + self.box + 1
        x, y = (
            np.clip(axis - table[name].to_numpy()[which, None], 0, 2 * self.box + 1)
            for name in ("x_px", "y_px")
        )
        moved = padded[np.arange(len(which))[:, None, None], y[:, :, None], x[:, None, :]]  # (n, D, D)
        np.add.at(images, np.searchsorted(rows, table["row"].to_numpy()[which]), moved)

    def noise_power(self, rows: np.ndarray) -> Float64:
        """Floor, rise of the micrograph's ice and its Thon rings, Eq. (7.2); (n_rows, D, D // 2 + 1)."""
        micrograph = self.truth["micrograph"].to_numpy()[rows]
        first, place = np.unique(micrograph, return_index=True, return_inverse=True)[1:]
        ice = self.ice.iloc[micrograph[first]]
        f = frequencies(self.box)
        azimuth = np.arctan2(np.fft.fftfreq(self.box)[:, None], np.fft.rfftfreq(self.box))
        ctf = self.ctf[rows[first]].evaluate(f.ravel() / self.pixel_size, azimuth.ravel())
        rise, decay, thickness = (
            ice[name].to_numpy()[:, None, None] for name in ("rise", "decay", "thickness")
        )
        rings = THON_RINGS * thickness * np.square(ctf.reshape(-1, *f.shape), dtype=np.float64)
        return unit_variance(NOISE_FLOOR + rise * np.exp(-f / decay) + rings, self.box)[place]

    def contaminant(self, kind: str, rng: np.random.Generator) -> Float32:
        """Contaminants with outline and grain."""
        return grainy_junk_image(kind, self.box, rng)

    def must_be_normalised(self, rows: np.ndarray) -> NDArray[np.bool_]:
        """Every image is."""
        return np.ones(len(rows), dtype=bool)


def draw_session(
    volumes: Sequence[Volume],
    n_samples: int,
    rng: np.random.Generator,
    *,
    box: int,
    pixel_size: float,
    preferred_views: float,
    max_shift: float,
    crowding: float,
    junk_fraction: float,
    picked_twice: float,
    defocus: tuple[float, float],
) -> SessionModel:
    """Draw everything but the pixels; see `make_session`."""
    poles = np.linalg.qr(rng.standard_normal((3, 3)))[0][:2]
    micrograph = np.sort(rng.integers(max(1, round(n_samples / PARTICLES_A_MICROGRAPH)), size=n_samples))
    truth = draw_truth(
        n_samples,
        rng,
        n_views=None,
        in_plane=True,
        max_shift=max_shift,
        side=box * pixel_size,
        weights=np.full(len(volumes), 1.0 / len(volumes)),
        junk_fraction=junk_fraction,
        directions=draw_views(n_samples, rng, poles, preferred_views),
        shift=draw_picks(n_samples, rng, max_shift),
    )
    ice = _draw_ice(micrograph.max() + 1, rng)
    ctf = _draw_session_ctf(micrograph, rng, defocus)
    strength = np.exp(CONTRAST_SD * rng.standard_normal(n_samples)) / np.sqrt(
        ice["thickness"].to_numpy()[micrograph]
    )
    mean_square = np.exp(2 * CONTRAST_SD**2 + 0.5 * THICKNESS_SD**2)
    truth["micrograph"] = micrograph
    truth["particle"] = np.arange(n_samples)
    truth["contrast"] = strength / np.sqrt(mean_square)  # Eq. (7.3)
    truth["view_density"] = view_density(
        truth[["view_x", "view_y", "view_z"]].to_numpy(), poles, preferred_views
    )
    if picked_twice > 0.0:
        first = draw_second_picks(truth, rng, picked_twice)
        ctf = ctf[first]
        own = truth[["shift_x", "shift_y"]]
        truth = truth.iloc[first].reset_index(drop=True)
        truth[own.columns] = own
    diameter = np.array([diameter_angstrom(volume) for volume in volumes])
    neighbours = draw_neighbours(truth, rng, crowding, diameter / pixel_size, pixel_size)
    truth["n_neighbours"] = np.bincount(neighbours["row"], minlength=n_samples)
    others = ForwardModel(volumes, box, pixel_size, neighbours, ctf[neighbours["row"].to_numpy()], None)
    return SessionModel(volumes, box, pixel_size, truth, ctf, "session", ice=ice, neighbours=others)


def _draw_ice(n_micrographs: int, rng: np.random.Generator) -> pd.DataFrame:
    thickness = np.exp(THICKNESS_SD * rng.standard_normal(n_micrographs))
    rise = NOISE_RISE * thickness * np.exp(NOISE_RISE_SD * rng.standard_normal(n_micrographs))
    decay = NOISE_DECAY * np.exp(NOISE_DECAY_SD * rng.standard_normal(n_micrographs))
    return pd.DataFrame({"thickness": thickness, "rise": rise, "decay": decay})


def _draw_session_ctf(
    micrograph: NDArray[np.intp], rng: np.random.Generator, defocus: tuple[float, float]
) -> CTFTable:
    n_micrographs = micrograph.max() + 1
    mean = rng.uniform(*defocus, size=n_micrographs)
    split = ASTIGMATISM_ANGSTROM + ASTIGMATISM_SD_ANGSTROM * rng.standard_normal(n_micrographs)
    angle = rng.uniform(0.0, np.pi) + ASTIGMATISM_ANGLE_SD_RAD * rng.standard_normal(n_micrographs)
    return ctf_of(
        mean[micrograph] + DEFOCUS_SD_ANGSTROM * rng.standard_normal(len(micrograph)),
        np.clip(split, 0.0, None)[micrograph],
        angle[micrograph] % np.pi,
        voltage_volts=VOLTAGE_VOLTS,
        cs_angstrom=CS_ANGSTROM,
        amplitude_contrast=AMPLITUDE_CONTRAST,
    )
