"""What automatic pickers bring along: ice, carbon edges, empty fields and particles far off centre."""

from __future__ import annotations

import numpy as np

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
