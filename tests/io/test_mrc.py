import gzip

import mrcfile
import numpy as np
import pytest

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.io import read_mrc, read_particles, write_mrc


@pytest.mark.parametrize("shape", [(6, 8, 8), (8, 8, 8), (7, 9)])
@pytest.mark.parametrize("suffix", [".mrc", ".mrcs"])
def test_what_is_written_is_read_back(tmp_path, shape, suffix):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = tmp_path / f"a{suffix}"
    write_mrc(path, array, 1.7)
    found, pixel_size = read_mrc(path)
    np.testing.assert_array_equal(found, array)
    assert pixel_size == pytest.approx(1.7)
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.is_image_stack() == (suffix == ".mrcs" and len(shape) == 3)


def test_without_a_pixel_size_none_is_read(tmp_path):
    write_mrc(tmp_path / "a.mrc", np.ones((4, 4, 4)))
    assert read_mrc(tmp_path / "a.mrc")[1] is None


def test_other_types_become_float32(tmp_path):
    write_mrc(tmp_path / "a.mrc", np.arange(64).reshape(4, 4, 4))
    assert read_mrc(tmp_path / "a.mrc")[0].dtype == np.float32


def test_nothing_is_overwritten_unasked(tmp_path):
    path = tmp_path / "a.mrc"
    write_mrc(path, np.ones((4, 4, 4)))
    with pytest.raises(FileExistsError, match="overwrite=True"):
        write_mrc(path, np.zeros((4, 4, 4)))
    assert (read_mrc(path)[0] == 1).all()
    write_mrc(path, np.zeros((4, 4, 4)), overwrite=True)
    assert (read_mrc(path)[0] == 0).all()
    with pytest.raises(FileNotFoundError, match="Make it first"):
        write_mrc(tmp_path / "no" / "a.mrc", np.zeros((4, 4, 4)))
    assert [one.name for one in tmp_path.iterdir()] == ["a.mrc"]


@pytest.mark.parametrize(
    "array", [np.ones(4), np.ones((2, 2, 2, 2)), np.ones((3, 3), complex), np.ones((0, 4, 4))]
)
def test_arrays_that_are_no_image_are_refused(tmp_path, array):
    with pytest.raises(ValueError, match="Give one volume, image or stack"):
        write_mrc(tmp_path / "a.mrc", array)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_pixel_size_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'pixel_size' of write_mrc"):
        write_mrc(tmp_path / "a.mrc", np.ones((4, 4)), 0.0)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="Check the name"):
        read_mrc(tmp_path / "no.mrc")
    (tmp_path / "x.mrc").write_bytes(b"text" * 500)
    with pytest.raises(ParticleDataError, match=r"x\.mrc: not an MRC file, but plain text. Give the file"):
        read_mrc(tmp_path / "x.mrc")
    with mrcfile.new(tmp_path / "c.mrc") as mrc:
        mrc.set_data(np.ones((4, 4, 4), np.complex64))
    with pytest.raises(ParticleDataError, match=r"MRC mode 4 \(complex numbers.*Convert the file"):
        read_mrc(tmp_path / "c.mrc")
    write_mrc(tmp_path / "v.mrc", np.ones((4, 4, 4)))
    (tmp_path / "t.mrc").write_bytes((tmp_path / "v.mrc").read_bytes()[:-9])
    with pytest.raises(ParticleDataError, match=r"t\.mrc: cannot be read as MRC.*Check that it is a whole"):
        read_mrc(tmp_path / "t.mrc")


def test_a_compressed_volume_is_read(tmp_path):
    write_mrc(tmp_path / "v.mrc", np.ones((4, 4, 4)), 2.0)
    (tmp_path / "v.mrc.gz").write_bytes(gzip.compress((tmp_path / "v.mrc").read_bytes()))
    assert read_mrc(tmp_path / "v.mrc.gz")[0].shape == (4, 4, 4)


# ------------------------------------------------------------------------------------ bare stacks
def test_a_bare_stack_is_read_as_particles(tmp_path):
    images = np.random.default_rng(0).normal(size=(5, 8, 8)).astype(np.float32)
    write_mrc(tmp_path / "p.mrcs", images, 3.0)
    stack = read_particles(tmp_path / "p.mrcs")
    np.testing.assert_array_equal(stack.read(), images)
    assert stack.pixel_size == pytest.approx(3.0)
    assert stack.ctf is stack.poses is None
    assert stack.metadata["rlnImageName"][4] == f"000005@{tmp_path / 'p.mrcs'}"
    assert read_particles(tmp_path / "p.mrcs", pixel_size=1.5).pixel_size == 1.5
    assert len(read_particles(tmp_path / "p.mrcs", metadata_only=True)) == 5


def test_a_bare_stack_without_pixel_size_is_in_pixels(tmp_path):
    write_mrc(tmp_path / "p.mrcs", np.random.default_rng(0).normal(size=(5, 8, 8)))
    assert read_particles(tmp_path / "p.mrcs").pixel_size is None


def test_a_cube_is_a_volume_unless_it_is_called_mrcs(tmp_path):
    cube = np.random.default_rng(0).normal(size=(8, 8, 8))
    write_mrc(tmp_path / "v.mrc", cube)
    with pytest.raises(ParticleDataError, match=r"so a volume. Read it with load_volume.*rename it to .mrcs"):
        read_particles(tmp_path / "v.mrc")
    write_mrc(tmp_path / "v.mrcs", cube)
    assert len(read_particles(tmp_path / "v.mrcs")) == 8


def test_a_truncated_bare_stack_keeps_its_whole_images_if_permissive(tmp_path):
    images = np.random.default_rng(0).normal(size=(5, 8, 8)).astype(np.float32)
    write_mrc(tmp_path / "p.mrcs", images)
    (tmp_path / "p.mrcs").write_bytes((tmp_path / "p.mrcs").read_bytes()[:-300])
    with pytest.raises(
        ParticleDataError, match=r"particle 4: .*truncated.*promises 5 images, it holds 3 whole"
    ):
        read_particles(tmp_path / "p.mrcs")
    stack, report = read_particles(tmp_path / "p.mrcs", permissive=True)
    np.testing.assert_array_equal(stack.read(), images[:3])
    assert report["particle"].tolist() == [4, 5]
