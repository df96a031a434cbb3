"""Headers of MRC files that read wrongly if they are not heeded."""

import itertools
import os
import signal
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
from mrcfile.dtypes import HEADER_DTYPE

from sklearn_cryoem._core.validation import ParticleDataError, ParticleDataWarning
from sklearn_cryoem.datasets import load_volume
from sklearn_cryoem.io import read_mrc, read_particles
from sklearn_cryoem.particles.mrc_files import write_mrc_blocks

IMOD_STAMP, SIGNED, UNSIGNED = 1146047817, 1, 0


@pytest.fixture
def rng():
    """One seed: what is tested does not depend on the numbers."""
    return np.random.default_rng(0)


def write(path, array, *, order="<", voxel=2.0, **fields):
    """An MRC file with these fields in its header; `imod` is stamp and flags of IMOD."""
    mrcfile.write(path, array, voxel_size=voxel, overwrite=True)
    with mrcfile.open(path, "r+", permissive=True) as mrc:
        imod = fields.pop("imod", None)
        for name, value in fields.items():
            mrc.header[name] = value
        content = bytearray(mrc.header.tobytes() + array.tobytes())
    if imod is not None:
        content[152:160] = np.array(imod, dtype="<i4").tobytes()
    if order == ">":
        header = np.frombuffer(bytes(content[:1024]), dtype=mrcfile.dtypes.HEADER_DTYPE).copy()
        stamp = np.array([0x11, 0x11, 0, 0], dtype=np.uint8)
        imod = np.frombuffer(bytes(content[152:160]), dtype="<i4").astype(">i4").tobytes()
        big = header.astype(header.dtype.newbyteorder(">"))
        big["machst"] = stamp
        content[:1024] = big.tobytes()
        content[152:160] = imod
        content[1024:] = array.astype(array.dtype.newbyteorder(">")).tobytes()
    path.write_bytes(content)
    return path


@pytest.fixture
def grey(rng):
    """Images of grey values from 0 to 255."""
    return rng.integers(0, 256, (5, 8, 8), dtype=np.uint8)


# ------------------------------------------------------------------------------------ written
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("pixel_size", [1.5, None])
@pytest.mark.parametrize(
    ("shape", "is_stack"), [((5, 6), False), ((4, 5, 6), False), ((4, 5, 6), True), ((1, 6, 6), True)]
)
def test_a_new_header_is_that_of_mrcfile(tmp_path, rng, shape, is_stack, pixel_size, dtype):
    array = rng.normal(size=shape).astype(dtype)
    write_mrc_blocks(tmp_path / "a", [array], shape, pixel_size=pixel_size, is_stack=is_stack, dtype=dtype)
    mode = {"float32": 2, "float16": 12}[dtype]
    with mrcfile.new_mmap(tmp_path / "b", shape, mrc_mode=mode, overwrite=True) as mrc:
        mrc.data[:] = array
        if is_stack:
            mrc.set_image_stack()
        if pixel_size is not None:
            mrc.voxel_size = pixel_size
    ours, theirs = ((tmp_path / name).read_bytes() for name in "ab")
    assert ours[1024:] == theirs[1024:]
    ours, theirs = (np.frombuffer(content[:1024], dtype=HEADER_DTYPE)[0] for content in (ours, theirs))
    own = {"label", "dmin", "dmax", "dmean", "rms"}
    for name in set(HEADER_DTYPE.names) - own:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert mrcfile.validate(tmp_path / "a")


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
@pytest.mark.parametrize("limit", [500, 2000])  # bytes: in the header, and in the pixels
def test_a_full_disk_leaves_no_file_open(tmp_path, rng, limit):
    import resource

    images = rng.normal(size=(5, 16, 16)).astype("f4")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_mrc_blocks(tmp_path / "a.mrcs", [images], images.shape, pixel_size=1.0, is_stack=True)
        files = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(tmp_path / "a.mrcs") not in files


# ------------------------------------------------------------------------------------ bytes
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("fields", "signed"),
    [
        ({"imod": (IMOD_STAMP, UNSIGNED)}, False),
        ({"imod": (IMOD_STAMP, SIGNED)}, True),
        ({"imod": (0, UNSIGNED), "dmin": 0, "dmax": 100}, True),
        ({"dmin": 0, "dmax": 255}, False),
        ({"dmin": -128, "dmax": 127}, True),
    ],
)
def test_bytes_are_signed_as_the_header_says(tmp_path, grey, order, fields, signed):
    path = write(tmp_path / "a.mrcs", grey.view(np.int8), order=order, **fields)
    expected = grey.view(np.int8) if signed else grey
    np.testing.assert_array_equal(read_particles(path).read(), expected)
    np.testing.assert_array_equal(read_mrc(path)[0], expected)
    np.testing.assert_array_equal(read_particles(path).read([3, 1]), expected[[3, 1]])


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["i1", "i2", "f4", "u2", "f2"])
def test_every_mode_of_real_numbers_in_both_byte_orders(tmp_path, rng, dtype, order):
    images = (rng.normal(size=(5, 8, 8)) * 30 + 40).clip(0, 127).astype(dtype)
    path = write(tmp_path / "a.mrcs", images, order=order)
    np.testing.assert_array_equal(read_particles(path).read(), images)
    np.testing.assert_array_equal(read_mrc(path)[0], images)


