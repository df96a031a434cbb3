"""Images that stay in their files until a block of them is wanted."""

from __future__ import annotations

import errno
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any

import numpy as np

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem._core.memory import format_bytes
from sklearn_cryoem.particles.mrc_files import FrameFile
from sklearn_cryoem.particles.rows import Immutable, read_only, row_key
from sklearn_cryoem.particles.sources import ArraySource, ImageSource, Rows, check_pixels

MAX_OPEN_FILES = 32
_NO_HANDLES = (errno.EMFILE, errno.ENFILE)
_CLOCK_SLACK_NS = 2_000_000_000  # file systems and their copies round times of modification


class FilePool:
    """Keeps the files used last open, at most `limit` of them idle; safe in threads and after a fork.

    Files are read by seek and read rather than through memory maps: pages of a map count as the memory of
    the process until the map is closed, so a scan of a large stack through a map looks like a leak.
    """

    def __init__(self, limit: int = MAX_OPEN_FILES) -> None:
        self._limit = limit
        self._idle: OrderedDict[int, str] = OrderedDict()  # file descriptor: path, oldest first
        self._lock = threading.Lock()
        self._process = os.getpid()
        weakref.finalize(self, _close_all, self._idle)
        _pools.add(self)

    @contextmanager
    def borrow(self, file: FrameFile) -> Iterator[int]:
        """Lend an open descriptor of `file` to this thread alone."""
        descriptor = self._take(file.path)
        if descriptor is not None and _is_stale(descriptor):  # the server of its mount was restarted
            os.close(descriptor)
            descriptor = None
        if descriptor is None:
            descriptor = _open(file)
        try:
            _check_unchanged(file, descriptor)
            yield descriptor
        finally:
            self._give_back(descriptor, file.path)

    def _take(self, path: str) -> int | None:
        with self._lock:
            if self._process != os.getpid():  # a descriptor shared across a fork shares its position
                _close_all(self._idle)
                self._process = os.getpid()
            for descriptor, idle_path in reversed(self._idle.items()):
                if idle_path == path:
                    del self._idle[descriptor]
                    return descriptor
        return None

    def _give_back(self, descriptor: int, path: str) -> None:
        with self._lock:
            self._idle[descriptor] = path
            while len(self._idle) > self._limit:
                os.close(self._idle.popitem(last=False)[0])

    def close_idle(self) -> int:
        """Close the files that nobody reads now; return their number."""
        with self._lock:
            n_closed = len(self._idle)
            _close_all(self._idle)
        return n_closed


_pools: weakref.WeakSet[FilePool] = weakref.WeakSet()


def _close_all(idle: OrderedDict[int, str]) -> None:
    while idle:
        os.close(idle.popitem()[0])


