"""The object that travels through the library: images with everything that is known of each particle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from sklearn_cryoem._core.validation import check_number
from sklearn_cryoem.particles.display import stack_html
from sklearn_cryoem.particles.preprocess import BACKGROUND_SHARE, Step, TransformedSource, find_bad_images
from sklearn_cryoem.particles.screening import look_at, screened
from sklearn_cryoem.particles.sources import ArraySource, ImageSource, Immutable, read_only, row_key
from sklearn_cryoem.particles.tables import CTFTable, Poses, guarded, pack_table, unpack_table
from sklearn_cryoem.physics.fourier import fourier_resize
from sklearn_cryoem.physics.images import clip_hot_pixels, normalise_background

_TABLES = ("_metadata", "_optics", "_truth")
_ROW_ARRAYS = ("optics_group", "noise_group", "outlier")


class ParticleStack(Immutable):
    """Images of particles with their CTF, poses and metadata, in step row by row.

    A stack is immutable and sliceable along its first axis by int, slice, boolean mask or index array;
    slicing copies no pixel. scikit-learn takes it for an array of n_images samples: it can be split,
    cross-validated, cached and cloned, and because the CTF rides inside, no split can lose it. Every
    parameter is an attribute of the same name.

    Parameters
    ----------
    images : array_like of shape (n_images, D, D) or image source
        Pixels, or where to read them. An array is not copied: do not write into it afterwards.
    pixel_size : float, optional
        Angstrom per pixel. Without it, lengths are in pixels.
    ctf : CTFTable, optional
        CTF parameters; without them the CTF is taken as 1.
    poses : Poses, optional
        In-plane poses, shifts in Angstrom (pixels if `pixel_size` is None).
    optics_group, noise_group : array_like of shape (n_images,), int, optional
        Group of each particle; all 0 by default. A noise group is usually a micrograph.
    metadata : DataFrame of n_images rows, optional
        The original table, every column of it.
    optics : DataFrame, optional
        The original optics table, one row per optics group.
    truth : DataFrame of n_images rows, optional
        What is known of simulated particles.
    outlier : array_like of shape (n_images,), bool, optional
        Which images are outliers, which take part in no statistic of a fit; see `screen`. Where it is given,
        fits take the images as they are.

    Raises
    ------
    ValueError
        If a part does not have one row per image, or the images are not square.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_cryoem import ParticleStack
    >>> stack = ParticleStack(np.random.default_rng(0).normal(size=(10, 16, 16)), pixel_size=4.0)
    >>> stack[2:5].shape, stack.read([7, 1]).shape
    ((3, 16, 16), (2, 16, 16))
    """

    ndim = 3
    dtype = np.dtype(np.float32)
    sent_once = True  # to each worker of a cluster; see _core.parallel
    _remedy = "Use with_poses, with_ctf, with_metadata or with_truth, which return a new stack."

    def __init__(
        self,
        images: Any,
        *,
        pixel_size: float | None = None,
        ctf: CTFTable | None = None,
        poses: Poses | None = None,
        optics_group: Any = None,
        noise_group: Any = None,
        metadata: pd.DataFrame | None = None,
        optics: pd.DataFrame | None = None,
        truth: pd.DataFrame | None = None,
        outlier: Any = None,
    ) -> None:
        check_number("pixel_size", pixel_size, owner=self, minimum=0, inclusive=False, allow_none=True)
        self.images = images if isinstance(images, ImageSource) else ArraySource(np.asanyarray(images))
        self.pixel_size = None if pixel_size is None else float(pixel_size)
        self.ctf = self._in_step("ctf", ctf)
        self.poses = self._in_step("poses", poses)
        self.optics_group = self._group("optics_group", optics_group)
        self.noise_group = self._group("noise_group", noise_group)
        self._metadata = self._table("metadata", metadata)
        self._optics = None if optics is None else guarded(optics)
        self._truth = None if truth is None else self._table("truth", truth)
        marks = None if outlier is None else np.array(outlier, dtype=bool)
        self.outlier = None if marks is None else read_only(self._in_step("outlier", marks))
        self._seal()

    def _in_step(self, name: str, part: Any) -> Any:
        if part is not None and len(part) != len(self):
            raise ValueError(
                f"ParticleStack: {name} has {len(part)} rows, expected {len(self)}, one for each image. "
                f"Slice {name} with the same rows as the images."
            )
        return part

    def _group(self, name: str, values: Any) -> np.ndarray:
        array = np.zeros(len(self), np.int64) if values is None else np.array(values, dtype=np.int64)
        if array.ndim != 1:
            raise ValueError(f"ParticleStack: {name} has shape {array.shape}, expected ({len(self)},).")
        return read_only(self._in_step(name, array))

    def _table(self, name: str, table: pd.DataFrame | None) -> pd.DataFrame:
        if table is None:
            return pd.DataFrame(index=pd.RangeIndex(len(self)))
        return self._in_step(name, pd.DataFrame(table)).reset_index(drop=True)

    # ---------------------------------------------------------------- what it holds
    @property
    def pixel_length(self) -> float:
        """Side of a pixel in the unit of all lengths: `pixel_size` in Angstrom, or 1 where it is unknown."""
        return 1.0 if self.pixel_size is None else self.pixel_size

    @property
    def metadata(self) -> pd.DataFrame:
        """The original table (a copy): one row per particle."""
        return guarded(self._metadata)

    @property
    def optics(self) -> pd.DataFrame | None:
        """The original optics table (a copy): one row per optics group."""
        return None if self._optics is None else guarded(self._optics)

    @property
    def truth(self) -> pd.DataFrame | None:
        """What is known of simulated particles (a copy), or None."""
        return None if self._truth is None else guarded(self._truth)

    @property
    def box(self) -> int:
        """Side D of the images in pixels."""
        return self.images.box

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n_images, D, D)."""
        return (len(self), self.box, self.box)

    @property
    def nbytes(self) -> int:
        """Bytes of all images as float32, which is how they are read."""
        return len(self) * self.box**2 * 4

    @property
    def is_in_memory(self) -> bool:
        """Whether the pixels lie in memory already."""
        return self.images.is_in_memory

    def __len__(self) -> int:
        return len(self.images)

    # ---------------------------------------------------------------- reading and slicing
    def read(self, rows: Any = None) -> np.ndarray:
        """Read images, and only these.

        Parameters
        ----------
        rows : slice, mask or array of int, optional
            Which images, in which order; all by default.

        Returns
        -------
        images : ndarray of shape (m, D, D), float32, C-contiguous
            Of a stack in memory perhaps a read-only view: copy it before writing into it.

        Raises
        ------
        ParticleDataError
            If a file is gone, truncated or changed, or an image is constant or not finite.
        """
        return self.images.read(rows)

    def check(self, *, verbose: int = 0) -> pd.DataFrame:
        """Read every image and list those that cannot be used, and the outliers.

        Parameters
        ----------
        verbose : int
            Whether to show progress.

        Returns
        -------
        DataFrame
            Columns ``row``, ``image`` and ``problem``; no row if all is well. Constant and non-finite images
            come first: nothing can be done with them. The others are those that `screen` marks.
        """
        bad = self.unusable(verbose=verbose)
        sound = np.setdiff1d(np.arange(len(self)), bad["row"])
        found = look_at(self[sound], verbose=verbose).outliers
        rows = sound[found["row"]]
        images = [self.images.locate(int(row)) for row in rows]
        far_out = pd.DataFrame({"row": rows, "image": images, "problem": found["problem"]})
        return pd.concat([bad, far_out], ignore_index=True) if len(far_out) else bad

    def unusable(self, *, verbose: int = 0) -> pd.DataFrame:
        """List images that are constant or not finite, with the columns of `check`; reads each once."""
        return find_bad_images(self.images, verbose=verbose)

    def screen(
        self,
        mask_diameter: float | None = None,
        *,
        noise: str = "shell",
        n_jobs: int | None = None,
        verbose: int = 0,
    ) -> ParticleStack:
        """Look at every image once: mark outliers, and normalise all if they visibly are not.

        Every `fit` does this by itself to a stack whose `outlier` is not known. An outlier is an image whose
        power in a band of frequencies is more than six times that of most, or less than a sixth; that has
        hot pixels, a stripe, or more than a fifth of its lines blank; or whose grey level is elsewhere.
        Twice the contrast of others, as by thinner ice, makes no outlier.

        Parameters
        ----------
        mask_diameter : float, optional
            Diameter of the particle in Angstrom (pixels if the pixel size is unknown); what lies outside is
            background. By default 0.75 of the box.
        noise : {"shell", "white", "group", "image"}, default="shell"
            The noise of the fits to come. With "group" and "image" backgrounds may differ, so nothing is
            normalised; with "group" the power of an image is compared with that of its group.
        n_jobs : int, optional
            Number of threads; the result does not depend on it.
        verbose : int
            Whether to show progress.

        Returns
        -------
        ParticleStack
            With `outlier`, and normalised if need be.

        Raises
        ------
        ParticleDataError
            If an image is constant or not finite, or cannot be read.

        Warns
        -----
        ParticleDataWarning
            Of outliers, by kind with counts and rows, and of images that were not normalised.
        """
        return screened(self, mask_diameter, noise=noise, n_jobs=n_jobs, verbose=verbose)[0]

    def __getitem__(self, key: Any) -> ParticleStack:
        rows = row_key(key, len(self))
        if isinstance(rows, slice) and rows == slice(0, len(self)):
            return self
        return self._replace(
            images=self.images.take(rows),
            ctf=None if self.ctf is None else self.ctf[rows],
            poses=None if self.poses is None else self.poses[rows],
            optics_group=self.optics_group[rows],
            noise_group=self.noise_group[rows],
            metadata=self._metadata.iloc[rows],
            truth=None if self._truth is None else self._truth.iloc[rows],
            outlier=None if self.outlier is None else self.outlier[rows],
        )

    def __getstate__(self) -> dict:
        # Tables packed, arrays contiguous: equal stacks give equal pickles, so joblib.hash is stable.
        state = dict(self.__dict__)
        state.update({name: pack_table(state[name]) for name in _TABLES})
        state.update({name: np.array(state[name]) for name in _ROW_ARRAYS if state[name] is not None})
        return state

    def __setstate__(self, state: dict) -> None:
        super().__setstate__({**state, **{name: unpack_table(state[name]) for name in _TABLES}})

    def __iter__(self) -> Iterator[ParticleStack]:
        return (self[row] for row in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "The images of a ParticleStack are read, so a copy is made. Use np.asarray(stack)."
            )
        images = self.read()
        return images.astype(self.dtype if dtype is None else dtype, copy=bool(copy))

    # ---------------------------------------------------------------- new stacks from old ones
    def _replace(self, **parts: Any) -> ParticleStack:
        state = {name.removeprefix("_"): value for name, value in self.__dict__.items() if name != "_sealed"}
        return ParticleStack(**{**state, **parts})

    def _seen_through(self, step: Step, **parts: Any) -> ParticleStack:
        """The same particles after a step of preprocessing; an outlier before may not be one now."""
        return self._replace(images=TransformedSource(self.images, step), outlier=None, **parts)

    def with_poses(self, poses: Poses | None) -> ParticleStack:
        """Return the same particles with other poses (None for none)."""
        return self._replace(poses=poses)

    def with_ctf(self, ctf: CTFTable | None) -> ParticleStack:
        """Return the same particles with another CTF (None for none)."""
        return self._replace(ctf=ctf)

    def with_truth(self, truth: pd.DataFrame | None) -> ParticleStack:
        """Return the same particles with another table of truth (None for none)."""
        return self._replace(truth=truth)

    def with_outliers(self, outlier: Any) -> ParticleStack:
        """Return the same particles with other marks of outliers; None to have fits look again.

        Parameters
        ----------
        outlier : array_like of shape (n_images,), bool, or None
            All False has fits take every image as it is.
        """
        return self._replace(outlier=outlier)

    def with_metadata(self, **columns: Any) -> ParticleStack:
        """Return the same particles with metadata columns added or replaced.

        Parameters
        ----------
        **columns : array_like of shape (n_images,)
            New columns by name.
        """
        for name, values in columns.items():
            if not np.isscalar(values):
                self._in_step(f"metadata column {name!r}", values)
        return self._replace(metadata=self._metadata.assign(**columns))

    def normalise(self, diameter: float | None = None) -> ParticleStack:
        """Return the same particles with a background of mean 0 and standard deviation 1, applied when read.

        Parameters
        ----------
        diameter : float, optional
            Particle diameter in Angstrom (pixels if the pixel size is unknown); what lies outside is
            background. By default 0.75 of the box.
        """
        check_number("diameter", diameter, owner=self, minimum=0, inclusive=False, allow_none=True)
        if diameter is None:
            radius_px = BACKGROUND_SHARE * self.box
        else:
            radius_px = 0.5 * float(diameter) / self.pixel_length
        step = Step(normalise_background, f"normalised beyond {radius_px:g} px", (radius_px,))
        return self._seen_through(step)

    def clip_hot_pixels(self) -> ParticleStack:
        """Return the same particles, single pixels that are far off their neighbours being replaced by them.

        That is done when images are read. A pixel is hot, or dead, that lies more than 12 standard deviations
        off the mean of its four neighbours; it gets the median of all pixels around it.
        """
        return self._seen_through(Step(clip_hot_pixels, "hot pixels clipped"))

    def invert_contrast(self) -> ParticleStack:
        """Return the same particles with their contrast inverted when read: dark ones become white."""
        return self._seen_through(Step(np.negative, "contrast inverted"))

    def downsample(self, box: int) -> ParticleStack:
        """Return the same particles cropped in Fourier space to a smaller box when read.

        The pixel size grows by D / `box`. Shifts in Angstrom stay; shifts in pixels are scaled.

        Parameters
        ----------
        box : int
            New side of the images in pixels, at most D. Fits work in it, even in D: see `to_working_box`.
        """
        check_number("box", box, owner=self, minimum=4, maximum=self.box, integer=True)
        factor = self.box / box
        in_pixels = self.pixel_size is None
        return self._seen_through(
            Step(fourier_resize, f"cropped in Fourier space to {box} px", (int(box),), int(box), factor),
            pixel_size=None if in_pixels else self.pixel_size * factor,
            poses=self.poses.scaled(1 / factor) if in_pixels and self.poses is not None else self.poses,
        )

    def _repr_html_(self) -> str:
        return stack_html(self)

    def __repr__(self) -> str:
        pixel = "unknown pixel size" if self.pixel_size is None else f"{self.pixel_size:g} A/px"
        ctf = "no CTF" if self.ctf is None else "CTF" + self.ctf.summary()
        poses = "no poses" if self.poses is None else "with poses"
        box = f"{self.box} px" if self.box else "unknown box"
        n_optics, n_noise = len(np.unique(self.optics_group)), len(np.unique(self.noise_group))
        return (
            f"ParticleStack({len(self):,} particles, {box}, {pixel}, {self.images.describe()}; "
            f"{ctf}; {poses}; {n_optics} optics group(s), {n_noise} noise group(s))"
        )
