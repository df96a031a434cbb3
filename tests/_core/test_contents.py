"""What a file is by its content, whatever its name says."""

import bz2
import gzip
import io
import lzma
import pickle
import zipfile

import mrcfile
import numpy as np
import pytest

from sklearn_cryoem._core.files import check_content, content_of
from sklearn_cryoem._core.validation import ParticleDataError


def saved(write):
    stream = io.BytesIO()
    write(stream)
    return stream.getvalue()


def zipped(stream):
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("a", "b")


KINDS = {
    "empty": b"",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "npy": saved(lambda stream: np.save(stream, np.zeros(3))),
    "csdat": b"\x95CSDAT" + bytes(50),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(50),
    "zip": saved(zipped),
    "gzip": gzip.compress(b"text"),
    "bzip2": bz2.compress(b"text"),
    "xz": lzma.compress(b"text"),
    "utf16": "data_\n".encode("utf-16"),
    "pickle": pickle.dumps([1], protocol=4),
    "html": b"\n<!DOCTYPE html>\n<html><body>404</body></html>",
    "star": b"\n# version 30001\n\ndata_optics\n\nloop_\n",
    "text": "rlnImageName é\n1@a.mrcs\n".encode(),
    "binary": bytes(range(32)) * 10,
}


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_recognised(tmp_path, kind):
    assert content_of(KINDS[kind]).kind == kind
    path = tmp_path / "x.star"
    path.write_bytes(KINDS[kind])
    check_content(path, "a STAR file", kind)
    with pytest.raises(ParticleDataError) as caught:
        check_content(path, "a STAR file", "something else")
    text = str(caught.value).removeprefix(f"{path}: ")
    assert text.startswith("the file is empty" if kind == "empty" else "not a STAR file, but ")
    assert text.endswith(".") and text.count(". ") == 1, "what it is, and what to do"


def test_an_mrc_file_is_recognised_by_its_tag(tmp_path):
    with mrcfile.new(tmp_path / "a.mrc", np.zeros((4, 4, 4), np.float32)):
        pass
    assert content_of((tmp_path / "a.mrc").read_bytes()).kind == "mrc"
