"""Noise of groups and of images for estimators on a manifold: learnt once, remembered with the space."""

import dataclasses

import numpy as np

from sklearn_cryoem.manifold.noise import NoiseReference, RowNoise, group_noise, image_noise

N_ROUNDS = 2  # noise that differs from image to image would pass for signal in the first
NOISE_MODELS = ("white", "shell", "group", "image")


def pooling(noise):
    """How the kernels pool the variance that images have after division by their own noise, Eq. (3.4)."""
    return "white" if noise == "white" else "shell"


def noise_attributes(space, blocks):
    """Fitted attributes of a space of images or vectors and of the blocks it was fitted to."""
    noise = getattr(space, "noise", None)
    if noise is None:
        return {"noise_groups_": None, "relative_noise_": None}
    if noise.groups is None:
        return {"noise_groups_": None, "relative_noise_": blocks.noise.table[:, 0]}
    return {"noise_groups_": noise.groups, "relative_noise_": noise.relative}


@dataclasses.dataclass(frozen=True)
class NoiseOfParts:
    """Noise of groups, or of each image, in units of that of all, Eq. (3.14).

    Attributes
    ----------
    reference : NoiseReference
        What an image is compared with.
    groups : ndarray of shape (n_groups,) or None
        Numbers of the groups that were seen, ascending; None where each image is measured by itself.
    relative : ndarray of shape (n_groups, n_shells) or None
        Noise of each.
    """

    reference: NoiseReference
    groups: np.ndarray | None = None
    relative: np.ndarray | None = None

    @classmethod
    def of(cls, blocks, noise, n_jobs):
        """Measure the noise of feature blocks of a stack; `noise` is "group" or "image"."""
        known = None
        for _ in range(N_ROUNDS):
            reference = NoiseReference.of(blocks, known, n_jobs=n_jobs)
            parts = cls(reference, None if noise == "image" else np.empty(0, dtype=np.int64))
            parts = parts.extended(blocks, n_jobs)
            known = parts.of_rows(blocks, n_jobs)
        return parts

    def extended(self, blocks, n_jobs):
        """The same with the groups of more particles; those known already stay as they are."""
        if self.groups is None:
            return self
        groups = np.setdiff1d(blocks.stack.noise_group, self.groups)
        if not len(groups):
            return self
        code = np.searchsorted(groups, blocks.stack.noise_group)  # those known go into a group too many
        code[~np.isin(blocks.stack.noise_group, groups)] = len(groups)
        found = group_noise(blocks, self.reference, code, len(groups) + 1, n_jobs=n_jobs)[:-1]
        known = np.empty((0, found.shape[1])) if self.relative is None else self.relative
        groups, found = np.concatenate([self.groups, groups]), np.concatenate([known, found])
        order = np.argsort(groups)
        return dataclasses.replace(self, groups=groups[order], relative=found[order])

    def whitened(self, blocks, n_jobs=None):
        """Blocks of a stack whose images are divided by the root of their noise."""
        return blocks.whitened(self.of_rows(blocks, n_jobs))

    def of_rows(self, blocks, n_jobs=None):
        """Noise of each image of the blocks of a stack; a group never seen is taken to have that of all."""
        if self.groups is None:
            level = image_noise(blocks, self.reference, n_jobs=n_jobs)
            return RowNoise(level, np.arange(blocks.n_samples))
        place = np.searchsorted(self.groups, blocks.stack.noise_group)
        place = np.minimum(place, len(self.groups) - 1)
        is_known = self.groups[place] == blocks.stack.noise_group
        table = np.vstack([self.relative, np.ones(self.relative.shape[1])])
        return RowNoise(table, np.where(is_known, place, len(self.groups)))
