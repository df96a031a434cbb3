"""From a stack to the feature blocks of the manifold kernels: mask, crop, rotate, apply the CTF.

Nothing of size n_images x n_pixels is held: the first blocks are kept in a bounded cache, the others are made
again each time they are asked for, only up to the resolution that is asked for, or kept in files.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import joblib
import numpy as np

from sklearn_cryoem._core.memory import bytes_at_once
from sklearn_cryoem._core.memory import cache_bytes as default_cache_bytes
from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem._version import __version__
from sklearn_cryoem.manifold.blocks import BLOCK_SIZE, FeatureBlock, FeatureLayout
from sklearn_cryoem.manifold.noise import RowNoise
from sklearn_cryoem.particles.feature_files import FORMAT, FeatureFiles
from sklearn_cryoem.particles.preprocess import as_made
from sklearn_cryoem.particles.stack import ParticleStack
from sklearn_cryoem.physics.ctf import electron_wavelength
from sklearn_cryoem.physics.fourier import Complex64, Float32, HalfPlane, fourier_features
from sklearn_cryoem.physics.masks import Support, mask_background, mask_disc, soft_disc
from sklearn_cryoem.physics.rotation import aligned_features, cropped_for_rotation

BLOCK_BYTES, BLOCK_SHARE = 64 * 2**20, 1 / 64  # of a block, and of the memory limit, at most; or BLOCK_SIZE
MIN_ROWS = 64  # of a block: folds and half sets are taken from each
NEGLIGIBLE_PHASE = 1e-3  # radians of CTF phase; astigmatism below it at the finest frequency is left out
PIXELS_AT_ONCE = 2**19  # prepared together: small enough for the processor's caches
AHEAD_BYTES, AHEAD_SHARE = 64 * 2**20, 1 / 64  # of images, and of the limit, read while others are worked on


class FeatureBlocks:
    """Aligned, CTF-weighted Fourier features of a stack: a `manifold.blocks.Blocks`.

    Parameters
    ----------
    stack : ParticleStack
        The images. Without poses they are taken as aligned, without a CTF it is taken as 1.
    plane : HalfPlane
        The coefficients used; of the same box.
    mask_diameter : float or None, default=None
        Diameter of the soft disc outside which the background is removed, in the unit of the stack's lengths
        (Angstrom, or pixels if the pixel size is unknown). The disc lies about the particle, not the box. By
        default 0.9 of the box.
    in_window : bool
        Whether images with a CTF are masked by a window of 0.9 of the box instead, and the layout tells where
        the particle lies: a tighter mask cuts the rings that the CTF spreads about it, Eq. (3.16).
    block_size : int
        Images of a block, at most; even. Fewer where they would take more than 64 MB, or than 1/64 of the
        memory limit.
    cache_bytes : float, optional
        Prepared features kept in memory, at most; by default as `set_memory_limit` says.
    n_ignored : int
        As of `FeatureLayout`.

    Raises
    ------
    ValueError
        If the boxes differ, the mask does not fit, or there is a CTF but no pixel size.

    Notes
    -----
    An image costs its mask, one FFT if cropping pays, one NUFFT if it is rotated, and the sines of its CTF:
    about 0.2 ms at 64 pixels and 0.9 ms at 160 pixels on one core. Columns of c^2 are the coefficients, or,
    where astigmatism is negligible, their distinct radii: fewer products, and fewer systems in the M-step.
    """

    sent_once = True  # to each worker of a cluster; see _core.parallel

    def __init__(
        self,
        stack: ParticleStack,
        plane: HalfPlane,
        mask_diameter: float | None = None,
        in_window: bool = False,
        block_size: int = BLOCK_SIZE,
        cache_bytes: float | None = None,
        n_ignored: int = 0,
    ) -> None:
        if plane.box != stack.box:
            raise ValueError(
                f"The images have a box of {stack.box} pixels, expected {plane.box}. "
                f"Use stack.downsample({plane.box}), or images of the same box."
            )
        if stack.ctf is not None and stack.pixel_size is None:
            raise ValueError(
                "The stack has a CTF but no pixel size, so the CTF cannot be evaluated. "
                "Give pixel_size in Angstrom, or drop the CTF with stack.with_ctf(None)."
            )
        self.stack, self.plane = stack, plane
        self.n_samples = len(stack)
        self._radius_px, self._edge_px = mask_disc(mask_diameter, stack.box, stack.pixel_size)
        self._support: Support | None = None
        window_px = mask_disc(None, stack.box, stack.pixel_size)[0]
        if in_window and stack.ctf is not None and self._radius_px < window_px:
            self._support = Support(plane, self._radius_px, self._edge_px)
            self._radius_px = window_px
        self._is_isotropic = stack.ctf is not None and self._astigmatic_phase() <= NEGLIGIBLE_PHASE
        self.layout = replace(self._layout(), n_ignored=n_ignored)
        per_image = 4 * (self.layout.n_features + (self.layout.n_norms if stack.ctf is not None else 0))
        n_rows = 2 * int(bytes_at_once(BLOCK_BYTES, BLOCK_SHARE) // (2 * per_image))  # even: half sets
        self._block_size = min(block_size, max(MIN_ROWS, n_rows))
        cache_bytes = default_cache_bytes() if cache_bytes is None else cache_bytes
        self._n_cached = int(cache_bytes // (per_image * self._block_size))
        self.feature_bytes = per_image * self.n_samples  # of all images, wherever they are kept
        self.cache_bytes = min(cache_bytes, self.feature_bytes)
        self._cache, self._name = _Made(), uuid.uuid4().hex
        self._files: FeatureFiles | None = None
        self.noise: RowNoise | None = None

    def _astigmatic_phase(self) -> float:
        """Largest change of CTF phase over the azimuth, half of it either way, at the finest frequency."""
        ctf = self.stack.ctf
        finest = self.plane.radius[-1] / (self.plane.box * self.stack.pixel_size)  # 1/Angstrom
        split = 0.5 * np.abs(ctf.defocus_u_angstrom - ctf.defocus_v_angstrom)
        phase = np.pi * electron_wavelength(ctf.voltage_volts) * finest**2 * split  # Eq. (1.5)
        return float(phase.max(initial=0.0))

    def _layout(self) -> FeatureLayout:
        shell = np.repeat(self.plane.shell - 1, 2)  # real and imaginary part in turn; (2 J,)
        if self.stack.ctf is None:
            norm = self.plane.shell - 1  # prior and noise are those of a shell, though c = 1 everywhere
        elif self._is_isotropic:
            norm = self._radius_index(self.plane)
        else:
            norm = np.arange(self.plane.n_coefficients)
        disc = soft_disc(self.plane.box, self._radius_px, self._edge_px)
        return FeatureLayout(shell, np.repeat(norm, 2), float(np.mean(disc**2)), self._support)

    @staticmethod
    def _radius_index(plane: HalfPlane) -> np.ndarray:
        """Number of each coefficient's radius among the distinct ones, which are exact: sums of squares."""
        return np.unique(plane.kx**2 + plane.ky**2, return_inverse=True)[1].ravel()

    def __len__(self) -> int:
        return -(-self.n_samples // self._block_size)

    def rows_of(self, index: int) -> slice:
        """Rows of the stack that block `index` holds."""
        start = index * self._block_size
        return slice(start, min(start + self._block_size, self.n_samples))

    def whitened(self, noise: RowNoise) -> FeatureBlocks:
        """Return the same blocks, images and CTF being divided by the root of their noise, Eq. (3.14).

        Parameters
        ----------
        noise : RowNoise
            Of each image of the stack.
        """
        blocks, ready = copy.copy(self), self._cache
        blocks.noise, blocks._name = noise, uuid.uuid4().hex
        blocks._cache = _Made(
            {i: noise.whiten(block, self.rows_of(i), self.layout) for i, block in ready.items()}
        )
        return blocks

    def with_mirrors(self) -> FeatureBlocks:
        """Return the same blocks, each image of which takes part mirrored, too, Eq. (3.18)."""
        blocks, plane = copy.copy(self), self.plane
        sign = np.column_stack([np.ones(plane.n_coefficients), np.where(plane.kx == 0, -1.0, 1.0)])
        index = 2 * plane.mirrored[:, None] + np.arange(2)
        blocks.layout = replace(self.layout, mirror=(index.ravel(), sign.ravel()))
        return blocks

    @property
    def share_kept(self) -> float:
        """Part of the images whose features are there for the next pass, in memory or in files."""
        n_kept = self.n_samples if self._files is not None else self._n_cached * self._block_size
        return min(1.0, n_kept / max(self.n_samples, 1))

    def kept_in(self, folder: str | os.PathLike[str], *, may_write: bool = True) -> FeatureBlocks:
        """Return the same blocks, whose features are read from files; those that are missing are written.

        Files are named after all that features follow from: which images (their files with size and time of
        change, or their pixels), poses, CTF, mask, coefficients, and the version of the package.

        Parameters
        ----------
        folder : path-like
            Where sets of features lie; one process or many may use it at the same time.
        may_write : bool
            Whether features that are missing are written; otherwise what is there is used.

        Raises
        ------
        OSError
            If there is no room for what is missing, or nothing can be written.
        """
        blocks = copy.copy(self)
        blocks._cache = _Made(self._cache)
        blocks._files = FeatureFiles(
            folder,
            self._key(),
            self.layout,
            has_norm=self.stack.ctf is not None,
            n_samples=self.n_samples,
            block_size=self._block_size,
            may_write=may_write,
        )
        if may_write:
            blocks._files.make_room()
        return blocks

    def _key(self) -> str:
        """Digest of all that the features follow from; their noise, which divides them later, is no part."""
        stack, plane = self.stack, self.plane
        numbers = (plane.box, float(plane.k_max), self._radius_px, self._edge_px, stack.pixel_size)
        images = joblib.hash((as_made(stack.images), stack.ctf, stack.poses))
        parts = [FORMAT, __version__, sys.byteorder, numbers, self._block_size, images]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]

    def check_room(self) -> None:
        """Raise if there is no room for the files of `kept_in`."""
        if self._files is not None:
            self._files.check_room()

    def load(self, index: int, n_shells: int) -> FeatureBlock:
        """Return block `index`, its first `n_shells` shells; the first blocks come from the cache."""
        return self.fetch(index, n_shells)()

    def fetch(self, index: int, n_shells: int) -> Callable[[], FeatureBlock]:
        """Read block `index`, or its images; what is returned makes its first `n_shells` shells of them."""
        layout = self.layout.truncate(n_shells)
        if index in self._cache:
            return partial(self._cache[index].prefix, layout)
        made = self.layout if index < self._n_cached else layout
        block = None if self._files is None else self._files.read(index, made)
        if block is not None:
            return partial(self._finished, index, block, made, layout)
        if self._files is not None and self._files.may_write:
            made = self.layout
        parts_ahead = max(1, int(bytes_at_once(AHEAD_BYTES, AHEAD_SHARE) // (4 * PIXELS_AT_ONCE)))
        ahead = [self.stack.read(rows) for rows in self._parts(index)[:parts_ahead]]
        return partial(self._made, index, ahead, made, layout)

    def _made(
        self, index: int, ahead: list[Float32], made: FeatureLayout, layout: FeatureLayout
    ) -> FeatureBlock:
        """Prepare a block whose first parts have been read, and write it where it is to be kept."""
        block = self._prepare(index, ahead, made)
        if self._files is not None and self._files.may_write:
            self._files.write(index, block)
        return self._finished(index, block, made, layout)

    def _finished(
        self, index: int, block: FeatureBlock, made: FeatureLayout, layout: FeatureLayout
    ) -> FeatureBlock:
        """Shells of `layout` of a block that has those of `made`, divided by their noise."""
        if self.noise is not None:
            block = self.noise.whiten(block, self.rows_of(index), made)
        if index < self._n_cached:
            self._cache[index] = block
        return block if made is layout else block.prefix(layout)

    def _parts(self, index: int) -> list[slice]:
        """Rows of the stack that are prepared together, of the block."""
        own = self.rows_of(index)
        parts = row_blocks(own.stop - own.start, max(1, PIXELS_AT_ONCE // self.stack.box**2))
        return [slice(own.start + part.start, own.start + part.stop) for part in parts]

    def _prepare(self, index: int, ahead: list[Float32], layout: FeatureLayout) -> FeatureBlock:
        """Features of a block, the images of whose first parts are `ahead`."""
        own, n_kept, plane = self.rows_of(index), layout.n_features // 2, self.plane
        if n_kept < plane.n_coefficients:
            plane = HalfPlane(
                plane.box, float(plane.radius[n_kept - 1]), plane.kx[:n_kept], plane.ky[:n_kept]
            )
        n_rows, has_norm = own.stop - own.start, self.stack.ctf is not None
        data = np.empty((n_rows, layout.n_features), dtype=np.float32)
        norm = np.empty((n_rows, layout.n_norms), dtype=np.float32) if has_norm else None
        power = np.empty((n_rows, layout.n_shells))
        for number, rows in enumerate(self._parts(index)):
            here = slice(rows.start - own.start, rows.stop - own.start)
            images = ahead[number] if number < len(ahead) else self.stack.read(rows)
            features = self._features(images, rows, plane)  # (n, J)
            power[here] = _shell_powers(features, layout)
            if norm is None:
                data[here] = features.view(np.float32)
            else:
                ctf = self._ctf(rows, plane)  # (n, Q)
                np.square(ctf, out=norm[here])
                if layout.n_norms < plane.n_coefficients:
                    ctf = np.take(ctf, layout.norm_index[::2], axis=1)  # (n, J)
                np.multiply(features.real, ctf, out=data[here, 0::2])
                np.multiply(features.imag, ctf, out=data[here, 1::2])
        return FeatureBlock.of(data, norm, power)

    def _features(self, images: Float32, rows: slice, plane: HalfPlane) -> Complex64:
        """Features of masked and aligned images, Eq. (2.1)."""
        poses, box = self.stack.poses, plane.box
        shift = None if poses is None else poses.shift_px(self.stack.pixel_size)[rows]  # (n, 2)
        # the content moves by `shift` to be centred, so the particle lies at minus that
        centres = None if shift is None else -shift
        images = mask_background(images, self._radius_px, self._edge_px, centres)
        if poses is None:
            return fourier_features(images, plane)
        images, plane, shift = cropped_for_rotation(images, plane, shift)
        features = aligned_features(images, plane, poses.angle_rad[rows], shift, poses.mirrored[rows])
        features *= np.float32(box / plane.box)  # the orthonormal transform of a smaller box is smaller
        return features

    def _ctf(self, rows: slice, plane: HalfPlane) -> Float32:
        """CTF of the aligned images for each column of the norms, Eq. (1.4)-(1.6)."""
        stack = self.stack
        radius, azimuth, angle, mirrored = plane.radius, plane.azimuth, None, None
        if self._is_isotropic:
            first = np.unique(self._radius_index(plane), return_index=True)[1]
            # at 45 degrees from its axes, astigmatism leaves the mean defocus
            radius, azimuth = radius[first], np.full(len(first), 0.25 * np.pi)
            angle = -stack.ctf.astigmatism_angle_rad[rows]
        elif stack.poses is not None:
            angle, mirrored = stack.poses.angle_rad[rows], stack.poses.mirrored[rows]
        return stack.ctf[rows].evaluate(radius / (plane.box * stack.pixel_size), azimuth, angle, mirrored)

    def __getstate__(self) -> dict[str, Any]:
        # workers in other processes make what they need: features are larger than what they come from
        return {**self.__dict__, "_cache": _Made()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # a worker gets the same blocks in more than one value, and makes features for all of them once
        self._cache = _made_here.setdefault(self._name, self._cache)


class _Made(dict[int, FeatureBlock]):
    """Blocks of features that were made, by number; other than a plain dict, this can be held weakly."""


_made_here: WeakValueDictionary[str, _Made] = WeakValueDictionary()  # by name of the blocks


def _shell_powers(features: Complex64, layout: FeatureLayout) -> np.ndarray:
    """Sum of y^2 over each shell; (n, S), float64."""
    squares = np.square(features.real)
    squares += np.square(features.imag)  # (n, J)
    return np.add.reduceat(squares, layout.shell_starts // 2, axis=1, dtype=np.float64)
