"""Where the pixels of a stack come from: an array, files, or another source seen through a transformation.

A source has ``len``, `box`, `is_in_memory`, `read(rows)`, `take(rows)` and `describe()`; it can be
pickled. Taking rows never copies pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sklearn_cryoem._core.validation import ParticleDataError, check_square

Rows = slice | np.ndarray


class Immutable:
    """Base of containers whose attributes cannot be set once they are built.

    A subclass calls `_seal` at the end of its construction and names the way out in `_remedy`.
    """

    _remedy = "Build a new one instead."

    def _seal(self) -> None:
        object.__setattr__(self, "_sealed", True)

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_sealed", False):
            raise AttributeError(
                f"{type(self).__name__}.{name} cannot be set: the object is immutable. {self._remedy}"
            )
        object.__setattr__(self, name, value)

    def __setstate__(self, state: dict) -> None:  # arrays of a pickle can be written into
        for name, value in state.items():
            self.__dict__[name] = read_only(value) if isinstance(value, np.ndarray) else value

    def __copy__(self) -> Immutable:
        return self

    def __deepcopy__(self, memo: dict) -> Immutable:
        return self


def row_key(key: Any, n_rows: int) -> slice | np.ndarray:
    """Turn any key for the first axis into a slice of step 1 or an array of non-negative indices.

    Parameters
    ----------
    key : int, slice, boolean mask, array of int, or such a key with an Ellipsis
        The key as it stands between square brackets. An int gives a slice of one row.
    n_rows : int
        Length of the first axis.

    Returns
    -------
    slice or ndarray of shape (n_selected,), intp

    Raises
    ------
    IndexError
        If the key selects along another axis, is out of range, or is a mask of another length.
    """
    try:
        if isinstance(key, tuple) and key[1:] in ((Ellipsis,), (slice(None),)):
            key = key[0]
        if isinstance(key, tuple):
            raise IndexError("this key is of more axes, or of none")
        if isinstance(key, slice | int | np.integer):
            rows = range(n_rows)[key]
        else:
            rows = np.arange(n_rows)[key if key is Ellipsis or np.size(key) else []]
        if np.ndim(rows) > 1:
            raise IndexError("this key is an array of more axes")
    except (IndexError, ValueError) as error:
        raise IndexError(
            f"There are {n_rows} rows, 0 to {n_rows - 1}, and one axis: {error}. Use an int, a slice, a "
            "boolean mask or a 1-D array of integers; for pixels, read the images first: "
            "stack.read(rows)."
        ) from error
    if isinstance(rows, range) and rows.step == 1:
        return slice(rows.start, max(rows.start, rows.stop))
    return slice(rows, rows + 1) if isinstance(rows, int) else np.asarray(rows, dtype=np.intp)


def read_only(array: np.ndarray) -> np.ndarray:
    """Return a view of `array` that cannot be written through."""
    view = array.view()
    view.flags.writeable = False
    return view


@runtime_checkable
class ImageSource(Protocol):
    """What a `ParticleStack` needs of the place its pixels come from."""

    box: int
    is_in_memory: bool

    def __len__(self) -> int: ...

    def read(self, rows: Any = None, *, check: bool = True) -> np.ndarray:
        """Return the images of `rows`, in that order, as C-contiguous float32 (m, box, box).

        With `check`, an image that is constant or not finite raises ParticleDataError.
        """

    def take(self, rows: Rows) -> ImageSource:
        """Return a source of the given rows alone; copies no pixel."""

    def describe(self) -> str:
        """Say in a few words where the pixels are."""

    def locate(self, row: int) -> str:
        """Say where the pixels of one row are, for messages."""


class ArraySource(Immutable):
    """Images that lie in an array (or a memory map): a view of the array and the rows wanted of it.

    Parameters
    ----------
    array : ndarray of shape (n, D, D)
        Real numbers of any type; converted to float32 block by block when read. Not copied.
    rows : slice or ndarray of int, optional
        Which images of the array, and in which order; all by default.

    Raises
    ------
    ValueError
        If the array is not a stack of square, real images.
    """

    is_in_memory = True

    def __init__(self, array: np.ndarray, rows: Rows | None = None) -> None:
        check_square("images", array.shape)
        if array.dtype.kind not in "fiub":
            raise ValueError(
                f"images has dtype {array.dtype}, expected real numbers. Give images, not their transforms."
            )
        self._array = read_only(array)
        self._rows = slice(0, len(array)) if rows is None else rows
        self.box = int(array.shape[1])
        self._seal()

    def __len__(self) -> int:
        return self._rows.stop - self._rows.start if isinstance(self._rows, slice) else len(self._rows)

    def read(self, rows: Any = None, *, check: bool = True) -> np.ndarray:
        """Return the images of `rows` as C-contiguous float32 (m, box, box).

        With `check`, an image that is constant or not finite raises ParticleDataError.
        """
        key = row_key(slice(None) if rows is None else rows, len(self))
        images = np.ascontiguousarray(self._array[_compose_rows(self._rows, key)], dtype=np.float32)
        if check:
            check_pixels(images, self, key)
        return images

    def take(self, rows: Rows) -> ArraySource:
        """Return a source of the given rows alone; copies no pixel."""
        return ArraySource(self._array, _compose_rows(self._rows, rows))

    def describe(self) -> str:
        """Say in a few words where the pixels are."""
        return "in memory"

    def locate(self, row: int) -> str:
        """Say where the pixels of one row are, for messages."""
        place = self._rows.start + row if isinstance(self._rows, slice) else int(self._rows[row])
        return f"image {place} of the array"

    def __getstate__(self) -> dict:
        # Only the rows that are wanted travel, in one canonical layout: equal slices hash alike.
        return {"array": np.ascontiguousarray(self._array[self._rows])}

    def __setstate__(self, state: dict) -> None:
        self.__init__(state["array"])  # type: ignore[misc]


class AbsentSource(Immutable):
    """Stands for images that were not looked for; reading them raises.

    Parameters
    ----------
    n_images : int
        Number of particles.
    box : int
        Side of the images in pixels, 0 if unknown.
    """

    is_in_memory = False

    def __init__(self, n_images: int, box: int) -> None:
        self._n_images = int(n_images)
        self.box = int(box)
        self._seal()

    def __len__(self) -> int:
        return self._n_images

    def read(self, rows: Any = None, *, check: bool = True) -> np.ndarray:
        """Raise ParticleDataError: there are no images."""
        raise ParticleDataError(
            "These particles were read with metadata_only=True, so their images were not looked for. "
            "Read the file again without it, with images_dir= if the images have moved."
        )

    def take(self, rows: Rows) -> AbsentSource:
        """Return the given rows alone."""
        return AbsentSource(rows.stop - rows.start if isinstance(rows, slice) else len(rows), self.box)

    def describe(self) -> str:
        """Say in a few words where the pixels are."""
        return "metadata only"

    def locate(self, row: int) -> str:
        """Say where the pixels of one row are, for messages."""
        return f"row {row}, without image"


def _compose_rows(outer: Rows, inner: Rows) -> Rows:
    """Rows `inner` of the rows `outer`, both as `row_key` returns them."""
    if isinstance(outer, slice):
        if isinstance(inner, slice):
            return slice(outer.start + inner.start, outer.start + inner.stop)
        return inner + outer.start
    return outer[inner]


def bad_pixels(images: np.ndarray) -> list[tuple[int, str]]:
    """Find images that cannot be used: (position in `images`, what is wrong) for each.

    Parameters
    ----------
    images : ndarray of shape (m, D, D)
        A block of images.

    Notes
    -----
    Two passes over the pixels: min and max propagate NaN and show infinity and constancy at once.
    """
    low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))  # (m,)
    finite = np.isfinite(low) & np.isfinite(high)
    bad = [(int(i), "holds NaN or infinity") for i in np.flatnonzero(~finite)]
    bad += [
        (int(i), f"is constant (every pixel is {low[i]:g})") for i in np.flatnonzero(finite & (low == high))
    ]
    return sorted(bad)


def check_pixels(images: np.ndarray, source: ImageSource, key: Rows) -> None:
    """Raise ParticleDataError, naming file and particle, if an image is constant or not finite."""
    bad = bad_pixels(images) if len(images) else []
    if bad:
        position, what = bad[0]
        row = key.start + position if isinstance(key, slice) else int(key[position])
        more = f" ({len(bad) - 1} more in the same block)" if len(bad) > 1 else ""
        raise ParticleDataError(
            f"Particle row {row} ({source.locate(row)}) {what}{more}. Drop it: stack.check() lists all such "
            "particles, and read_particles(..., permissive=True) leaves them out and reports them."
        )


class ConcatenatedSource(Immutable):
    """Several sources one after the other.

    Parameters
    ----------
    sources : sequence of ImageSource
        All of one box.
    owner, own_row : ndarray of shape (n_images,), int, optional
        The source of each image and its row there; by default all rows of all sources in turn.
    """

    def __init__(
        self,
        sources: Sequence[ImageSource],
        owner: np.ndarray | None = None,
        own_row: np.ndarray | None = None,
    ) -> None:
        lengths = [len(source) for source in sources]
        self._sources = tuple(sources)
        self._owner = np.repeat(np.arange(len(lengths)), lengths) if owner is None else owner
        self._own_row = np.concatenate([np.arange(n) for n in lengths]) if own_row is None else own_row
        self.box = sources[0].box
        self.is_in_memory = all(source.is_in_memory for source in sources)
        self._seal()

    def __len__(self) -> int:
        return len(self._owner)

    def read(self, rows: Any = None, *, check: bool = True) -> np.ndarray:
        """Return the images of `rows` as C-contiguous float32 (m, box, box)."""
        wanted = self.take(row_key(slice(None) if rows is None else rows, len(self)))
        images = np.empty((len(wanted), self.box, self.box), dtype=np.float32)
        for source, places, own_rows in wanted.parts:
            images[places] = source.read(own_rows, check=check)
        return images

    def take(self, rows: Rows) -> ConcatenatedSource:
        """Return a source of the given rows alone; copies no pixel."""
        return ConcatenatedSource(self._sources, self._owner[rows], self._own_row[rows])

    def describe(self) -> str:
        """Say in a few words where the pixels are."""
        return "; ".join(self._sources[number].describe() for number in np.unique(self._owner))

    def locate(self, row: int) -> str:
        """Say where the pixels of one row are, for messages."""
        return self._sources[self._owner[row]].locate(int(self._own_row[row]))

    @property
    def parts(self) -> list[tuple[ImageSource, np.ndarray, np.ndarray]]:
        """Each source that is used, the rows that come from it, and their places there."""
        places = {number: np.flatnonzero(self._owner == number) for number in np.unique(self._owner)}
        return [(self._sources[number], rows, self._own_row[rows]) for number, rows in places.items()]

    def __reduce__(self) -> tuple:
        # Only the rows that are wanted travel, in one canonical layout: equal slices hash alike.
        sources, (owner, own_row) = [], np.empty((2, len(self)), dtype=np.intp)
        for number, (source, rows, own_rows) in enumerate(self.parts):
            sources.append(source.take(own_rows))
            owner[rows], own_row[rows] = number, np.arange(len(rows))
        return ConcatenatedSource, (sources, owner, own_row)
