"""Reading density maps, and refusing what is not one."""

import mrcfile
import numpy as np
import pytest

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.datasets import Volume, load_volume


def write(path, array, pixel_size=(2.5, 2.5, 2.5)):
    with mrcfile.new(path, array, overwrite=True) as mrc:
        mrc.voxel_size = pixel_size
    return path


def test_a_map_comes_back_with_its_axes_and_pixel_size(tmp_path, rng):
    array = rng.standard_normal((6, 6, 6)).astype(np.float32)
    volume = load_volume(write(tmp_path / "map.mrc", array))
    np.testing.assert_array_equal(volume.array, array)
    assert (volume.box, volume.pixel_size) == (6, 2.5)
    assert repr(volume) == "Volume(6^3 voxels of 2.5 A, side 15 A)"
    assert load_volume(str(tmp_path / "map.mrc"), pixel_size=4).pixel_size == 4.0


@pytest.mark.parametrize(
    "name", ["4v4r", "4v4r_50S", "4cr2", "4cr2_RP_rough_DERIVED", "3j9i", "3cf3", "ngl_betaGal"]
)
def test_real_maps_are_read(shared_data, name):
    volume = load_volume(shared_data / "volumes" / f"{name}.mrc")
    assert volume.pixel_size == pytest.approx(3.54 if name == "ngl_betaGal" else 5.0, abs=1e-5)
    assert volume.array.std() > 0


def test_what_is_not_a_map_is_refused_with_the_remedy(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Give the path of an \.mrc map"):
        load_volume(tmp_path / "absent.mrc")
    (tmp_path / "text.mrc").write_text("no map" * 400)
    with pytest.raises(ParticleDataError, match=r"text.mrc: not an MRC file, but plain text. Give the file"):
        load_volume(tmp_path / "text.mrc")
    write(tmp_path / "flat.mrc", np.zeros((4, 6, 6), np.float32))
    with pytest.raises(ParticleDataError, match=r"shape \(4, 6, 6\).*Pad or crop it to a cube"):
        load_volume(tmp_path / "flat.mrc")
    write(tmp_path / "unknown.mrc", np.zeros((6, 6, 6), np.float32), (0, 0, 0))
    with pytest.raises(ParticleDataError, match="Give pixel_size= in Angstrom"):
        load_volume(tmp_path / "unknown.mrc")
    write(tmp_path / "oblong.mrc", np.zeros((6, 6, 6), np.float32), (2, 2, 3))
    with pytest.raises(ParticleDataError, match="Give pixel_size= in Angstrom"):
        load_volume(tmp_path / "oblong.mrc")


def test_a_volume_is_checked_when_it_is_made():
    with pytest.raises(ValueError, match="Replace those voxels by 0"):
        Volume(np.full((4, 4, 4), np.nan), 1.0)
    with pytest.raises(ValueError, match="expected a positive number of Angstrom"):
        Volume(np.zeros((4, 4, 4)), 0.0)
