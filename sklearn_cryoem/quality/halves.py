"""One class through its particles: sums over two halves of them, and what these say of signal and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sklearn_cryoem.manifold.blocks import FeatureLayout
from sklearn_cryoem.manifold.classes import wiener_ridge
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import HalfPlane, images_from_features

Float64 = NDArray[np.float64]


@dataclass(frozen=True)
class ClassSums:
    """Sums over the two halves of a class, its particles with even and with odd place in it.

    Attributes
    ----------
    cross : ndarray of shape (2, P)
        Sum of c y.
    gram : ndarray of shape (2, P)
        Sum of c^2.
    power : ndarray of shape (S,)
        Sum of y^2 over each shell.
    n_images : int
        Particles.
    layout : FeatureLayout
        Which feature lies in which shell.
    """

    cross: Float64
    gram: Float64
    power: Float64
    n_images: int
    layout: FeatureLayout

    @property
    def per_shell(self) -> Float64:
        """Independent features of each shell; (S,)."""
        return self.layout.shell_sizes * self.layout.information

    @property
    def mean_ctf2(self) -> Float64:
        """Mean of c^2 over the particles and the features of a shell; (S,)."""
        total = self.layout.sum_shells(self.gram.sum(axis=0))
        return np.asarray(total / (self.n_images * self.layout.shell_sizes))

    def signal(self) -> Float64:
        """Power of the signal, by shell, without the bias of noise, Eq. (6.1); (S,), negative by chance."""
        layout = self.layout
        weight = layout.sum_shells(self.gram[0] * self.gram[1])
        shared = layout.sum_shells(self.cross[0] * self.cross[1])
        return np.asarray(np.divide(shared, weight, out=np.zeros_like(shared), where=weight > 0))

    def noise(self) -> Float64:
        """Power of the noise of one image by shell, Eq. (6.2); (S,)."""
        mean = self.power / (self.n_images * self.layout.shell_sizes)
        explained = np.maximum(self.signal(), 0.0) * self.mean_ctf2
        return np.asarray(np.maximum(mean - explained, 1e-3 * mean))

    def correlation(self) -> Float64:
        """Correlation of the averages of the two halves by ring, from ring 0; (S + 1,)."""
        layout = self.layout
        one, other = self._average(0), self._average(1)
        shared = layout.sum_shells(one * other)
        norm = np.sqrt(layout.sum_shells(one**2) * layout.sum_shells(other**2))
        curve = np.divide(shared, norm, out=np.zeros_like(shared), where=norm > 0)
        return np.concatenate([[1.0], curve])

    def images(self, plane: HalfPlane) -> NDArray[np.float32]:
        """Averages of the first half, the second half and of all; (3, D, D)."""
        features = np.stack([self._average(0), self._average(1), self._average(None)]).astype(np.float32)
        return images_from_features(features.view(np.complex64), plane)

    def _average(self, half: int | None) -> Float64:
        """CTF-corrected average, Wiener filtered by the signal of both halves, Eq. (3.6); (P,)."""
        cross = self.cross.sum(axis=0) if half is None else self.cross[half]
        gram = self.gram.sum(axis=0) if half is None else self.gram[half]
        ridge = wiener_ridge(self.signal(), self.noise())  # (S,)
        return np.asarray(cross / (gram + ridge[self.layout.shell]))


def class_sums(stack: ParticleStack, plane: HalfPlane, mask_diameter: float | None) -> ClassSums:
    """Read the particles of one class once, aligned and masked, and add them up.

    Parameters
    ----------
    stack : ParticleStack
        The particles of the class; those without poses are taken as aligned.
    plane : HalfPlane
        Frequencies used.
    mask_diameter : float or None
        As in `FeatureBlocks`.
    """
    blocks = FeatureBlocks(stack, plane, mask_diameter, cache_bytes=0)
    layout = blocks.layout
    cross, gram = np.zeros((2, layout.n_features)), np.zeros((2, layout.n_norms))
    power = np.zeros(layout.n_shells)
    for index in range(len(blocks)):
        block = blocks.load(index, layout.n_shells)
        power += block.power.sum(axis=0)
        for half in (0, 1):  # blocks begin at even rows
            rows = slice(half, None, 2)
            cross[half] += block.data[rows].sum(axis=0, dtype=np.float64)
            gram[half] += (
                float(len(block.data[rows]))
                if block.norm is None
                else block.norm[rows].sum(axis=0, dtype=np.float64)
            )
    return ClassSums(cross, gram[:, layout.norm_index], power, len(stack), layout)
