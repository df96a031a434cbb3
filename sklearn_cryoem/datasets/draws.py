"""What is drawn for simulated particles.

The truth: view, pose, structure, junk; and what images show besides particles: noise and what automatic
pickers bring along.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import fft, ndimage

from sklearn_cryoem.physics.fourier import Float32, Float64, rfft_weights

# views: von Mises-Fisher caps round directions at right angles, as surfaces that hold a particle
POLE_SHARES = (0.75, 0.25)  # of the views that prefer a direction
POLE_SPREAD_RAD = np.radians(20.0)  # standard deviation of the tilt away from the pole along each axis

# picks: most near the centre, some anywhere in the disc that the picker searched
SHARE_OF_SLOPPY_PICKS = 0.15
PICK_SD = 0.3  # of the longest distance, along each axis, for all others

# neighbours: distances between centres in diameters of the particle
NEIGHBOUR_REACH = 0.6  # beyond touching: what is farther does not reach into a box of usual size
CLUMP_REACH = (0.5, 0.75)  # of the others in a clump, from the middle of the box

NOISE_KINDS = ("white", "coloured")
JUNK_KINDS = ("noise", "ice", "edge", "off_centre")


def random_directions(n: int, rng: np.random.Generator) -> Float64:
    """Unit vectors, uniform on the sphere; (n, 3)."""
    directions = rng.standard_normal((n, 3))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _euler_angles(directions: Float64) -> dict[str, Float64]:
    """Columns of RELION's rot and tilt of unit view directions."""
    rot = np.arctan2(directions[:, 1], directions[:, 0])
    return {"rot_rad": rot, "tilt_rad": np.arccos(np.clip(directions[:, 2], -1.0, 1.0))}


def uniform_directions(n_views: int, rng: np.random.Generator) -> Float64:
    """Quasi-uniform unit vectors on the whole sphere: a Fibonacci spiral turned at random; (n_views, 3)."""
    index = np.arange(n_views) + 0.5
    z = 1.0 - 2.0 * index / n_views
    azimuth = np.pi * (1.0 + np.sqrt(5.0)) * index
    ring = np.sqrt(1.0 - z**2)
    spiral = np.column_stack([ring * np.cos(azimuth), ring * np.sin(azimuth), z])
    turn, upper = np.linalg.qr(rng.standard_normal((3, 3)))
    return spiral @ (turn * np.sign(np.diag(upper))).T


def draw_truth(
    n_samples: int,
    rng: np.random.Generator,
    *,
    n_views: int | None,
    in_plane: bool,
    max_shift: float,
    side: float,
    weights: Float64,
    junk_fraction: float,
    directions: Float64 | None = None,
    shift: Float64 | None = None,
) -> pd.DataFrame:
    """Draw view, in-plane angle, shift, structure and junk of every particle.

    Parameters
    ----------
    n_samples : int
        Number of particles.
    rng : numpy.random.Generator
        Source of all draws.
    n_views : int or None
        Number of fixed view directions; None draws a direction for every particle.
    in_plane : bool
        Whether particles are turned in the plane at random; otherwise the angle is 0.
    max_shift : float
        Shifts are uniform in a disc of this radius, in Angstrom.
    side : float
        Side of the box in Angstrom; particles off centre are 0.35 to 0.5 of it away.
    weights : ndarray of shape (n_structures,)
        Probability of each structure.
    junk_fraction : float
        Probability that a particle is junk; each kind is as likely.
    directions : ndarray of shape (n_samples, 3), optional
        Unit view directions, instead of drawing them.
    shift : ndarray of shape (n_samples, 2), optional
        Shifts in Angstrom, instead of drawing them.

    Returns
    -------
    truth : DataFrame of n_samples rows
        See `make_particles`.
    """
    directions = random_directions(n_samples, rng) if directions is None else directions
    view = np.full(n_samples, -1)
    if n_views is not None:
        view = rng.integers(n_views, size=n_samples)
        directions = uniform_directions(n_views, rng)[view]
    angle = rng.uniform(0.0, 2.0 * np.pi, n_samples) if in_plane else np.zeros(n_samples)
    shift = disc(rng, n_samples, 0.0, max_shift) if shift is None else shift.copy()
    structure = rng.choice(len(weights), size=n_samples, p=weights)
    is_junk = rng.random(n_samples) < junk_fraction
    kind = np.where(is_junk, np.array(JUNK_KINDS)[rng.integers(len(JUNK_KINDS), size=n_samples)], "")
    far = disc(rng, n_samples, 0.35 * side, 0.5 * side)
    off_centre = kind == "off_centre"
    shift[off_centre] = far[off_centre]
    blank = is_junk & ~off_centre  # nothing of the particle is in these images
    directions = np.where(blank[:, None], np.nan, directions)
    angle[blank], shift[blank] = 0.0, 0.0
    view[is_junk], structure[blank] = -1, -1
    return pd.DataFrame(
        {
            "view_x": directions[:, 0],
            "view_y": directions[:, 1],
            "view_z": directions[:, 2],
            "view": view,
            **_euler_angles(directions),
            "angle_rad": angle,
            "shift_x": shift[:, 0],
            "shift_y": shift[:, 1],
            "structure": structure,
            "is_junk": is_junk,
            "junk_kind": kind,
        }
    )


