"""Images whose Fourier transform is known: sums of Gaussian blobs."""

import numpy as np
import pytest

# x, y (pixels from the centre pixel, as a fraction of the box), standard deviation (fraction), height
BLOBS = np.array(
    [(0.0, 0.0, 0.05, 1.0), (0.17, 0.04, 0.035, 1.5), (-0.05, -0.16, 0.03, 2.0), (-0.12, 0.11, 0.025, 1.0)]
)


def _blob_image(box, turn_rad=0.0, move_px=(0.0, 0.0), width=1.0):
    """An asymmetric image: turned about the centre pixel from x towards y, then moved by (x, y) pixels."""
    axis = np.arange(box) - box // 2
    cos, sin = np.cos(turn_rad), np.sin(turn_rad)
    image = np.zeros((box, box))
    for x, y, sd, height in BLOBS * [box, box, box, 1.0]:
        px, py = cos * x - sin * y + move_px[0], sin * x + cos * y + move_px[1]
        image += height * np.exp(
            -((axis[None, :] - px) ** 2 + (axis[:, None] - py) ** 2) / (2.0 * (width * sd) ** 2)
        )
    return image.astype(np.float32)


def _direct_transform(images, kx, ky):
    """Eq. (1.1) about the centre pixel as the plain sum over pixels; kx, ky (n_images, J)."""
    box = images.shape[-1]
    axis = np.arange(box) - box // 2
    along_x = np.exp(-2j * np.pi * kx[..., None] * axis / box)  # (n_images, J, D)
    along_y = np.exp(-2j * np.pi * ky[..., None] * axis / box)
    return np.einsum("iyx,ijx,ijy->ij", images.astype(float), along_x, along_y) / box


@pytest.fixture
def blob_image():
    return _blob_image


@pytest.fixture
def direct_transform():
    return _direct_transform