def _is_stale(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError as error:
        return error.errno == errno.ESTALE
    return False


def _open(file: FrameFile) -> int:
    try:
        return os.open(file.path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    except OSError as error:
        if error.errno in _NO_HANDLES:
            if sum(pool.close_idle() for pool in list(_pools)):  # those of other stacks, too
                return _open(file)
            raise ParticleDataError(
                f"{file.path}: cannot be opened ({error.strerror}), and none that these particles hold open "
                "can be closed. Raise the limit (ulimit -n), or close files."
            ) from error
        raise ParticleDataError(
            f"{file.path}: cannot be opened any more ({error.strerror}). Put it back, or read the particles "
            "again with images_dir= set to where the images are now."
        ) from error


def _check_unchanged(file: FrameFile, descriptor: int) -> None:
    """Raise if the file was written to since the particles were read from it; a moment's work."""
    status = os.fstat(descriptor)
    if status.st_size != file.size or abs(status.st_mtime_ns - file.mtime_ns) > _CLOCK_SLACK_NS:
        raise ParticleDataError(f"{file.path}: has changed since these particles were read. Read them again.")


class FileSource(Immutable):
    """Images in files: which file and which image of it for every particle.

    Parameters
    ----------
    files : sequence of FrameFile
        The files, all of one box; `inspect_mrc` makes them.
    file_index : ndarray of shape (n_images,), int
        Position in `files` for each particle.
    frame : ndarray of shape (n_images,), int
        Place of the particle in its file, from 0.

    Raises
    ------
    ParticleDataError
        If boxes differ or an image lies beyond the end of its file.
    """

    is_in_memory = False

    def __init__(
        self,
        files: Sequence[FrameFile],
        file_index: np.ndarray,
        frame: np.ndarray,
        pool: FilePool | None = None,
    ) -> None:
        self._files = tuple(files)
        self._file_index = read_only(np.ascontiguousarray(file_index, dtype=np.int32))
        self._frame = read_only(np.ascontiguousarray(frame, dtype=np.int32))
        self._pool = FilePool() if pool is None else pool
        self.box = self._files[0].box if self._files else 0
        if pool is None:  # rows taken of a source were checked with it
            self._check_extent()
        self._seal()

    def _check_extent(self) -> None:
        boxes = {file.box: file.path for file in self._files}
        if len(boxes) > 1:
            raise ParticleDataError(f"The files hold images of several sizes: {boxes}. Use one box for all.")
        n_images = np.array([file.n_whole_images for file in self._files], dtype=np.int64)
        beyond = np.flatnonzero((self._frame < 0) | (self._frame >= n_images[self._file_index]))
        if beyond.size:
            raise ParticleDataError(
                f"{self.locate(int(beyond[0]))} does not exist: the file holds "
                f"{n_images[self._file_index[beyond[0]]]} whole images. Extract or copy it again."
            )

    def __len__(self) -> int:
        return len(self._frame)

    @property
    def files(self) -> tuple[FrameFile, ...]:
        """The files, in the order `file_index` counts them."""
        return self._files

    @property
    def file_index(self) -> np.ndarray:
        """Position in `files` of each particle; (n_images,) int."""
        return self._file_index

    @property
    def frame(self) -> np.ndarray:
        """Place of each particle in its file, from 0; (n_images,) int."""
        return self._frame

    @property
    def nbytes(self) -> int:
        """Bytes of the pixels on disk, those of these rows alone."""
        sizes = np.array([file.image_bytes for file in self._files], dtype=np.int64)
        return int(sizes[self._file_index].sum())

    def read(self, rows: Any = None, *, check: bool = True) -> np.ndarray:
        """Return the images of `rows` as C-contiguous float32 (m, box, box).

        Every file is opened once and read in ascending order, neighbours in one piece. With `check`, an image
        that is constant or not finite raises ParticleDataError.
        """
        key = row_key(slice(None) if rows is None else rows, len(self))
        file_index, frame = self._file_index[key], self._frame[key]
        images = np.empty((len(frame), self.box, self.box), dtype=np.float32)
        order = np.lexsort((frame, file_index))
        starts = np.flatnonzero(np.diff(file_index[order], prepend=-1))
        for places in np.split(order, starts[1:]) if len(order) else []:
            self._read_file(self._files[file_index[places[0]]], frame[places], places, images)
        if check:
            check_pixels(images, self, key)
        return images

    def _read_file(self, file: FrameFile, frame: np.ndarray, places: np.ndarray, images: np.ndarray) -> None:
        """Read the ascending `frame` of one file into `images` at `places`, run by run."""
        with self._pool.borrow(file) as descriptor:
            breaks = np.flatnonzero(np.diff(frame) != 1) + 1
            for run, run_places in zip(np.split(frame, breaks), np.split(places, breaks), strict=True):
                os.lseek(descriptor, file.offset + int(run[0]) * file.image_bytes, os.SEEK_SET)
                neighbours = slice(int(run_places[0]), int(run_places[0]) + len(run))
                if np.dtype(file.dtype) == images.dtype and (np.diff(run_places) == 1).all():
                    _read_exactly(descriptor, images[neighbours], file)  # nothing to convert or to reorder
                    continue
                buffer = np.empty((len(run), self.box, self.box), dtype=file.dtype)
                _read_exactly(descriptor, buffer, file)
                images[run_places] = buffer

    def take(self, rows: Rows) -> FileSource:
        """Return a source of the given rows alone; it shares the open files."""
        return FileSource(self._files, self._file_index[rows], self._frame[rows], self._pool)

    def describe(self) -> str:
        """Say in a few words where the pixels are."""
        used = np.unique(self._file_index)
        if len(used) == 1:
            where = self._files[used[0]].path
        else:
            paths = [self._files[number].path for number in used]
            where = f"{len(used)} files under {os.path.commonpath(paths) if paths else '-'}"
        return f"{where} ({format_bytes(self.nbytes)})"

    def locate(self, row: int) -> str:
        """Say where the pixels of one row are, for messages."""
        return f"{self._files[self._file_index[row]].path}, image {self._frame[row] + 1}"

    def __reduce__(self) -> tuple:
        # Only the files in use travel, as plain tuples: pickles are small, and equal slices hash alike.
        used, file_index = np.unique(self._file_index, return_inverse=True)
        files = tuple(astuple(self._files[number]) for number in used)
        return _rebuild, (files, file_index.astype(np.int32), np.array(self._frame))


def _rebuild(files: tuple, file_index: np.ndarray, frame: np.ndarray) -> FileSource:
    return FileSource([FrameFile(*fields) for fields in files], file_index, frame)


def _read_exactly(descriptor: int, buffer: np.ndarray, file: FrameFile) -> None:
    view = memoryview(buffer.reshape(-1).view(np.uint8))
    with open(descriptor, "rb", buffering=0, closefd=False) as stream:
        while len(view):
            try:
                n_read = stream.readinto(view)
            except OSError as error:
                raise ParticleDataError(
                    f"{file.path}: cannot be read ({error.strerror}). Look after the disk or the mount it is "
                    "on; once it is back, a fit with a checkpoint goes on."
                ) from error
            if not n_read:
                raise ParticleDataError(
                    f"{file.path}: the file ended before its last image. Copy or extract it again."
                )
            view = view[n_read:]


def as_source(images: Any) -> ImageSource:
    """Return `images` as an image source.

    A source is returned as it is; a read-only memory map of a stack becomes a `FileSource`, which pickles
    small and hashes by name, size and time of modification; anything else is an array in memory.
    """
    if isinstance(images, ImageSource):
        return images
    array = np.asanyarray(images)
    file = _mapped_file(array)
    if file is None:
        return ArraySource(array)
    return FileSource([file], np.zeros(file.n_images, np.int32), np.arange(file.n_images, dtype=np.int32))


def _mapped_file(array: np.ndarray) -> FrameFile | None:
    """Where the pixels of a read-only memory map lie on disk; None for any other array."""
    if not isinstance(array, np.memmap) or array.mode != "r" or array.filename is None:
        return None
    square = array.ndim == 3 and array.shape[1] == array.shape[2] >= 4
    if not square or not array.flags.c_contiguous or array.dtype.kind not in "fiu" or not len(array):
        return None
    # A slice of a map keeps the map's offset: its own place follows from the address of its first pixel.
    map_start = array.offset - array.offset % mmap.ALLOCATIONGRANULARITY
    map_address = np.frombuffer(array._mmap, dtype=np.uint8).ctypes.data
    status = os.stat(array.filename)
    return FrameFile(
        path=os.path.abspath(array.filename),
        offset=map_start + array.ctypes.data - map_address,
        dtype=array.dtype.str,
        n_images=len(array),
        box=array.shape[1],
        size=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )
