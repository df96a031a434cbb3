import gzip
import os
import pickle
import threading
import time
import warnings

import joblib
import mrcfile
import numpy as np
import pytest

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.particles.file_source import FileSource
from sklearn_cryoem.particles.mrc_files import inspect_mrc, write_mrc_blocks

MODES = {0: np.int8, 1: np.int16, 2: np.float32, 6: np.uint16, 12: np.float16}


def write_stack(path, images, *, byte_order="<", extended=0):
    """An MRC stack as another program may write it: any mode, byte order and extended header."""
    with mrcfile.new(path, overwrite=True) as mrc:
        with np.errstate(invalid="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # mrcfile warns of NaN, which is what some tests want
            mrc.set_data(images)
        mrc.set_image_stack()
        mrc.voxel_size = 2.5
        if extended:
            mrc.set_extended_header(np.zeros(extended, dtype="V1"))
        mrc.header.exttyp = b"FEI1"
    if byte_order == ">":
        swap_bytes(path, images, extended)
    return path


def swap_bytes(path, images, extended):
    content = path.read_bytes()
    header = np.frombuffer(content[:1024], dtype=mrcfile.dtypes.HEADER_DTYPE).copy()
    swapped = header.astype(header.dtype.newbyteorder(">"))
    swapped["machst"] = [[0x11, 0x11, 0, 0]]
    body = images.astype(images.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(swapped.tobytes() + content[1024 : 1024 + extended] + body)


@pytest.fixture
def many_files(tmp_path):
    """A stack of 45 images in 9 files, and its images."""
    generator = np.random.default_rng(0)
    images = generator.normal(size=(9, 5, 8, 8)).astype(np.float32)
    files = [inspect_mrc(write_stack(tmp_path / f"{i}.mrcs", block)) for i, block in enumerate(images)]
    order = generator.permutation(45)
    source = FileSource(files, order // 5, order % 5)
    return ParticleStack(source, pixel_size=2.5), images.reshape(45, 8, 8)[order]


# ------------------------------------------------------------------------------------ headers
@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("extended", [0, 768])
def test_every_mode_byte_order_and_extended_header(tmp_path, mode, byte_order, extended):
    images = np.random.default_rng(mode).integers(0, 100, size=(6, 8, 8)).astype(MODES[mode])
    path = write_stack(tmp_path / "a.mrcs", images, byte_order=byte_order, extended=extended)
    file = inspect_mrc(path)
    assert (file.n_images, file.n_whole_images, file.box, file.offset) == (6, 6, 8, 1024 + extended)
    assert file.pixel_size == pytest.approx(2.5)
    source = FileSource([file], np.zeros(6), np.arange(6))
    np.testing.assert_array_equal(source.read([4, 1, 5]), images[[4, 1, 5]].astype(np.float32))
    with mrcfile.open(path) as mrc:  # the slow twin
        np.testing.assert_array_equal(source.read(), mrc.data.astype(np.float32))


def test_a_single_image_is_a_stack_of_one(tmp_path):
    image = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    with mrcfile.new(tmp_path / "one.mrc") as mrc:
        mrc.set_data(image)
    file = inspect_mrc(tmp_path / "one.mrc")
    np.testing.assert_array_equal(FileSource([file], [0], [0]).read()[0], image)


def test_a_header_without_map_tag_or_with_a_wrong_stamp_is_read_if_the_size_agrees(tmp_path, many_files):
    images = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    path = write_stack(tmp_path / "odd.mrcs", images)
    content = bytearray(path.read_bytes())
    content[208:216] = bytes(8)  # MAP tag and machine stamp
    path.write_bytes(content)
    source = FileSource([inspect_mrc(path)], np.zeros(3), np.arange(3))
    np.testing.assert_array_equal(source.read(), images)
    path.write_bytes(content[:-10])
    with pytest.raises(ParticleDataError, match=r"not a sound MRC file .*Write it again"):
        inspect_mrc(path)


def test_bytes_after_the_last_image_do_no_harm(tmp_path):
    images = np.random.default_rng(0).normal(size=(3, 8, 8)).astype(np.float32)
    path = write_stack(tmp_path / "long.mrcs", images)
    path.write_bytes(path.read_bytes() + b"tail")
    assert inspect_mrc(path).n_images == 3


def test_a_truncated_file_tells_how_many_images_are_whole(tmp_path):
    path = write_stack(tmp_path / "cut.mrcs", np.ones((5, 8, 8), np.float32))
    path.write_bytes(path.read_bytes()[: 1024 + 3 * 256 + 17])
    file = inspect_mrc(path)
    assert (file.n_images, file.n_whole_images) == (5, 3)
    with pytest.raises(ParticleDataError, match=r"cut.mrcs, image 4 does not exist.*holds 3 whole images"):
        FileSource([file], [0, 0], [2, 3])


def spoil(path, start, value):
    content = bytearray(path.read_bytes())
    content[start : start + len(value)] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty. Copy or export it again"),
        (lambda path: path.write_bytes(bytes(500)), "shorter than an MRC header"),
        (
            lambda path: path.write_bytes(b"data_particles\n" * 200),
            "not an MRC file, but a STAR file. Read it as particles",
        ),
        (lambda path: path.write_bytes(bytes(3000)), "not an MRC file"),
        (lambda path: path.write_bytes(gzip.compress(path.read_bytes())), "compressed with gzip. Uncompress"),
        (lambda path: spoil(path, 12, (4).to_bytes(4, "little")), "MRC mode 4.*Convert the file to mode 2"),
        (
            lambda path: spoil(path, 0, (16).to_bytes(4, "little")),
            "16 x 8 pixels.*extract the particles first",
        ),
    ],
)
def test_files_that_are_no_stack_of_images(tmp_path, change, remedy):
    path = write_stack(tmp_path / "bad.mrcs", np.ones((4, 8, 8), np.float32))
    change(path)
    with pytest.raises(ParticleDataError, match=rf"bad\.mrcs.*({remedy})"):
        inspect_mrc(path)


def test_what_is_written_is_read_back_by_mrcfile(tmp_path):
    images = np.random.default_rng(0).normal(size=(7, 8, 8)).astype(np.float32)
    blocks = [images[:3], images[3:6], images[6:]]
    write_mrc_blocks(tmp_path / "w.mrcs", blocks, images.shape, pixel_size=1.5, is_stack=True)
    assert mrcfile.validate(tmp_path / "w.mrcs")
    with mrcfile.open(tmp_path / "w.mrcs") as mrc:
        np.testing.assert_array_equal(mrc.data, images)
        assert mrc.is_image_stack()
        assert mrc.voxel_size.x == pytest.approx(1.5)
        assert mrc.header.rms == pytest.approx(images.std(), rel=1e-5)
        assert (mrc.header.dmin, mrc.header.dmax) == (images.min(), images.max())
    write_mrc_blocks(
        tmp_path / "h.mrcs", blocks, images.shape, pixel_size=None, is_stack=True, dtype="float16"
    )
    assert inspect_mrc(tmp_path / "h.mrcs").dtype == "<f2"


# ------------------------------------------------------------------------------------ reading
@pytest.mark.parametrize(
    "rows", [None, slice(7, 30), [44, 0, 13, 13, 2], np.arange(45)[::-1], np.arange(45) % 7 == 0, slice(3, 3)]
)
def test_images_come_in_the_order_asked_from_whichever_file(many_files, rows):
    stack, images = many_files
    expected = images[slice(None) if rows is None else np.arange(45)[rows]]
    got = stack.read(rows)
    np.testing.assert_array_equal(got, expected)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(stack[[5, 9, 1]].read([2, 0]), images[[1, 5]])


def test_threads_read_the_same_source_at_once(many_files):
    stack, images = many_files
    wrong = []

    def work(seed):
        generator = np.random.default_rng(seed)
        for _ in range(30):
            rows = generator.integers(0, 45, 20)
            if not np.array_equal(stack.read(rows), images[rows]):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_nan_in_a_file_is_named_by_file_and_image(tmp_path):
    images = np.random.default_rng(0).normal(size=(4, 8, 8)).astype(np.float32)
    images[2, 1, 1] = np.nan
    file = inspect_mrc(write_stack(tmp_path / "a.mrcs", images))
    stack = ParticleStack(FileSource([file], [0, 0, 0], [3, 2, 1]))
    with pytest.raises(ParticleDataError, match=r"row 1 .*a\.mrcs, image 3\) holds NaN"):
        stack.read()
    assert stack.check()["image"].tolist() == [f"{tmp_path / 'a.mrcs'}, image 3"]


def test_boxes_must_agree(tmp_path):
    files = [
        inspect_mrc(write_stack(tmp_path / f"{box}.mrcs", np.ones((2, box, box), np.float32)))
        for box in (8, 10)
    ]
    with pytest.raises(ParticleDataError, match=r"images of several sizes.*Use one box for all"):
        FileSource(files, [0, 1], [0, 0])


# ------------------------------------------------------------------------------------ changed files
def test_a_file_that_has_changed_is_noticed(many_files):
    stack, _ = many_files
    path = stack.images.files[0].path
    with open(path, "ab") as file:
        file.write(b"more")
    with pytest.raises(
        ParticleDataError, match=r"has changed since these particles were read. Read them again"
    ):
        stack.read()


def test_a_file_that_was_rewritten_in_place_is_noticed(many_files):
    stack, _ = many_files
    later = time.time() + 60
    os.utime(stack.images.files[3].path, (later, later))
    with pytest.raises(ParticleDataError, match="Read them again"):
        stack.read()


def test_a_file_that_has_gone_is_named(many_files):
    stack, _ = many_files
    os.unlink(stack.images.files[1].path)
    with pytest.raises(ParticleDataError, match=r"1\.mrcs: cannot be opened any more.*images_dir="):
        stack.read()


# ------------------------------------------------------------------------------------ pickle, hash
def test_pickles_are_small_and_hold_the_files_in_use_alone(many_files):
    stack, images = many_files
    long = ParticleStack(FileSource(stack.images.files, np.arange(1000) % 9, np.arange(1000) % 5))
    assert len(pickle.dumps(long)) < 5000 + 1000 * 40
    few = pickle.loads(pickle.dumps(stack[:2]))
    assert len(few.images.files) <= 2
    np.testing.assert_array_equal(few.read(), images[:2])


def test_hashing_reads_no_pixel(many_files, monkeypatch):
    stack, _ = many_files

    def touched(*args, **kwargs):
        raise AssertionError("read a pixel")

    monkeypatch.setattr(FileSource, "read", touched)
    assert joblib.hash(stack) == joblib.hash(pickle.loads(pickle.dumps(stack)))
    assert joblib.hash(stack[4:7]) == joblib.hash(stack[[4, 5, 6]])


@pytest.mark.parametrize("what", ["size", "time"])
def test_hash_changes_with_the_file(tmp_path, what):
    path = write_stack(tmp_path / "a.mrcs", np.ones((3, 8, 8), np.float32))
    before = joblib.hash(FileSource([inspect_mrc(path)], [0], [0]))
    if what == "size":
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        path.write_bytes(path.read_bytes() + b"x")
        os.utime(path, ns=times)
    else:
        os.utime(path, (1, 1))
    assert joblib.hash(FileSource([inspect_mrc(path)], [0], [0])) != before


def test_repr_says_which_files(many_files, tmp_path):
    stack, _ = many_files
    assert f"9 files under {tmp_path}" in repr(stack)
    assert "11.2 kB" in repr(stack)
    one_file = stack[np.flatnonzero(stack.images.file_index == 4)]
    assert str(tmp_path / "4.mrcs") in repr(one_file)
