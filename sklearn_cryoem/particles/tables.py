"""What is known of each particle beside its image: the parameters of its CTF, and its pose."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pandas as pd

from sklearn_cryoem.particles.sources import Immutable, read_only, row_key
from sklearn_cryoem.physics.ctf import contrast_transfer

_COPY_ON_WRITE = int(pd.__version__.split(".", maxsplit=1)[0]) >= 3
_APART = ("astigmatism_angle_rad", "phase_flipped", "premultiplied")  # what `evaluate` sees to itself


@dataclass(eq=False, repr=False)
class CTFTable(Immutable):
    """CTF parameters of every particle; immutable and sliceable.

    Each parameter is an array of shape (n_images,), float64; a single number is repeated for all particles.

    Parameters
    ----------
    defocus_u_angstrom, defocus_v_angstrom : array_like
        Defocus along the two principal directions, positive is underfocus.
    astigmatism_angle_rad : array_like
        Azimuth of `defocus_u_angstrom`, from x (columns) towards y (rows).
    voltage_volts : array_like
        Acceleration voltage in volts: 300e3, not 300.
    cs_angstrom : array_like
        Spherical aberration in Angstrom: 2.7e7 for 2.7 mm.
    amplitude_contrast : array_like
        In [0, 1].
    phase_shift_rad, b_factor_angstrom2, scale : array_like, optional
        Phase-plate shift, envelope exp(-B s^2 / 4), overall factor.
    phase_flipped, premultiplied : array_like of 0 and 1, optional
        What was done to the images already: the sign of the CTF taken out of them, or the images multiplied
        by their CTF. What is left in them is ``|c|`` or ``c^2``, as RELION takes it.

    Raises
    ------
    ValueError
        If lengths disagree, a value is not finite, or a unit is plainly wrong.

    Examples
    --------
    >>> from sklearn_cryoem import CTFTable
    >>> ctf = CTFTable.constant(
    ...     3, defocus_u_angstrom=15e3, defocus_v_angstrom=14e3, astigmatism_angle_rad=0.3,
    ...     voltage_volts=300e3, cs_angstrom=2.7e7, amplitude_contrast=0.1,
    ... )
    >>> len(ctf[1:]), ctf[1:].voltage_volts.tolist()
    (2, [300000.0, 300000.0])
    """

    defocus_u_angstrom: np.ndarray
    defocus_v_angstrom: np.ndarray
    astigmatism_angle_rad: np.ndarray
    voltage_volts: np.ndarray
    cs_angstrom: np.ndarray
    amplitude_contrast: np.ndarray
    phase_shift_rad: np.ndarray = 0.0  # type: ignore[assignment]
    b_factor_angstrom2: np.ndarray = 0.0  # type: ignore[assignment]
    scale: np.ndarray = 1.0  # type: ignore[assignment]
    phase_flipped: np.ndarray = 0.0  # type: ignore[assignment]
    premultiplied: np.ndarray = 0.0  # type: ignore[assignment]

    _remedy = "Build a new CTFTable (dataclasses.replace) and attach it with stack.with_ctf(ctf)."

    def __post_init__(self) -> None:
        given = {
            field.name: np.asarray(getattr(self, field.name), dtype=np.float64) for field in fields(self)
        }
        lengths = {name: array.shape for name, array in given.items() if array.ndim}
        if len(set(lengths.values())) > 1 or any(len(shape) != 1 for shape in lengths.values()):
            raise ValueError(
                f"CTFTable: the parameters have shapes {lengths}, expected (n_images,) or one number each."
            )
        n_images = next(iter(lengths.values()))[0] if lengths else 1
        for name, array in given.items():
            setattr(self, name, column(name, np.broadcast_to(array, n_images), owner="CTFTable"))
        self._check_units()
        self._seal()

    def _check_units(self) -> None:
        if (self.voltage_volts < 1e4).any():
            raise ValueError(
                f"CTFTable: voltage_volts is {self.voltage_volts.min():g}, expected volts, such as 300e3. "
                "Multiply kilovolts by 1000."
            )
        if ((self.amplitude_contrast < 0) | (self.amplitude_contrast > 1)).any():
            raise ValueError(
                f"CTFTable: amplitude_contrast lies in [{self.amplitude_contrast.min():g}, "
                f"{self.amplitude_contrast.max():g}], expected [0, 1]. Give a fraction, not per cent."
            )
        for name in ("phase_flipped", "premultiplied"):
            if not np.isin(getattr(self, name), (0, 1)).all():
                raise ValueError(
                    f"CTFTable: {name} holds values other than 0 and 1. Give 1 for images that are, else 0."
                )

    @classmethod
    def constant(cls, n_images: int, **parameters: float) -> CTFTable:
        """Return `n_images` rows that all hold the given parameters."""
        return cls(**{name: np.full(n_images, value, dtype=np.float64) for name, value in parameters.items()})

    @property
    def mean_defocus_angstrom(self) -> np.ndarray:
        """Mean of the two defoci of each particle; (n_images,)."""
        return 0.5 * (self.defocus_u_angstrom + self.defocus_v_angstrom)

    def evaluate(
        self,
        frequency: np.ndarray,
        azimuth: np.ndarray,
        rotation_rad: np.ndarray | None = None,
        mirrored: np.ndarray | None = None,
    ) -> np.ndarray:
        """CTF that is in every image at the given frequencies, Eq. (1.4)-(1.7).

        Parameters
        ----------
        frequency : ndarray of shape (J,)
            ``|s|`` in 1/Angstrom.
        azimuth : ndarray of shape (J,)
            atan2(ky, kx) in radians.
        rotation_rad : ndarray of shape (n_images,), optional
            In-plane angle psi of each particle: gives the CTF of the aligned image, whose astigmatism angle
            is a0 + psi, Eq. (1.6).
        mirrored : ndarray of shape (n_images,), bool, optional
            Whether each particle is mirrored before it is turned, as in `Poses`: its angle is psi - a0.

        Returns
        -------
        ctf : ndarray of shape (n_images, J), float32
            Its absolute value where `phase_flipped`, its square where `premultiplied`.
        """
        angle = self.astigmatism_angle_rad
        if mirrored is not None:
            angle = np.where(mirrored, -angle, angle)
        if rotation_rad is not None:
            angle = angle + np.asarray(rotation_rad)  # Eq. (1.6)
        names = [field.name for field in fields(self) if field.name not in _APART]
        own = {name: getattr(self, name) for name in names}
        ctf = contrast_transfer(frequency, azimuth, astigmatism_angle_rad=angle, **own)  # (n_images, J)
        squared, positive = self.premultiplied != 0, self.phase_flipped != 0  # (n_images,), Eq. (1.7)
        if squared.any():
            ctf[squared] = np.square(ctf[squared])
        if positive.any():
            ctf[positive] = np.abs(ctf[positive])
        return ctf

    def __len__(self) -> int:
        return len(self.defocus_u_angstrom)

    def __getitem__(self, key: Any) -> CTFTable:
        rows = row_key(key, len(self))
        return CTFTable(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def __repr__(self) -> str:
        return f"CTFTable({len(self):,} particles{self.summary()})"

    def summary(self) -> str:
        """Defocus range, astigmatism, voltage and Cs in words; empty for an empty table."""
        if len(self) == 0:
            return ""
        mean = 1e-4 * self.mean_defocus_angstrom  # micrometres
        split = np.abs(self.defocus_u_angstrom - self.defocus_v_angstrom)
        volts = "/".join(f"{value / 1e3:g}" for value in np.unique(self.voltage_volts))
        spherical = "/".join(f"{value / 1e7:g}" for value in np.unique(self.cs_angstrom))
        return (
            f", defocus {mean.min():.2f} to {mean.max():.2f} um, astigmatism up to {split.max():.0f} A, "
            f"{volts} kV, Cs {spherical} mm{self._done()}"
        )

    def _done(self) -> str:
        """What was done to the images already, in words; empty for nothing."""
        words = {"phase_flipped": "phase-flipped", "premultiplied": "multiplied by their CTF"}
        n_done = {word: int(getattr(self, name).sum()) for name, word in words.items()}
        return "".join(f", {'all' if n == len(self) else f'{n:,}'} {word}" for word, n in n_done.items() if n)


@dataclass(eq=False, repr=False)
class Poses(Immutable):
    """In-plane angle, shift and mirror of every particle; immutable and sliceable.

    An image is aligned in this order: its content is moved by `shift`, then mirrored where `mirrored` says so
    (y -> -y about the centre pixel), then turned by psi from x (columns) towards y (rows). With F the Fourier
    transform of the moved image, the aligned one is F(r, theta - psi), or F(r, psi - theta) where mirrored.

    Parameters
    ----------
    angle_rad : array_like of shape (n_images,)
        In-plane angle psi in radians, RELION's rlnAnglePsi.
    shift : array_like of shape (n_images, 2)
        Shift (x, y), RELION's rlnOriginXAngst and rlnOriginYAngst: moving the content of an image by it
        centres the image. In Angstrom for a stack that knows its pixel size, in pixels for one that does not.
    mirrored : array_like of shape (n_images,) or bool, default=False
        Whether the centred image is mirrored before it is turned, RELION's rlnIsFlip: projections from
        opposite sides are mirror images of each other.
    view_rad : array_like of shape (n_images, 2), optional
        Where an image is seen from, if that is known: RELION's rlnAngleRot and rlnAngleTilt in radians.

    Raises
    ------
    ValueError
        If the shapes disagree, a value is not finite, or a mirror is neither true nor false.

    Examples
    --------
    >>> from sklearn_cryoem import Poses
    >>> poses = Poses(angle_rad=[0.0, 1.5], shift=[[0.0, 0.0], [3.5, -7.0]])
    >>> len(poses), poses[1:].shift.tolist()
    (2, [[3.5, -7.0]])
    """

    angle_rad: np.ndarray
    shift: np.ndarray
    mirrored: np.ndarray = False  # type: ignore[assignment]
    view_rad: np.ndarray | None = None

    _remedy = "Build new Poses and attach them with stack.with_poses(poses)."

    def __post_init__(self) -> None:
        self.angle_rad = column("angle_rad", np.atleast_1d(self.angle_rad), owner="Poses")  # (n_images,)
        if self.angle_rad.ndim != 1:
            raise ValueError(f"Poses: angle_rad has shape {self.angle_rad.shape}, expected (n_images,).")
        self.shift = self._pairs("shift", "(x, y)")
        self.mirrored = _flags(self.mirrored, len(self.angle_rad))  # (n_images,)
        if self.view_rad is not None:
            self.view_rad = self._pairs("view_rad", "(rot, tilt)")
        self._seal()

    def _pairs(self, name: str, each: str) -> np.ndarray:
        """One of the tables of two columns, checked; (n_images, 2)."""
        pairs = column(name, np.atleast_2d(getattr(self, name)), owner="Poses")
        if pairs.shape != (len(self.angle_rad), 2):
            raise ValueError(
                f"Poses: {name} has shape {pairs.shape}, expected ({len(self.angle_rad)}, 2): one {each} for "
                "each angle."
            )
        return pairs

    @classmethod
    def identity(cls, n_images: int) -> Poses:
        """Return `n_images` poses with angle 0 and no shift."""
        return cls(np.zeros(n_images), np.zeros((n_images, 2)))

    def shift_px(self, pixel_size: float | None) -> np.ndarray:
        """Return the shift in pixels, shape (n_images, 2).

        Parameters
        ----------
        pixel_size : float or None
            Angstrom per pixel; ``None`` if the shifts are in pixels already.
        """
        return self.shift if pixel_size is None else self.shift / pixel_size

    def scaled(self, factor: float) -> Poses:
        """Return the poses with their shifts multiplied by `factor` (a change of unit)."""
        return replace(self, shift=self.shift * factor)

    def unmirrored(self) -> Poses:
        """Return poses without mirrors: mirrored images are turned onto the mirror image, Eq. (3.18)."""
        return Poses(np.where(self.mirrored, -self.angle_rad, self.angle_rad), self.shift)

    def __len__(self) -> int:
        return len(self.angle_rad)

    def __getitem__(self, key: Any) -> Poses:
        rows = row_key(key, len(self))
        view = None if self.view_rad is None else self.view_rad[rows]
        return Poses(self.angle_rad[rows], self.shift[rows], self.mirrored[rows], view)

    def __repr__(self) -> str:
        if len(self) == 0:
            return "Poses(0 particles)"
        length = np.hypot(*self.shift.T)
        median, largest = np.median(length), length.max()
        mirrored = f", {self.mirrored.sum():,} mirrored" if self.mirrored.any() else ""
        return f"Poses({len(self):,} particles, median shift {median:.3g}, largest {largest:.3g}{mirrored})"


def _flags(values: Any, n_images: int) -> np.ndarray:
    """True or false for each image, from one value for all or one for each."""
    array = np.asarray(values)
    if array.shape not in ((), (n_images,)):
        raise ValueError(f"Poses: mirrored has shape {array.shape}, expected ({n_images},) or one value.")
    if array.size and not np.isin(array, (0, 1)).all():
        raise ValueError(
            "Poses: mirrored holds values other than true and false. Give 1 for mirrored, else 0."
        )
    return read_only(np.array(np.broadcast_to(array, n_images), dtype=bool))


def column(name: str, values: Any, *, owner: str) -> np.ndarray:
    """Return `values` as a finite, read-only, contiguous float64 array.

    Raises
    ------
    ValueError
        If a value is NaN or infinite.
    """
    array = np.array(values, dtype=np.float64, copy=True, order="C")
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        raise ValueError(
            f"{owner}: {name} is NaN or infinite for {bad.size} particle(s), the first in row {bad[0]}. "
            "Drop those rows, or repair the table they come from."
        )
    array.flags.writeable = False
    return array


def guarded(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table that can be changed without changing `table`; free where pandas copies on write."""
    return table.copy(deep=not _COPY_ON_WRITE)


def pack_table(table: pd.DataFrame | None) -> tuple | None:
    """Turn a table into plain arrays and lists, of the same hash for equal tables however they were made."""
    if table is None:
        return None
    columns = [(str(name), str(column.dtype), _plain(column)) for name, column in table.items()]
    return len(table), columns


def unpack_table(packed: tuple | None) -> pd.DataFrame | None:
    """Inverse of `pack_table`; the index counts from 0."""
    if packed is None:
        return None
    n_rows, columns = packed
    series = {place: pd.Series(values, dtype=dtype) for place, (_, dtype, values) in enumerate(columns)}
    table = pd.DataFrame(series, index=pd.RangeIndex(n_rows))
    table.columns = [name for name, _, _ in columns]
    return table


def _plain(column: pd.Series) -> np.ndarray | list:
    is_number = isinstance(column.dtype, np.dtype) and column.dtype.kind in "fiub"
    return np.ascontiguousarray(column) if is_number else column.tolist()
