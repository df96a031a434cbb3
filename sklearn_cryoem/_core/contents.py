"""What a file is by its content, whatever its name says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_LOOKED_AT = 4096  # bytes from the start


@dataclass(frozen=True)
class Content:
    """What the first bytes of a file say.

    Attributes
    ----------
    kind : str
        Short name, such as ``"mrc"``.
    what : str
        The same in words, with an article.
    remedy : str
        What to do where something else was expected.
    """

    kind: str
    what: str
    remedy: str


_EMPTY = Content("empty", "an empty file", "Copy or export it again")
_TEXT = Content("text", "plain text", "Give the file that the program wrote")
_BINARY = Content("binary", "binary data of no kind known here", "Copy or export it again")
_STAR = Content("star", "a STAR file", "Let its name end in .star")
_MRC = Content("mrc", "an MRC file", "Let its name end in .mrcs, .mrc or .map")
_UNPACK = "Uncompress it, and give what was in it"
_BEGINNINGS = (
    (b"version https://git-lfs", Content(
        "lfs", "a Git LFS pointer, which stands for the file", "Fetch the file itself with git lfs pull")),
    (b"\x93NUMPY", Content("npy", "a numpy array, as .cs files are", "Let its name end in .cs if it is one")),
    (b"\x94CSDAT", Content("csdat", "a compressed cryoSPARC stream", "Save it in the numpy format with "
        'cryosparc-tools: Dataset.load("in.cs").save("out.cs")')),
    (b"\x89HDF\r\n\x1a\n", Content("hdf5", "an HDF5 file", "Export it in the format that its name says")),
    (b"PK\x03\x04", Content("zip", "a zip archive, as .npz files are", _UNPACK)),
    (b"\x1f\x8b", Content("gzip", "a file compressed with gzip", _UNPACK)),
    (b"BZh", Content("bzip2", "a file compressed with bzip2", _UNPACK)),
    (b"\xfd7zXZ\x00", Content("xz", "a file compressed with xz", _UNPACK)),
    (b"\x28\xb5\x2f\xfd", Content("zstd", "a file compressed with zstd", _UNPACK)),
    (b"\xff\xfe", Content("utf16", "text in UTF-16", "Save it as UTF-8")),
    (b"\xfe\xff", Content("utf16", "text in UTF-16", "Save it as UTF-8")),
    (b"II*\x00", Content("tiff", "a TIFF image", "Convert it to MRC")),
    (b"MM\x00*", Content("tiff", "a TIFF image", "Convert it to MRC")),
    (b"\x89PNG", Content("png", "a PNG picture", "Give the file that the program wrote")),
    (b"%PDF", Content("pdf", "a PDF document", "Give the file that the program wrote")),
    (b"\x80\x04\x95", Content("pickle", "a Python pickle", "Save it in the format that its name says")),
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
    for beginning, content in _BEGINNINGS:
        if start.startswith(beginning):
            return content
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


def other_content(path: str | os.PathLike[str], expected: str, *kinds: str) -> str:
    """What a file is that cannot be what is expected, and what to do; empty text if it may be.

    Parameters
    ----------
    path : path-like
        The file.
    expected : str
        In words, with an article.
    *kinds : str
        The kinds that it may be, see `content_of`.

    Returns
    -------
    str
        Two sentences: "not a STAR file, but a Git LFS pointer ... . Fetch ... ."
    """
    with open(Path(path), "rb") as stream:
        content = content_of(stream.read(_LOOKED_AT))
    if content.kind in kinds:
        return ""
    what = "the file is empty" if content is _EMPTY else f"not {expected}, but {content.what}"
    return f"{what}. {content.remedy}."
