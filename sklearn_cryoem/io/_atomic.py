"""Writing files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise unless `path` may be written: its folder exists, and it does not or may be replaced."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist. Create it first.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already. Choose another name, or pass overwrite=True.")


@contextlib.contextmanager
def replacing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Lend a temporary file beside `path`; on success it takes the place of `path`, on an error it goes.

    Raises
    ------
    FileExistsError
        If `path` exists and `overwrite` is False; also if it has come to exist meanwhile.
    FileNotFoundError
        If the folder does not exist.
    """
    check_target(path, overwrite=overwrite)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, _usual_mode())
        check_target(path, overwrite=overwrite)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _usual_mode() -> int:
    """Permissions of a new file under this process's umask; mkstemp gives the owner alone access."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask
