"""Prepared features in files: made once, then read by every pass, fit, process and host that sees the folder.

A set of features has a folder named after all that they follow from, and each block a file there. A file is
a header and segments, each a run of neighbouring shells of all images of the block: power (n, S'), data
(n, P') and c^2 (n, Q'), where there is a CTF. So the first shells, which frequency marching asks for, are one
piece of the file. Files are read, not mapped: mapped pages would count as memory of the process.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sklearn_cryoem._core.files import atomic_path, check_room, explained, room_for
from sklearn_cryoem._core.memory import format_bytes
from sklearn_cryoem._core.parallel import row_blocks
from sklearn_cryoem.manifold.blocks import FeatureBlock, FeatureLayout

logger = logging.getLogger(__name__)
library_logger = logging.getLogger("sklearn_cryoem")  # what the command line prints by default

FORMAT = 1  # of the files, and of how features are prepared: raise it when either changes
SEGMENT_COLUMNS = 512  # features of a segment, at least
ABANDONED_SECONDS = 3600.0  # a temporary file as old as this belongs to nobody
_MAGIC = b"cryo-EM features"
_FIXED = struct.Struct("<16s32sQQ")  # magic, key, number of the block, number of segments


Segment = list[tuple[str, slice, str]]  # of some shells: each array of a block, its columns, and its type


class FeatureFiles:
    """Feature blocks of a stack in the files of a folder.

    Parameters
    ----------
    folder : path-like
        Where sets of features lie, each in a folder of its own.
    key : str
        Digest (32 characters) of all that the features follow from.
    layout : FeatureLayout
        Of all shells.
    has_norm : bool
        Whether there is a c^2.
    n_samples, block_size : int
        Rows of the data, and of each block but the last.
    may_write : bool
        Whether blocks that are missing are to be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        key: str,
        layout: FeatureLayout,
        *,
        has_norm: bool,
        n_samples: int,
        block_size: int,
        may_write: bool,
    ) -> None:
        self.folder = Path(folder).absolute() / f"features-{key}"
        self.layout, self.may_write = layout, may_write
        self._key, self._has_norm = key, has_norm
        self._n_rows = [rows.stop - rows.start for rows in row_blocks(n_samples, block_size)]
        self._segments = list(_segments(layout, has_norm))
        self._header_bytes = _FIXED.size + 4 * len(self._segments)
        row_bytes = sum(map(_row_bytes, self._segments))
        self._sizes = [self._header_bytes + n_rows * row_bytes for n_rows in self._n_rows]
        self._checked: set[tuple[int, int]] = set()  # segments whose sum has been compared

    def _path(self, index: int) -> Path:
        return self.folder / f"{index:06d}.features"

    def _is_there(self, index: int) -> bool:
        try:
            return self._path(index).stat().st_size == self._sizes[index]
        except (FileNotFoundError, NotADirectoryError):
            return False

    def make_room(self) -> None:
        """Say how much room the blocks take, make their folder, and see to it that there is so much room.

        Raises
        ------
        OSError
            If the disk has not room for those that are missing, or nothing can be written there.
        """
        total = sum(self._sizes)
        needed = sum(size for index, size in enumerate(self._sizes) if not self._is_there(index))
        if not needed:
            logger.info("%s of prepared features are read from %s.", format_bytes(total), self.folder)
            return
        self._make_folder(total)
        free = format_bytes(shutil.disk_usage(self.folder).free)
        library_logger.info(
            f"Prepared features take {format_bytes(total)} in {self.folder}, of which "
            f"{format_bytes(total - needed)} are there already; {free} are free."
        )
        check_room(self.folder, needed)

    def check_room(self) -> None:
        """Raise if the folder of all sets has no room for this one, even in the place of the others there.

        A set is named after poses among others: what a fit has yet to find tells which files it can use.

        Raises
        ------
        OSError
            If there is no room, or nothing can be written there.
        """
        parent = self.folder.parent
        with _writable(parent):
            parent.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=parent).close()
        taken = sum(path.stat().st_size for path in parent.glob("features-*/*"))
        check_room(parent, sum(self._sizes) - taken)

    def _make_folder(self, total: int) -> None:
        """Make the folder with a note for people, and sweep out what killed writers have left."""
        note = {
            "what": "Prepared features of particle images. Delete this folder to have its room back.",
            "images": sum(self._n_rows),
            "bytes": total,
        }
        with _writable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob(".*"):
                if time.time() - old.stat().st_mtime > ABANDONED_SECONDS:
                    old.unlink(missing_ok=True)
            with atomic_path(self.folder / "manifest.json", overwrite=True) as temporary:
                temporary.write_text(json.dumps(note, indent=1) + "\n")

    # ---------------------------------------------------------------- blocks
    def read(self, index: int, layout: FeatureLayout) -> FeatureBlock | None:
        """Return the shells of `layout` of a block; None if there is no file of it that is whole and true.

        Parameters
        ----------
        index : int
            Number of the block.
        layout : FeatureLayout
            The first shells of that of the files.
        """
        try:
            with open(self._path(index), "rb", buffering=0) as file:
                block = self._read_from(file, index, layout)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if block is None:
            logger.warning("%s is damaged, and not used.", self._path(index))
        return block

    def _read_from(self, file: BinaryIO, index: int, layout: FeatureLayout) -> FeatureBlock | None:
        n_rows, header = self._n_rows[index], file.read(self._header_bytes)
        is_whole = os.fstat(file.fileno()).st_size == self._sizes[index]
        if not is_whole or not header.startswith(self._head(index)):
            return None
        sums = np.frombuffer(header, dtype="<u4", offset=_FIXED.size)
        norm = np.empty((n_rows, layout.n_norms), dtype=np.float32) if self._has_norm else None
        data = np.empty((n_rows, layout.n_features), dtype=np.float32)
        block = FeatureBlock.of(data, norm, np.empty((n_rows, layout.n_shells)))
        for number, segment in enumerate(self._segments):
            if segment[0][1].start >= layout.n_shells:
                break
            is_new, total = (index, number) not in self._checked, 0
            for name, columns, dtype in segment:
                values = np.fromfile(file, dtype, n_rows * (columns.stop - columns.start))
                total = zlib.crc32(values, total) if is_new else total
                mine = getattr(block, name)[:, columns]  # which may end within the segment
                mine[:] = values.reshape(n_rows, -1)[:, : mine.shape[1]]
            if is_new and total != sums[number]:
                return None
            self._checked.add((index, number))
        return block

    def write(self, index: int, block: FeatureBlock) -> None:
        """Write all shells of a block: the file appears whole, or not at all.

        Raises
        ------
        OSError
            If the disk is full.
        """
        what = f"prepared features in {self.folder}"
        remedy = (
            "Make room there, name another cache folder, or fit without one. The files that are there are "
            "whole, and the same fit takes them up; delete the folder to have their room back."
        )
        with room_for(what, remedy), atomic_path(self._path(index), overwrite=True) as temporary:
            with open(temporary, "wb") as file:
                file.write(bytes(self._header_bytes))
                sums = [self._write_segment(file, segment, block) for segment in self._segments]
                file.seek(0)
                file.write(self._head(index) + np.array(sums, dtype="<u4").tobytes())

    def _write_segment(self, file: BinaryIO, segment: Segment, block: FeatureBlock) -> int:
        """Write a segment and return its sum."""
        total = 0
        for name, columns, dtype in segment:
            values = np.ascontiguousarray(getattr(block, name)[:, columns], dtype)
            file.write(values.data)
            total = zlib.crc32(values.data, total)
        return total

    def _head(self, index: int) -> bytes:
        return _FIXED.pack(_MAGIC, self._key.encode(), index, len(self._segments))


def _writable(folder: Path) -> AbstractContextManager[None]:
    """Say what to do where nothing can be written to a folder."""
    return explained(f"Prepared features cannot be written to {folder}", "Give a cache folder of your own")


def _segments(layout: FeatureLayout, has_norm: bool) -> Iterator[Segment]:
    """Cut the shells into runs of at least `SEGMENT_COLUMNS` features, but for the last."""
    first = 0
    for shell in range(layout.n_shells):
        stop, is_last = layout.features_of(shell).stop, shell == layout.n_shells - 1
        start = int(layout.shell_starts[first])
        if stop - start >= SEGMENT_COLUMNS or is_last:
            norms = slice(int(layout.norm_index[start]), int(layout.norm_index[stop - 1]) + 1)
            segment = [("power", slice(first, shell + 1), "f8"), ("data", slice(start, stop), "f4")]
            yield [*segment, ("norm", norms, "f4")] if has_norm else segment
            first = shell + 1


def _row_bytes(segment: Segment) -> int:
    """Bytes of one image in a segment."""
    return sum((columns.stop - columns.start) * np.dtype(dtype).itemsize for _, columns, dtype in segment)
