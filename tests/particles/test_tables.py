import dataclasses
import pickle

import numpy as np
import pytest

from sklearn_cryoem.particles import CTFTable, ParticleStack, Poses, concatenate
from sklearn_cryoem.physics.ctf import contrast_transfer

PARAMETERS = {
    "defocus_u_angstrom": [15000.0, 12000.0, 20000.0],
    "defocus_v_angstrom": [14000.0, 12000.0, 18000.0],
    "astigmatism_angle_rad": [0.3, 0.0, -1.0],
    "voltage_volts": 300e3,
    "cs_angstrom": 2.7e7,
    "amplitude_contrast": 0.1,
}


@pytest.fixture
def table():
    return CTFTable(**PARAMETERS)


# ------------------------------------------------------------------------------------ CTFTable
def test_single_numbers_are_repeated_for_all_particles(table):
    assert table.voltage_volts.tolist() == [300e3] * 3
    assert table.phase_shift_rad.tolist() == [0.0] * 3
    assert table.scale.tolist() == [1.0] * 3
    assert table.scale.dtype == np.float64
    assert len(table) == 3


def test_a_constant_table_repeats_every_parameter():
    numbers = {name: np.ravel(value)[0] for name, value in PARAMETERS.items()}
    constant = CTFTable.constant(4, **numbers, phase_shift_rad=0.2)
    assert constant.defocus_u_angstrom.tolist() == [15000.0] * 4
    assert constant.phase_shift_rad.tolist() == [0.2] * 4


@pytest.mark.parametrize("key", [slice(1, 3), [2, 0], np.array([False, True, True]), -1])
def test_a_table_is_sliced_like_its_columns(table, key):
    chosen = table[key]
    for field in dataclasses.fields(CTFTable):
        expected = np.atleast_1d(getattr(table, field.name)[key])
        np.testing.assert_array_equal(getattr(chosen, field.name), expected)


def test_evaluation_is_the_ctf_of_each_particle(table):
    frequency, azimuth = np.linspace(0, 0.2, 7), np.linspace(-1, 2, 7)
    values = table.evaluate(frequency, azimuth)
    assert values.shape == (3, 7)
    assert values.dtype == np.float32
    for row in range(3):
        one = {name: np.broadcast_to(value, 3)[row] for name, value in PARAMETERS.items()}
        np.testing.assert_allclose(values[row], contrast_transfer(frequency, azimuth, **one)[0], atol=1e-6)


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(CTFTable)])
def test_every_parameter_reaches_the_ctf(table, name):
    changed = 1.0 if name in ("phase_flipped", "premultiplied") else 1.1 * getattr(table, name) + 0.1
    other = dataclasses.replace(table, **{name: np.broadcast_to(changed, len(table))})
    frequency, azimuth = np.linspace(0.01, 0.2, 50), np.linspace(0, 3, 50)
    assert not np.allclose(other.evaluate(frequency, azimuth), table.evaluate(frequency, azimuth), atol=1e-4)


def test_turning_an_image_turns_its_astigmatism_with_it(table):
    # Eq. (1.6): the aligned CTF at azimuth a is the image's own at a - psi.
    frequency, azimuth = np.full(9, 0.12), np.linspace(0, np.pi, 9)
    psi = np.array([0.7, -0.2, 1.9])
    aligned = table.evaluate(frequency, azimuth, rotation_rad=psi)
    for row in range(3):
        own = table[row].evaluate(frequency, azimuth - psi[row])[0]
        np.testing.assert_allclose(aligned[row], own, atol=1e-5)
    assert np.abs(aligned[0] - table.evaluate(frequency, azimuth)[0]).max() > 0.1


def test_mirroring_an_image_mirrors_its_astigmatism(table):
    # The aligned CTF at azimuth a is the image's own at psi - a.
    frequency, azimuth = np.full(9, 0.12), np.linspace(0, np.pi, 9)
    psi, mirrored = np.array([0.7, -0.2, 1.9]), np.array([True, False, True])
    aligned = table.evaluate(frequency, azimuth, psi, mirrored)
    for row in range(3):
        seen = psi[row] - azimuth if mirrored[row] else azimuth - psi[row]
        np.testing.assert_allclose(aligned[row], table[row].evaluate(frequency, seen)[0], atol=1e-5)
    assert np.abs(aligned[0] - table.evaluate(frequency, azimuth, psi)[0]).max() > 0.1


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"voltage_volts": 300.0}, "Multiply kilovolts by 1000"),
        ({"amplitude_contrast": 10.0}, "Give a fraction, not per cent"),
        ({"amplitude_contrast": -0.1}, "Give a fraction"),
        ({"scale": [1.0, 2.0]}, r"expected \(n_images,\) or one number each"),
        ({"scale": np.ones((3, 1))}, r"expected \(n_images,\) or one number each"),
        ({"cs_angstrom": [2.7e7, np.nan, 2.7e7]}, "cs_angstrom is NaN.*first in row 1. Drop those rows"),
        ({"defocus_u_angstrom": [np.inf, 1.0, 1.0]}, "defocus_u_angstrom is NaN or infinite"),
    ],
)
def test_parameters_that_cannot_be_are_refused(change, remedy):
    with pytest.raises(ValueError, match=remedy):
        CTFTable(**{**PARAMETERS, **change})


def test_a_table_is_immutable_before_and_after_a_pickle(table):
    for one in (table, pickle.loads(pickle.dumps(table))):
        with pytest.raises(AttributeError, match=r"stack\.with_ctf"):
            one.scale = np.ones(3)
        with pytest.raises(ValueError, match="read-only"):
            one.scale[0] = 2.0


def test_a_table_does_not_follow_the_arrays_it_was_made_of():
    defocus = np.array([15000.0, 12000.0])
    table = CTFTable(**{**PARAMETERS, "defocus_u_angstrom": defocus, "defocus_v_angstrom": 1e4,
                        "astigmatism_angle_rad": 0.0})  # fmt: skip
    defocus[0] = 1.0
    assert table.defocus_u_angstrom[0] == 15000.0


def test_replace_makes_a_new_table(table):
    assert dataclasses.replace(table, scale=np.full(3, 2.0)).scale.tolist() == [2.0] * 3
    assert table.scale.tolist() == [1.0] * 3


def test_repr_of_a_table_gives_the_defocus_range(table):
    text = repr(table)
    assert "3 particles" in text
    assert "defocus 1.20 to 1.90 um" in text
    assert "up to 2000 A" in text
    assert repr(table[:0]) == "CTFTable(0 particles)"


# ------------------------------------------------------------------------------------ Poses
def test_poses_are_sliced_in_step():
    poses = Poses([0.1, 0.2, 0.3], [[1, 2], [3, 4], [5, 6]])
    assert poses[[2, 0]].angle_rad.tolist() == [0.3, 0.1]
    assert poses[[2, 0]].shift.tolist() == [[5, 6], [1, 2]]
    assert len(poses[1:1]) == 0
    assert poses[1:1].shift.shape == (0, 2)


def test_shifts_in_pixels_and_scaled():
    poses = Poses([0.0], [[3.0, -6.0]])
    assert poses.shift_px(1.5).tolist() == [[2.0, -4.0]]
    assert poses.shift_px(None).tolist() == [[3.0, -6.0]]
    assert poses.scaled(0.5).shift.tolist() == [[1.5, -3.0]]
    assert Poses.identity(2).shift.tolist() == [[0.0, 0.0]] * 2


@pytest.mark.parametrize(
    ("angle", "shift", "remedy"),
    [
        ([0.0, 1.0], [[0.0, 0.0]], r"expected \(2, 2\): one \(x, y\) for each angle"),
        ([0.0, 1.0], [0.0, 0.0], r"expected \(2, 2\)"),
        ([[0.0, 1.0]], [[0.0, 0.0]], r"expected \(n_images,\)"),
        ([0.0, np.nan], np.zeros((2, 2)), "angle_rad is NaN.*first in row 1"),
        ([0.0, 0.0], [[0.0, np.inf], [0.0, 0.0]], "shift is NaN or infinite.*first in row 0"),
    ],
)
def test_poses_that_do_not_fit_are_refused(angle, shift, remedy):
    with pytest.raises(ValueError, match=remedy):
        Poses(angle, shift)


def test_poses_are_immutable():
    poses = Poses.identity(2)
    with pytest.raises(AttributeError, match=r"stack\.with_poses"):
        poses.shift = np.zeros((2, 2))
    with pytest.raises(ValueError, match="read-only"):
        poses.shift[0, 0] = 1.0


def test_no_image_is_mirrored_unless_said():
    assert Poses([0.0, 1.0], np.zeros((2, 2))).mirrored.tolist() == [False, False]
    assert Poses([0.0, 1.0], np.zeros((2, 2)), True).mirrored.tolist() == [True, True]
    assert Poses.identity(0).mirrored.shape == (0,)


def test_mirrors_follow_their_image():
    poses = Poses([0.1, 0.2, 0.3], [[1, 2], [3, 4], [5, 6]], [True, False, 1])
    assert poses.mirrored.dtype == bool
    assert poses[[1, 0]].mirrored.tolist() == [False, True]
    assert poses.scaled(2.0).mirrored.tolist() == [True, False, True]
    again = pickle.loads(pickle.dumps(poses))
    assert again.mirrored.tolist() == [True, False, True]
    with pytest.raises(ValueError, match="read-only"):
        again.mirrored[0] = False
    stacks = [
        ParticleStack(np.ones((3, 4, 4)), poses=poses),
        ParticleStack(np.ones((1, 4, 4)), poses=poses[1]),
    ]
    assert concatenate(stacks).poses.mirrored.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("mirrored", "remedy"), [([True], r"expected \(2,\) or one value"), ([0, 2], "Give 1 for mirrored")]
)
def test_mirrors_that_cannot_be_are_refused(mirrored, remedy):
    with pytest.raises(ValueError, match=remedy):
        Poses([0.0, 1.0], np.zeros((2, 2)), mirrored)


def test_repr_of_poses_gives_the_shifts():
    assert repr(Poses([0, 0], [[3, 4], [0, 0]])) == "Poses(2 particles, median shift 2.5, largest 5)"
    assert repr(Poses([0, 0], [[3, 4], [0, 0]], [1, 0])).endswith("largest 5, 1 mirrored)")
    assert repr(Poses.identity(0)) == "Poses(0 particles)"
