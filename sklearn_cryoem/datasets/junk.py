"""What automatic pickers bring along: ice, carbon edges, empty fields and particles far off centre."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from sklearn_cryoem.physics.fourier import Float32

JUNK_KINDS = ("noise", "ice", "edge", "off_centre")


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


def _step(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 0 outside to 1 inside, over about two pixels."""
    return 0.5 * (1.0 + np.tanh(distance))
