"""Images at another pixel size, whatever the ratio: exact for what the new pixels can hold."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from sklearn_cryoem.physics.fourier import Float32


def resample(images: Float32, box: int, ratio: float) -> Float32:
    """Bring images to larger pixels and a box that lies within the old one, about the centre pixel.

    Each image is the trigonometric polynomial of its Fourier coefficients; those that the new pixels can hold
    are summed at the places of the new pixels, which need not be a multiple of anything. As it is a product
    of one matrix for each axis, it costs D^2 D' + D D'^2.

    Parameters
    ----------
    images : ndarray of shape (n_images, D, D)
        Real images.
    box : int
        New side D' in new pixels.
    ratio : float
        New pixel size over the old one, at least 1.

    Returns
    -------
    resampled : ndarray of shape (n_images, D', D'), float32
        White noise keeps its variance, so images of normalised background stay normalised, and the same
        particle under the same dose has the same signal-to-noise ratio at every frequency.

    Raises
    ------
    ValueError
        If the new pixels are smaller, or the new box does not lie within the old one.
    """
    old = images.shape[-1]
    if ratio < 1.0 or box < 1 or box * ratio > old * (1.0 + 1e-6):
        raise ValueError(
            f"{box} pixels that are {ratio:g} times larger do not lie within a box of {old}. Use larger "
            f"pixels and at most {int(old / max(ratio, 1.0))} of them."
        )
    matrix = _matrix(old, box, float(ratio))  # (D', D)
    along = np.matmul(images, matrix.T)  # (n_images, D, D')
    resampled: Float32 = np.matmul(matrix, along)
    return resampled


@lru_cache(maxsize=16)
def _matrix(old: int, box: int, ratio: float) -> Float32:
    """Weight of each old pixel in each new one along an axis; (D', D)."""
    place = (np.arange(box) - box // 2) * ratio + old // 2  # of the new pixels among the old ones
    if ratio == 1.0:
        return np.asarray(np.arange(old) == place[:, None], dtype=np.float32)  # a crop
    finest = int(min((old - 1) // 2, np.ceil(old / (2.0 * ratio)) - 1))
    turn = 2.0 * np.pi / old * (place[:, None] - np.arange(old))  # (D', D)
    sums = 1.0 + 2.0 * sum(np.cos(k * turn) for k in range(1, finest + 1))
    # along one axis the variance of white noise falls by the ratio: taken back by its square root
    return np.asarray(sums / old * np.sqrt(ratio), dtype=np.float32)
