"""One run at a time in a folder: a lock that the system lifts when its process ends, however it ends."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

LOCK = ".running"


class FolderInUseError(Exception):
    """Another process works in the folder; the text says which."""


@contextmanager
def folder_lock(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keep other runs out of a folder as long as the block lasts.

    Parameters
    ----------
    folder : path-like
        An existing folder that may be written to.

    Raises
    ------
    FolderInUseError
        If another process holds the lock.

    Notes
    -----
    On file systems without locks, and on Windows, nobody is kept out; a line of the log says so.
    """
    path = Path(folder) / LOCK
    handle = _locked(path)
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)  # while it is still ours
        os.close(handle)


def _locked(path: Path) -> int:
    """Descriptor of the lock file, locked."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle, path)
            if _is_at(handle, path):  # it was not removed by its last owner since it was opened
                who = f"process {os.getpid()} on {socket.gethostname()}"
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{who} since {datetime.now(UTC):%Y-%m-%d %H:%M} UTC".encode(), 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, path: Path) -> None:
    if fcntl is None:
        logger.info("folders are not locked on this system; keep other runs out of %s", path.parent)
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise FolderInUseError(os.pread(handle, 200, 0).decode(errors="replace")) from None
    except OSError as error:
        logger.info("%s cannot be locked (%s); keep other runs out of it", path.parent, error.strerror)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