@pytest.mark.parametrize(
    ("mode", "what"), [(3, "complex 16-bit"), (4, "a Fourier transform"), (16, "colours"), (101, "4-bit")]
)
def test_other_modes_are_named(tmp_path, rng, mode, what):
    path = write(tmp_path / "a.mrc", rng.normal(size=(5, 8, 8)).astype("f4"), mode=mode)
    for read in (read_particles, read_mrc, load_volume):
        with pytest.raises(ParticleDataError, match=rf"a.mrc: MRC mode {mode} \(.*{what}.*Convert the file"):
            read(path)


# ------------------------------------------------------------------------------------ axes
@pytest.mark.parametrize("axes", list(itertools.permutations((1, 2, 3))))
def test_a_map_has_the_axes_that_its_header_says(tmp_path, rng, axes):
    """`axes` are those of columns, rows and sections; an array of sections, rows, columns is stored."""
    volume = rng.normal(size=(6, 6, 6)).astype("f4")  # [z, y, x]
    stored = volume.transpose([{1: 2, 2: 1, 3: 0}[axis] for axis in axes[::-1]])
    column, row, section = (2, 3, 1)  # z, y, x of one voxel
    place = {1: section, 2: row, 3: column}
    assert stored[tuple(place[axis] for axis in axes[::-1])] == volume[column, row, section]
    names = dict(zip(("mapc", "mapr", "maps"), axes, strict=True))
    path = write(tmp_path / "m.mrc", np.ascontiguousarray(stored), **names)
    np.testing.assert_array_equal(load_volume(path).array, volume)
    np.testing.assert_array_equal(read_mrc(path)[0], volume)


def test_an_oblong_map_has_its_axes_and_the_pixel_size_along_x(tmp_path, rng):
    volume = rng.normal(size=(4, 5, 6)).astype("f4")
    fields = {"mapc": 3, "mapr": 2, "maps": 1, "mx": 6, "my": 5, "mz": 4, "cella": (12.0, 15.0, 16.0)}
    path = write(tmp_path / "m.mrc", np.ascontiguousarray(volume.transpose(2, 1, 0)), **fields)
    with pytest.warns(ParticleDataWarning, match="2 A a pixel along x and 3 A along y"):
        array, pixel_size = read_mrc(path)
    np.testing.assert_array_equal(array, volume)
    assert pixel_size == 2.0


def test_axes_left_out_are_the_usual_ones_and_senseless_ones_are_refused(tmp_path, rng):
    volume = rng.normal(size=(6, 6, 6)).astype("f4")
    path = write(tmp_path / "m.mrcs", volume, mapc=0, mapr=0, maps=0)
    np.testing.assert_array_equal(load_volume(path).array, volume)
    np.testing.assert_array_equal(read_particles(path).read(), volume)
    path = write(tmp_path / "m.mrcs", volume, mapc=1, mapr=1, maps=3)
    for read in (read_particles, read_mrc, load_volume):
        with pytest.raises(ParticleDataError, match=r"axes \(1, 1, 3\).*expected 1, 2 and 3.*Write the file"):
            read(path)


@pytest.mark.parametrize("axes", [(2, 1, 3), (3, 2, 1)])
def test_stacks_with_other_axes_are_refused(tmp_path, rng, axes):
    names = dict(zip(("mapc", "mapr", "maps"), axes, strict=True))
    path = write(tmp_path / "a.mrcs", rng.normal(size=(5, 8, 8)).astype("f4"), **names)
    with pytest.raises(
        ParticleDataError, match=r"a.mrcs: .*images are mirrored or cut across. Write the stack"
    ):
        read_particles(path)


def test_an_oblique_cell_is_refused(tmp_path, rng):
    path = write(tmp_path / "a.mrc", rng.normal(size=(8, 8, 8)).astype("f4"), cellb=(90, 90, 120))
    with pytest.raises(ParticleDataError, match=r"angles of its cell are \[90.0, 90.0, 120.0\].*Resample"):
        load_volume(path)


# ------------------------------------------------------------------------------------ pixel size
@pytest.mark.parametrize(
    "fields",
    [
        {"cella": (1.0, 1.0, 1.0)},
        {"cella": (1.0, 1.0, 1.0), "mx": 1, "my": 1, "mz": 1},
        {"cella": (0.0, 0.0, 0.0)},
        {"cella": (8e-9, 8e-9, 8e-9)},
        {"cella": (8e9, 8e9, 8e9)},
        {"mx": 0},
        {"cella": (np.nan, np.nan, np.nan)},
    ],
)
def test_a_cell_that_says_nothing_is_no_pixel_size(tmp_path, rng, fields):
    path = write(tmp_path / "a.mrcs", rng.normal(size=(8, 8, 8)).astype("f4"), **fields)
    assert read_particles(path).pixel_size is None
    assert read_mrc(path)[1] is None
    with pytest.raises(ParticleDataError, match="Give pixel_size= in Angstrom"):
        load_volume(path)
    assert load_volume(path, pixel_size=1.5).pixel_size == 1.5


def test_an_extended_header_is_stepped_over(tmp_path, rng):
    images = rng.normal(size=(5, 8, 8)).astype("f4")
    path = write(tmp_path / "a.mrcs", images, nsymbt=160)
    content = path.read_bytes()
    path.write_bytes(content[:1024] + bytes(160) + content[1024:])
    np.testing.assert_array_equal(read_particles(path).read(), images)
    np.testing.assert_array_equal(read_mrc(path)[0], images)
