"""What every metadata format is brought to before it becomes a stack, and how bad rows are dealt with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from sklearn_cryoem._core.exceptions import ParticleDataError

ANGSTROM_PER_MM = 1e7
VOLTS_PER_KILOVOLT = 1e3
RADIANS_PER_DEGREE = np.pi / 180


class RowProblems:
    """Collects what is wrong with single particles: raises at once, or drops them and keeps a report.

    Parameters
    ----------
    path : Path
        The file the particles come from.
    n_rows : int
        Number of particles in it.
    permissive : bool
        Whether to drop bad particles instead of raising.
    """

    def __init__(self, path: Path, n_rows: int, *, permissive: bool) -> None:
        self._path = path
        self._permissive = permissive
        self.keep = np.ones(n_rows, dtype=bool)
        self.why = np.full(n_rows, "", dtype=object)
        self.name_row: Callable[[int], str] = lambda row: f"particle {row + 1}"

    def add(self, bad: np.ndarray, why: str | Callable[[int], str], remedy: str) -> None:
        """Note that the rows `bad` (a mask or indices) cannot be used.

        Parameters
        ----------
        bad : ndarray of bool or int
            Which rows.
        why : str or callable
            What is wrong; a callable is given the row.
        remedy : str
            What to do about it.

        Raises
        ------
        ParticleDataError
            For the first bad row, unless permissive.
        """
        rows = np.flatnonzero(bad) if bad.dtype == bool else np.asarray(bad)
        rows = rows[self.keep[rows]]
        if not rows.size:
            return
        reason = why if callable(why) else lambda row: why
        if not self._permissive:
            more = f" ({rows.size - 1:,} more like it)" if rows.size > 1 else ""
            raise ParticleDataError(
                f"{self._path}, {self.name_row(int(rows[0]))}: {reason(int(rows[0]))}{more}. {remedy} "
                "To leave out particles that cannot be used, pass permissive=True."
            )
        self.keep[rows] = False
        self.why[rows] = [reason(int(row)) for row in rows]

    def part(self, rows: np.ndarray) -> RowProblems:
        """A copy in which only the rows of a mask are left, to be handed back by `take_over`."""
        own = RowProblems(self._path, len(self.keep), permissive=self._permissive)
        own.keep, own.why, own.name_row = self.keep & rows, self.why.copy(), self.name_row
        return own

    def take_over(self, part: RowProblems, rows: np.ndarray) -> None:
        """Note what was found among the rows of a mask."""
        self.keep[rows], self.why[rows] = part.keep[rows], part.why[rows]

    def check_any_left(self) -> None:
        """Raise ParticleDataError if every particle was dropped."""
        if len(self.keep) and not self.keep.any():
            raise ParticleDataError(
                f"{self._path}: none of its {len(self.keep):,} particles can be used; the first: "
                f"{self.why[0]}. Repair the file, or check that it is the right one."
            )

    def report(self, image_name: Callable[[int], str]) -> pd.DataFrame:
        """One row for each dropped particle: ``particle`` (from 1), ``image``, ``problem``."""
        rows = np.flatnonzero(~self.keep)
        names = [image_name(int(row)) for row in rows]
        return pd.DataFrame({"particle": rows + 1, "image": names, "problem": self.why[rows]})


@dataclass
class RawParticles:
    """Metadata of particles in the library's units, before any image is looked for.

    Attributes
    ----------
    path : Path
        The file it was read from.
    metadata : DataFrame of n rows
        Every column that came in.
    optics : DataFrame or None
        The optics table that came in.
    file_names : list of str
        The distinct image files, as they are written in the file.
    file_code, frame : ndarray of shape (n,), int
        The file of each particle, and its place there from 0.
    pixel_size, box : ndarray of shape (n,) or None
        Angstrom per pixel and side in pixels that the metadata claim.
    ctf : dict of ndarray of shape (n,) or None
        CTF parameters by their `CTFTable` names.
    angle_rad : ndarray of shape (n,) or None
        In-plane angles, None where poses are not complete.
    shift : ndarray of shape (n, 2) or None
        Shifts in the unit `shift_unit_is_pixel` says.
    mirrored : ndarray of shape (n,), bool, or None
        Which images are mirrored, None where the metadata do not say.
    optics_group, noise_group : ndarray of shape (n,), int
        Groups.
    """

    path: Path
    metadata: pd.DataFrame
    file_names: list[str]
    file_code: np.ndarray
    frame: np.ndarray
    optics_group: np.ndarray
    noise_group: np.ndarray
    optics: pd.DataFrame | None = None
    pixel_size: np.ndarray | None = None
    box: np.ndarray | None = None
    ctf: dict[str, np.ndarray] | None = None
    angle_rad: np.ndarray | None = None
    shift: np.ndarray | None = None
    shift_unit_is_pixel: bool = False
    mirrored: np.ndarray | None = None

    def image_name(self, row: int) -> str:
        """Name of the image of one row, as RELION writes it: ``000001@stack.mrcs``."""
        return f"{self.frame[row] + 1:06d}@{self.file_names[self.file_code[row]]}"
