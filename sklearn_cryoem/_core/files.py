"""Nothing is ever half-written: a file appears whole under its name, or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from sklearn_cryoem._core.memory import format_bytes

RANDOM_LETTERS = 8  # that tempfile puts into the names of temporary files
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def room_for(what: str, remedy: str) -> Iterator[None]:
    """Turn the system's word for a full disk into a message that says what to do.

    Parameters
    ----------
    what : str
        What is being written.
    remedy : str
        What to do about it.

    Raises
    ------
    OSError
        Of the same number, if the disk is full, a quota used up, or a limit on the size of files reached.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise OSError(error.errno, f"No room for {what} ({os.strerror(error.errno)}). {remedy}") from error


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success rename it to `path`, on failure remove it.

    Parameters
    ----------
    path : path-like
        The file to write. Its suffix is kept by the temporary path, since some writers look at it.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    FileExistsError
        If `path` exists and `overwrite` is false; checked before any work and again before the renaming.
    FileNotFoundError
        If the folder of `path` does not exist.
    ValueError
        If the system's encoding has no such name.
    OSError
        If the folder may not be written to, the name is too long, or the disk full; the message says so.
    """
    target = Path(path)
    check_may_write(target, overwrite=overwrite)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
    except OSError as error:
        if error.errno in FULL:
            raise
        raise OSError(
            error.errno, f"{target} cannot be written ({error.strerror}). Choose another folder or name"
        ) from error
    os.close(handle)
    temporary = Path(name)
    try:
        with room_for(str(target), "Make room, or write elsewhere; no half-written file is left behind."):
            yield temporary
        check_may_write(target, overwrite=overwrite)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


class _Tried(Exception):
    """Ends a write that is only tried."""


def try_to_write(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise what `atomic_path` would raise after the work, before it; nothing is written or replaced.

    Parameters
    ----------
    path : path-like
        The file to write.
    overwrite : bool
        Whether an existing file may be replaced.
    """
    with suppress(_Tried), atomic_path(path, overwrite=overwrite):
        raise _Tried


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Remove what processes that were killed while they wrote `path` have left beside it.

    Parameters
    ----------
    path : path-like
        A file that `atomic_path` writes, and that nobody is writing now.
    """
    target = Path(path)
    for left in target.parent.glob(f".{escape(target.stem)}-{'?' * RANDOM_LETTERS}{escape(target.suffix)}"):
        left.unlink(missing_ok=True)


def check_may_write(path: str | os.PathLike[str], *, overwrite: bool) -> None:
    """Raise unless `path` lies in an existing folder and is free, or may be replaced.

    Parameters
    ----------
    path : path-like
        The file to write.
    overwrite : bool
        Whether an existing file may be replaced.
    """
    target = Path(path)
    try:
        os.fsencode(target)
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{os.fspath(target)!a} cannot be the name of a file: the encoding of names here, "
            f"{error.encoding}, has no {error.object[error.start]!a}. Choose another name, or set the "
            "environment variable PYTHONUTF8=1."
        ) from error
    if not os.path.isdir(target.parent):  # unlike methods of Path, these raise nothing of long names
        raise FileNotFoundError(
            f"There is no folder {target.parent} to write {target.name} into. Make it first."
        )
    if os.path.isdir(target):
        raise FileExistsError(f"{target} is a folder. Give the name of a file.")
    if os.path.exists(target) and not overwrite:
        raise FileExistsError(f"{target} exists. Choose another name, or pass overwrite=True to replace it.")


def check_room(path: str | os.PathLike[str], n_bytes: int) -> None:
    """Raise before a long write if the disk has no room for what will be written.

    Parameters
    ----------
    path : path-like
        The file to write, whose folder exists; or a folder to write into.
    n_bytes : int
        That it will have, or get.

    Raises
    ------
    OSError
        ENOSPC, if there is less room. More is not proof that it will do: quotas are not seen.
    """
    target = Path(path)
    free = shutil.disk_usage(target if target.is_dir() else target.parent).free
    if free < n_bytes:
        raise OSError(
            errno.ENOSPC,
            f"No room for {path}: it will have {format_bytes(n_bytes)}, and {format_bytes(free)} are free. "
            "Make room, or write elsewhere",
        )


def _umask() -> int:
    # mkstemp makes files that only their owner may read; results are meant to be shared like other files.
    mask = os.umask(0)
    os.umask(mask)
    return mask
