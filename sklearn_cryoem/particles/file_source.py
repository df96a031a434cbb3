"""Images that stay in their files until a block of them is wanted."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

from sklearn_cryoem._core.memory import format_bytes
from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.particles.mrc_files import FrameFile
from sklearn_cryoem.particles.sources import Immutable, Rows, check_pixels, read_only, row_key

_CLOCK_SLACK_NS = 2_000_000_000  # file systems and their copies round times of modification


def _opened(file: FrameFile) -> BinaryIO:
    """The file, which was not written to since the particles were read from it.

    It is opened for every block that is read, which takes 6 microseconds: no handle has to survive a fork, a
    server that restarts, or more stacks than there are handles. It is not mapped: pages of a map count as
    memory of the process until the map is closed, so that a scan of a large stack looks like a leak.
    """
    try:
        stream = open(file.path, "rb", buffering=0)
    except OSError as error:
        raise ParticleDataError(
            f"{file.path}: cannot be opened any more ({error.strerror}). Put it back, read the particles "
            "again with images_dir= set to where the images are now, or, if too many files are open, raise "
            "the limit (ulimit -n)."
        ) from error
    status = os.fstat(stream.fileno())
    if status.st_size != file.size or abs(status.st_mtime_ns - file.mtime_ns) > _CLOCK_SLACK_NS:
        stream.close()
        raise ParticleDataError(f"{file.path}: has changed since these particles were read. Read them again.")
    return stream


class FileSource(Immutable):
    """Images in files: which file and which image of it for every particle, attributes of the same names.

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
        *,
        is_checked: bool = False,
    ) -> None:
        self.files = tuple(files)
        self.file_index = read_only(np.ascontiguousarray(file_index, dtype=np.int32))
        self.frame = read_only(np.ascontiguousarray(frame, dtype=np.int32))
        self.box = self.files[0].box if self.files else 0
        if not is_checked:  # rows taken of a source were checked with it
            self._check_extent()
        self._seal()

    def _check_extent(self) -> None:
        boxes = {file.box: file.path for file in self.files}
        if len(boxes) > 1:
            raise ParticleDataError(f"The files hold images of several sizes: {boxes}. Use one box for all.")
        n_images = np.array([file.n_whole_images for file in self.files], dtype=np.int64)
        beyond = np.flatnonzero((self.frame < 0) | (self.frame >= n_images[self.file_index]))
        if beyond.size:
            raise ParticleDataError(
                f"{self.locate(int(beyond[0]))} does not exist: the file holds "
                f"{n_images[self.file_index[beyond[0]]]} whole images. Extract or copy it again."
            )

    def __len__(self) -> int:
        return len(self.frame)

    def read(self, rows: Any = None, *, check: bool = True) -> np.ndarray:
        """Return the images of `rows` as C-contiguous float32 (m, box, box).

        Every file is opened once and read in ascending order, neighbours in one piece. With `check`, an image
        that is constant or not finite raises ParticleDataError.
        """
        key = row_key(slice(None) if rows is None else rows, len(self))
        file_index, frame = self.file_index[key], self.frame[key]
        images = np.empty((len(frame), self.box, self.box), dtype=np.float32)
        order = np.lexsort((frame, file_index))
        starts = np.flatnonzero(np.diff(file_index[order], prepend=-1))
        for places in np.split(order, starts[1:]) if len(order) else []:
            self._read_file(self.files[file_index[places[0]]], frame[places], places, images)
        if check:
            check_pixels(images, self, key)
        return images

    def _read_file(self, file: FrameFile, frame: np.ndarray, places: np.ndarray, images: np.ndarray) -> None:
        """Read the ascending `frame` of one file into `images` at `places`, run by run."""
        with _opened(file) as stream:
            breaks = np.flatnonzero(np.diff(frame) != 1) + 1
            for run, run_places in zip(np.split(frame, breaks), np.split(places, breaks), strict=True):
                stream.seek(file.offset + int(run[0]) * file.image_bytes)
                neighbours = slice(int(run_places[0]), int(run_places[0]) + len(run))
                if np.dtype(file.dtype) == images.dtype and (np.diff(run_places) == 1).all():
                    _read_exactly(stream, images[neighbours], file)  # nothing to convert or to reorder
                    continue
                buffer = np.empty((len(run), self.box, self.box), dtype=file.dtype)
                _read_exactly(stream, buffer, file)
                images[run_places] = buffer

    def take(self, rows: Rows) -> FileSource:
        """Return a source of the given rows alone."""
        return FileSource(self.files, self.file_index[rows], self.frame[rows], is_checked=True)

    def describe(self) -> str:
        """Say in a few words where the pixels are."""
        used = np.unique(self.file_index)
        if len(used) == 1:
            where = self.files[used[0]].path
        else:
            paths = [self.files[number].path for number in used]
            where = f"{len(used)} files under {os.path.commonpath(paths) if paths else '-'}"
        sizes = np.array([file.image_bytes for file in self.files], dtype=np.int64)
        return f"{where} ({format_bytes(int(sizes[self.file_index].sum()))})"

    def locate(self, row: int) -> str:
        """Say where the pixels of one row are, for messages."""
        return f"{self.files[self.file_index[row]].path}, image {self.frame[row] + 1}"

    def __reduce__(self) -> tuple:
        # Only the files in use travel: pickles are small, and equal slices hash alike.
        used, file_index = np.unique(self.file_index, return_inverse=True)
        files = tuple(self.files[number] for number in used)
        return FileSource, (files, file_index.astype(np.int32), np.array(self.frame))


def _read_exactly(stream: BinaryIO, buffer: np.ndarray, file: FrameFile) -> None:
    view = memoryview(buffer.reshape(-1).view(np.uint8))
    while len(view):
        try:
            n_read = stream.readinto(view)
        except OSError as error:
            raise ParticleDataError(
                f"{file.path}: cannot be read ({error.strerror}). Look after the disk or the mount it is on; "
                "once it is back, a fit with a checkpoint goes on."
            ) from error
        if not n_read:
            raise ParticleDataError(
                f"{file.path}: the file ended before its last image. Copy or extract it again."
            )
        view = view[n_read:]