def draw_views(n_samples: int, rng: np.random.Generator, poles: Float64, preferred: float) -> Float64:
    """View directions (n_samples, 3), a share of them near `poles`, unit rows, by `POLE_SHARES`."""
    uniform = random_directions(n_samples, rng)
    pole = rng.choice(len(poles), size=n_samples, p=POLE_SHARES)
    concentration = POLE_SPREAD_RAD**-2
    u, azimuth = rng.random(n_samples), rng.uniform(0.0, 2.0 * np.pi, n_samples)
    # the von Mises-Fisher distribution by the inverse of its cosine's distribution function, Eq. (7.1)
    cosine = 1.0 + np.log(u + (1.0 - u) * np.exp(-2.0 * concentration)) / concentration
    sine = np.sqrt(np.clip(1.0 - cosine**2, 0.0, None))
    frame = np.stack([np.linalg.svd(axis[None])[2] for axis in poles])[pole]  # rows: the pole and two across
    frame[:, 0] = poles[pole]
    local = np.column_stack([cosine, sine * np.cos(azimuth), sine * np.sin(azimuth)])
    near = np.einsum("ni,nij->nj", local, frame)
    return np.where(rng.random(n_samples)[:, None] < preferred, near, uniform)


def view_density(directions: Float64, poles: Float64, preferred: float) -> Float64:
    """Density of `draw_views` at unit directions (n, 3), relative to uniform views, Eq. (7.1)."""
    concentration = POLE_SPREAD_RAD**-2
    away = directions @ poles.T - 1.0  # (n, n_poles)
    caps = 2.0 * concentration / -np.expm1(-2.0 * concentration) * np.exp(concentration * away)
    return (1.0 - preferred) + preferred * (caps @ np.array(POLE_SHARES))


def draw_picks(n_samples: int, rng: np.random.Generator, longest: float) -> Float64:
    """Shifts (n_samples, 2) of picks: a normal distribution cut at `longest`, and a share uniform within."""
    sloppy = disc(rng, n_samples, 0.0, longest)
    u, azimuth = rng.random(n_samples), rng.uniform(0.0, 2.0 * np.pi, n_samples)
    beyond = np.exp(-0.5 / PICK_SD**2)  # what the cut takes away
    radius = longest * PICK_SD * np.sqrt(-2.0 * np.log(1.0 - u * (1.0 - beyond)))
    close = radius[:, None] * np.column_stack([np.cos(azimuth), np.sin(azimuth)])
    return np.where(rng.random(n_samples)[:, None] < SHARE_OF_SLOPPY_PICKS, sloppy, close)


def draw_second_picks(truth: pd.DataFrame, rng: np.random.Generator, share: float) -> NDArray[np.intp]:
    """Row of the particle that each pick shows: its own; for a share of good ones, that before it."""
    micrograph, is_junk = truth["micrograph"].to_numpy(), truth["is_junk"].to_numpy()
    again = rng.random(len(truth)) < share
    again[:1] = False
    again[1:] &= (micrograph[1:] == micrograph[:-1]) & ~is_junk[1:] & ~is_junk[:-1]
    again[1:] &= ~again[:-1]  # twice, not more often
    return np.arange(len(truth)) - again


def draw_places(truth: pd.DataFrame, rng: np.random.Generator, box: int, pixel_size: float) -> pd.DataFrame:
    """RELION's columns of where picks are: particles stand in a loose grid, and picks miss their centres."""
    micrograph, particle = truth["micrograph"].to_numpy(), truth["particle"].to_numpy()
    number = np.unique(particle, return_inverse=True)[1]
    number -= number[np.searchsorted(micrograph, micrograph)]  # from 0 in each micrograph
    n_columns = int(np.ceil(np.sqrt(number.max() + 1)))
    loose = rng.uniform(0.375, 0.625, (len(truth), 2))[particle]
    centre = box * (np.column_stack([number % n_columns, number // n_columns]) + loose)
    x, y = (centre + truth[["shift_x", "shift_y"]].to_numpy() / pixel_size).T.round(3)
    session = f"{rng.integers(16**6):06x}"  # two sessions share no micrograph
    return pd.DataFrame(
        {
            "rlnMicrographName": [f"micrographs/{session}_{i + 1:04d}.mrc" for i in micrograph],
            "rlnCoordinateX": x,
            "rlnCoordinateY": y,
            "rlnMicrographPixelSize": pixel_size,
        }
    )


def draw_neighbours(
    truth: pd.DataFrame, rng: np.random.Generator, crowding: float, diameter_px: Float64, pixel_size: float
) -> pd.DataFrame:
    """Draw the other particles in the boxes: of the same kind, in a view of their own, at whole pixels."""
    structure = truth["structure"].to_numpy()
    clump = truth["junk_kind"].to_numpy() == "off_centre"
    count = np.where(structure >= 0, rng.poisson(crowding, len(truth)), 0)
    count[clump] = rng.integers(1, 3, size=np.count_nonzero(clump))
    row = np.repeat(np.arange(len(truth)), count)
    diameter = diameter_px[structure[row]][:, None]
    particle = -truth[["shift_x", "shift_y"]].to_numpy()[row] / pixel_size  # where it stands in its image
    place = particle + diameter * disc(rng, len(row), 1.0, 1.0 + NEIGHBOUR_REACH)
    # those of a clump stand round the middle, on the other side of it than the particle
    azimuth = np.arctan2(particle[:, 1], particle[:, 0]) + rng.uniform(0.5 * np.pi, 1.5 * np.pi, len(row))
    around = rng.uniform(*CLUMP_REACH, (len(row), 1)) * diameter
    around = around * np.column_stack([np.cos(azimuth), np.sin(azimuth)])
    x, y = np.rint(np.where(clump[row, None], around, place)).astype(np.int64).T
    return pd.DataFrame(
        {
            "row": row,
            "x_px": x,
            "y_px": y,
            **_euler_angles(random_directions(len(row), rng)),
            "angle_rad": rng.uniform(0.0, 2.0 * np.pi, len(row)),
            "shift_x": 0.0,
            "shift_y": 0.0,
            "structure": structure[row],
            "contrast": truth["contrast"].to_numpy()[row],
        }
    )


def disc(rng: np.random.Generator, n: int, inner: float, outer: float) -> Float64:
    """Points (n, 2) uniform in the ring between two radii."""
    azimuth = rng.uniform(0.0, 2.0 * np.pi, n)
    radius = np.sqrt(rng.uniform(inner**2, outer**2, n))
    return np.column_stack([radius * np.cos(azimuth), radius * np.sin(azimuth)])


def frequencies(box: int) -> Float64:
    """Cycles a pixel of every entry of an rfft2; (D, D // 2 + 1)."""
    return np.hypot(np.fft.fftfreq(box)[:, None], np.fft.rfftfreq(box)[None, :])


def coloured_power(box: int) -> Float64:
    """Power of the coloured noise at every frequency of an rfft2, shape (D, D // 2 + 1).

    P(f) is proportional to 0.5 + 3 exp(-f / 0.06), f in cycles a pixel: a floor from counting, and a rise
    towards low frequencies from ice and background. Normalised to a mean of 1 over all frequencies, so that
    each pixel has variance 1.
    """
    return unit_variance(0.5 + 3.0 * np.exp(-frequencies(box) / 0.06), box)


def unit_variance(power: Float64, box: int) -> Float64:
    """Powers (..., D, D // 2 + 1) scaled so that each pixel has variance 1."""
    return power * (box**2 / (power * rfft_weights(box)).sum(axis=(-2, -1), keepdims=True))


def draw_noise(rng: np.random.Generator, n_images: int, box: int, power: Float64 | None = None) -> Float32:
    """Images of independent noise of mean 0 and a given power, white of variance 1 by default.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws.
    n_images, box : int
        Number of images, and their side in pixels.
    power : ndarray of shape (D, D // 2 + 1) or (n_images, D, D // 2 + 1), optional
        At every frequency of an rfft2.

    Returns
    -------
    images : ndarray of shape (n_images, box, box), float32
    """
    images = rng.standard_normal((n_images, box, box), dtype=np.float32)
    if power is not None:
        gain = np.sqrt(power).astype(np.float32)
        spectrum = fft.rfft2(images, axes=(-2, -1), workers=1)
        images = fft.irfft2(spectrum * gain, s=(box, box), axes=(-2, -1), workers=1)
    return images


def junk_image(kind: str, box: int, rng: np.random.Generator) -> Float32:
    """What a junk image shows besides noise, in units of the noise's standard deviation; (box, box).

    Parameters
    ----------
    kind : {"noise", "ice", "edge", "off_centre"}
        "noise" shows nothing, "ice" one to four bright blobs, "edge" a step across the field, as at the rim
        of a carbon hole. "off_centre" shows nothing here: its particle comes from its pose.
    box : int
        Side in pixels.
    rng : numpy.random.Generator
        Draws sizes, heights and places.
    """
    axis = (np.arange(box) - box // 2).astype(np.float64)
    x, y = axis[None, :], axis[:, None]
    image = np.zeros((box, box))
    if kind == "ice":
        for _ in range(rng.integers(1, 5)):
            centre = rng.uniform(-0.45 * box, 0.45 * box, size=2)
            sd = rng.uniform(0.04, 0.12) * box
            image += rng.uniform(2.0, 6.0) * np.exp(
                -0.5 * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / sd**2
            )
    elif kind == "edge":
        angle = rng.uniform(0.0, 2.0 * np.pi)
        distance = x * np.cos(angle) + y * np.sin(angle) - rng.uniform(-0.25, 0.25) * box
        image += rng.uniform(1.5, 3.0) * 0.5 * (1.0 + np.tanh(distance / 2.0))
    return image.astype(np.float32)


def grainy_junk_image(kind: str, box: int, rng: np.random.Generator) -> Float32:
    """As `junk_image`, with the sharp outlines, the grain and the fringes that real contaminants have.

    "ice" shows one to three lumps of irregular outline, 0.06 to 0.2 of the box in radius, anywhere; "edge"
    carbon of more grain than ice, whose rim has a fringe.
    """
    axis = (np.arange(box) - box // 2).astype(np.float64)
    x, y = axis[None, :], axis[:, None]
    inside = np.zeros((box, box))
    if kind == "ice":
        for _ in range(rng.integers(1, 4)):
            x_0, y_0 = rng.uniform(-0.5 * box, 0.5 * box, size=2)
            azimuth = np.arctan2(y - y_0, x - x_0)
            radius = rng.uniform(0.06, 0.2) * box
            for order in (2, 3, 5):  # lumps are not round
                radius = radius * (1.0 + rng.uniform(0.0, 0.25) * np.cos(order * azimuth + rng.uniform(0, 7)))
            inside = np.maximum(inside, rng.uniform(0.5, 1.0) * _step(radius - np.hypot(x - x_0, y - y_0)))
    elif kind == "edge":
        angle = rng.uniform(0.0, 2.0 * np.pi)
        inside = _step(x * np.cos(angle) + y * np.sin(angle) - rng.uniform(-0.25, 0.25) * box)
    else:
        return np.zeros((box, box), dtype=np.float32)
    grain = ndimage.gaussian_filter(rng.standard_normal((box, box)), 1.0) * 3.5  # about 1 in a pixel
    # phase contrast: what is wide shows by its rim, bright inside and dark outside
    seen = inside - 0.7 * ndimage.gaussian_filter(inside, 0.08 * box)
    height = rng.uniform(2.0, 6.0) if kind == "ice" else rng.uniform(1.5, 3.0)
    return (height * seen + (0.3 * height) * inside * grain).astype(np.float32)


def _step(distance: Float64) -> Float64:
    """From 0 outside to 1 inside, over about two pixels."""
    return 0.5 * (1.0 + np.tanh(distance))
