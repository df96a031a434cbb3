"""Density maps: read from files, and phantoms with the blobs and the symmetry that they claim."""

import mrcfile
import numpy as np
import pytest

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.datasets import (
    Volume,
    load_volume,
    make_proteasome_phantoms,
    make_ribosome_phantom,
    make_rings,
    project,
    volume_of_blobs,
)
from sklearn_cryoem.datasets.volumes import PHANTOMS


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


# ---------------------------------------------------------------- phantoms
def correlation(one, other):
    return np.corrcoef(one.ravel(), other.ravel())[0, 1]


def length_along(image, axis, pixel_size):
    """Distance in Angstrom between the outermost places where the profile exceeds a tenth of its maximum."""
    profile = image.max(axis=axis)
    inside = np.flatnonzero(profile > 0.1 * profile.max())
    return (inside[-1] - inside[0]) * pixel_size


@pytest.mark.parametrize("box", [15, 16])
def test_blobs_lie_where_they_are_put(box):
    blobs = np.array([(4.0, -6.0, 2.0, 3.0, 1.5), (0.0, 0.0, 0.0, 4.0, 1.0)])
    volume = volume_of_blobs(blobs, box, 2.0)
    z, y, x = (np.indices((box, box, box)) - box // 2) * 2.0
    expected = sum(
        h * np.exp(-((x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2) / (2 * sd**2)) for a, b, c, sd, h in blobs
    )
    np.testing.assert_allclose(volume.array, expected, atol=1e-6)
    assert (volume.box, volume.pixel_size, volume.array.dtype) == (box, 2.0, np.float32)


@pytest.mark.parametrize("name", PHANTOMS)
def test_phantoms_are_centred_and_fit_their_box_with_room(name):
    make, side = PHANTOMS[name]
    volume = make(48, side / 48)
    assert isinstance(volume, Volume)
    axis = (np.arange(48) - 24) * volume.pixel_size
    mass = volume.array.sum()
    for sums in [(1, 2), (0, 2), (0, 1)]:
        centre = (volume.array.sum(axis=sums) * axis).sum() / mass
        assert abs(centre) < 0.3 * volume.pixel_size
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    outside = np.sqrt(x**2 + y**2 + z**2) > 0.46 * side
    assert volume.array[outside].sum() < 0.01 * mass
    assert volume.array.min() >= 0


def test_the_ribosome_phantom_has_no_symmetry():
    volume = make_ribosome_phantom(40, 8.0)
    # turned by 2 pi / n about each axis, or mirrored: never the same
    axes = np.radians([(0, 0), (0, 90), (90, 90)])
    for rot, tilt in axes:
        turns = np.array([np.pi, 2 * np.pi / 3, np.pi / 2])
        views = project(volume, rot, tilt, np.concatenate([[0.0], turns]))
        assert max(correlation(views[0], view) for view in views[1:]) < 0.97
        assert correlation(views[0], views[0][:, ::-1]) < 0.99


@pytest.mark.parametrize("n_fold", [10, 11, 12])
def test_rings_have_their_fold_and_no_other(n_fold):
    volume = make_rings(n_fold, 64, 6.0)
    turns = 2 * np.pi / n_fold * np.array([0, 1, n_fold - 1, 0.5, 1.5])
    top = project(volume, 0.0, 0.0, turns)
    assert min(correlation(top[0], top[1]), correlation(top[0], top[2])) > 0.999
    assert max(correlation(top[0], other) for other in top[3:]) < 0.9


def test_side_views_tell_the_fold_by_their_length():
    lengths = []
    for n_fold in (10, 11, 12):
        volume = make_rings(n_fold, 96, 4.0)
        assert correlation(volume.array, volume.array[::-1]) < 0.95, "the two faces should differ"
        side = project(volume, 0.0, np.pi / 2, np.pi / 2)[0]  # the disc's axis is vertical or horizontal
        side -= np.median(side)
        lengths.append(max(length_along(side, 0, 4.0), length_along(side, 1, 4.0)))
    steps = np.diff(lengths)
    # neighbours 64 A apart: the ring's diameter grows by 64 / pi = 20 A with every subunit
    assert np.abs(steps - 64 / np.pi).max() < 6.0, f"lengths {lengths}"


def test_the_core_particle_makes_the_difference_between_the_proteasome_pair():
    rp, rp_cp = make_proteasome_phantoms(64, 6.0)
    volumes = []
    for volume in (rp, rp_cp):
        z = np.flatnonzero(volume.array.max(axis=(1, 2)) > 0.1 * volume.array.max())
        volumes.append((z[-1] - z[0]) * 6.0)
    assert volumes[1] - volumes[0] == pytest.approx(130, abs=30)  # the core adds its length below the RP
    assert rp_cp.array.sum() > 1.5 * rp.array.sum()


def test_phantoms_do_not_depend_on_a_random_state():
    np.testing.assert_array_equal(
        make_ribosome_phantom(16, 20.0).array, make_ribosome_phantom(16, 20.0).array
    )


def test_errors_of_phantoms_say_what_to_do():
    with pytest.raises(ValueError, match=r"'n_fold' of make_rings must be an int in \[3"):
        make_rings(2)
    with pytest.raises(ValueError, match="'pixel_size' of volume_of_blobs"):
        volume_of_blobs(np.ones((1, 5)), 8, 0.0)
