"""Files: written whole or not at all, folders locked for one run, and what a file is by its first bytes."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from glob import escape
from pathlib import Path

from sklearn_cryoem._core.memory import format_bytes
from sklearn_cryoem._core.validation import ParticleDataError

try:
    import fcntl
except ImportError:  # Windows: folders are not locked there
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

RANDOM_LETTERS = 8  # that tempfile puts into the names of temporary files
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def explained(problem: str, remedy: str, only: tuple[int, ...] = ()) -> Iterator[None]:
    """Turn the system's word for what goes wrong with a file into a message that says what to do.

    Parameters
    ----------
    problem : str
        What cannot be done.
    remedy : str
        What to do about it.
    only : tuple of int
        Numbers of the errors meant; all by default.

    Raises
    ------
    OSError
        Of the same number.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or (only and error.errno not in only):
            raise
        raise OSError(error.errno, f"{problem} ({os.strerror(error.errno)}). {remedy}") from error


def room_for(what: str, remedy: str) -> AbstractContextManager[None]:
    """Say what to do if the disk is full, a quota used up, or a file may not be so large; see `explained`."""
    return explained(f"No room for {what}", remedy, FULL)


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
    with explained(f"{target} cannot be written", "Choose another folder or name"):
        handle, name = tempfile.mkstemp(prefix=f".{target.stem}-", suffix=target.suffix, dir=target.parent)
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


# ---------------------------------------------------------------- one run at a time in a folder
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


# ---------------------------------------------------------------- what a file is, whatever its name says
_LOOKED_AT = 4096  # bytes from the start


@dataclass(frozen=True)
class Content:
    """What the first bytes of a file say."""

    kind: str  # short name, such as "mrc"
    what: str  # the same in words, with an article
    remedy: str  # what to do where something else was expected


_EMPTY = Content("empty", "an empty file", "Copy or export it again")
_TEXT = Content("text", "plain text", "Give the file that the program wrote")
_BINARY = Content("binary", "binary data of no kind known here", "Copy or export it again")
_STAR = Content("star", "a STAR file", "Read it as particles, under a name that ends in .star")
_MRC = Content("mrc", "an MRC file", "Read it as images, under a name that ends in .mrcs, .mrc or .map")
_UNPACK = "Uncompress it, and give what was in it"
_OF_A_PROGRAM = "Give the file that the program wrote"
_EXPORT = "Export it in the format that its name says"
_BEGINNINGS = (  # of a file: its first bytes, and what it is
    (b"version https://git-lfs", "lfs", "a Git LFS pointer, which stands for the file",
     "Fetch the file itself with git lfs pull"),
    (b"\x93NUMPY", "npy", "a numpy array, as .cs files are", "Let its name end in .cs if it holds particles"),
    (b"\x94CSDAT", "csdat", "a compressed cryoSPARC stream", "Save it in the numpy format with "
     'cryosparc-tools: Dataset.load("in.cs").save("out.cs")'),
    (b"\x89HDF\r\n\x1a\n", "hdf5", "an HDF5 file", _EXPORT),
    (b"PK\x03\x04", "zip", "a zip archive, as .npz files are", _UNPACK),
    (b"\x1f\x8b", "gzip", "a file compressed with gzip", _UNPACK),
    (b"BZh", "bzip2", "a file compressed with bzip2", _UNPACK),
    (b"\xfd7zXZ\x00", "xz", "a file compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "zstd", "a file compressed with zstd", _UNPACK),
    (b"\xff\xfe", "utf16", "text in UTF-16", "Save it as UTF-8"),
    (b"\xfe\xff", "utf16", "text in UTF-16", "Save it as UTF-8"),
    (b"II*\x00", "tiff", "a TIFF image", "Convert it to MRC"),
    (b"MM\x00*", "tiff", "a TIFF image", "Convert it to MRC"),
    (b"\x89PNG", "png", "a PNG picture", _OF_A_PROGRAM),
    (b"%PDF", "pdf", "a PDF document", _OF_A_PROGRAM),
    (b"\x80\x04\x95", "pickle", "a Python pickle", _EXPORT),
)  # fmt: skip
_CSDAT = {b"\x95CSDAT": b"\x94CSDAT"}  # two versions of one format
_WEB_PAGE = Content("html", "a web page, as a download that failed leaves it", "Download the file again")


def content_of(start: bytes) -> Content:
    """Recognise a file by its first bytes, a thousand or more.

    Parameters
    ----------
    start : bytes
        The start of the file, all of it if it is short.

    Returns
    -------
    Content
        ``"binary"`` or ``"text"`` where nothing more can be told.
    """
    if not start:
        return _EMPTY
    start = _CSDAT.get(start[:6], start[:6]) + start[6:]
    for beginning, *content in _BEGINNINGS:
        if start.startswith(beginning):
            return Content(*content)
    if start[208:212] == b"MAP ":
        return _MRC
    if b"\x00" in start or start.translate(None, _LETTERS):
        return _BINARY
    text = start.decode("utf-8", "replace").lstrip("\ufeff").lstrip()
    if text[:200].lower().startswith(("<!doctype html", "<html")):
        return _WEB_PAGE
    is_star = text.startswith("data_") or "\ndata_" in text
    return _STAR if is_star else _TEXT


# Letters of text in any encoding that keeps ASCII, without control characters.
_LETTERS = bytes(set(range(32, 256)) - {127} | {9, 10, 12, 13})


def check_content(
    path: str | os.PathLike[str], expected: str, *kinds: str, error: type[Exception] = ParticleDataError
) -> None:
    """Raise if a file cannot be what is expected, and say what it is and what to do.

    Parameters
    ----------
    path : path-like
        The file.
    expected : str
        In words, with an article.
    *kinds : str
        The kinds that it may be, see `content_of`.
    error : type of Exception
        What is raised: "x.star: not a STAR file, but a Git LFS pointer ... . Fetch ... ."
    """
    with open(Path(path), "rb") as stream:
        content = content_of(stream.read(_LOOKED_AT))
    if content.kind not in kinds:
        what = "the file is empty" if content is _EMPTY else f"not {expected}, but {content.what}"
        raise error(f"{path}: {what}. {content.remedy}.")
