import copy
import dataclasses
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.particles import ParticleStack, Poses

KEYS = {
    "slice": slice(2, 7),
    "strided": slice(None, None, 3),
    "reversed": slice(None, None, -1),
    "empty": slice(5, 5),
    "past the end": slice(8, 99),
    "shuffled": np.array([7, 0, 11, 3]),
    "repeated": [4, 4, 1],
    "negative": np.array([-1, -12, 5]),
    "mask": np.arange(12) % 5 == 0,
    "list": [1, 2],
    "no rows": [],
    "unsigned": np.array([3, 1], dtype=np.uint8),
    "with ellipsis": (np.array([2, 9]), Ellipsis),
    "with full slice": (slice(1, 3), slice(None)),
    "all": Ellipsis,
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_every_part_follows_the_key(stack, rows_of, key):
    first = key[0] if isinstance(key, tuple) else key
    expected = np.arange(12)[np.asarray(first, dtype=int) if isinstance(first, list) else first].tolist()
    chosen = stack[key]
    assert all(rows == expected for rows in rows_of(chosen).values()), rows_of(chosen)
    assert chosen.optics_group.tolist() == (np.array(expected, dtype=int) % 2 + 1).tolist()
    assert chosen.noise_group.tolist() == (np.array(expected, dtype=int) // 3).tolist()
    assert len(chosen) == len(expected)
    assert chosen.shape == (len(expected), 8, 8)


@pytest.mark.parametrize("row", [0, 5, -1, np.int32(3)])
def test_an_int_gives_a_stack_of_one_particle(stack, rows_of, row):
    assert stack[row].shape == (1, 8, 8)
    assert rows_of(stack[row])["ctf"] == [int(row) % 12]


def test_slices_of_slices_compose(stack, rows_of):
    chosen = stack[2:11][[0, 8, 3]][::-1][:2]
    assert set(map(tuple, rows_of(chosen).values())) == {(5, 10)}


@pytest.mark.parametrize("key", [12, -13, [3, 12], np.array([-13])])
def test_a_row_out_of_range_is_an_index_error(stack, key):
    with pytest.raises(IndexError, match=r"12 rows, 0 to 11, .* out of (range|bounds).*Use an int"):
        stack[key]


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        (
            np.ones(11, dtype=bool),
            r"boolean dimension is 11.*a boolean mask or|boolean index did not match.*a boolean mask or",
        ),
        ((slice(None), 3), "read the images first: stack.read"),
        ((), "read the images first: stack.read"),
        (np.array([0.5]), "Use an int, a slice, a boolean mask or a 1-D array"),
        (np.array([[1]]), "Use an int, a slice, a boolean mask or a 1-D array"),
        ("row", "Use an int, a slice, a boolean mask or a 1-D array"),
    ],
)
def test_other_keys_are_refused(stack, key, remedy):
    with pytest.raises(IndexError, match=remedy):
        stack[key]


def test_iteration_gives_each_particle_once(stack, rows_of):
    assert [rows_of(one)["images"] for one in stack] == [[row] for row in range(12)]


@pytest.mark.parametrize("rows", [None, slice(3, 6), [5, 0], np.arange(12) > 9])
def test_read_gives_float32_images_in_the_order_asked(stack, numbered_parts, rows):
    images = stack.read(rows)
    expected = numbered_parts()["images"]
    np.testing.assert_array_equal(images, expected if rows is None else expected[rows])
    assert images.dtype == np.float32
    assert images.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int16, np.uint8])
def test_any_real_type_of_pixels_is_read_as_float32(dtype):
    images = np.arange(3 * 16).reshape(3, 4, 4).astype(dtype)
    np.testing.assert_array_equal(ParticleStack(images).read(), images.astype(np.float32))


def test_numpy_sees_the_images(stack, numbered_parts):
    np.testing.assert_array_equal(np.asarray(stack), numbered_parts()["images"])
    assert np.asarray(stack, dtype=np.float64).dtype == np.float64
    assert np.array(stack).flags.writeable
    with pytest.raises(ValueError, match=r"Use np.asarray\(stack\)"):
        stack.__array__(copy=False)  # what np.asarray(stack, copy=False) of numpy 2 calls


def test_size_in_numbers(stack):
    assert (len(stack), stack.box, stack.ndim, stack.dtype) == (12, 8, 3, np.float32)
    assert stack.nbytes == 12 * 64 * 4
    assert stack.is_in_memory


# ------------------------------------------------------------------------------------ immutability
@pytest.mark.parametrize("name", ["pixel_size", "ctf", "images", "_ctf", "anything"])
def test_attributes_cannot_be_set(stack, name):
    with pytest.raises(AttributeError, match="with_poses, with_ctf, with_metadata or with_truth"):
        setattr(stack, name, None)


@pytest.mark.parametrize("part", ["optics_group", "noise_group"])
def test_groups_cannot_be_written_into(stack, part):
    with pytest.raises(ValueError, match="read-only"):
        getattr(stack, part)[0] = 5


@pytest.mark.parametrize("name", ["metadata", "optics", "truth"])
def test_tables_handed_out_are_not_the_stack_s_own(stack, name):
    before = getattr(stack, name)
    table = getattr(stack, name)
    table.iloc[0, 0] = 99
    table["new"] = 1
    pd.testing.assert_frame_equal(getattr(stack, name), before)


def test_tables_handed_in_can_change_afterwards(numbered_parts):
    parts = numbered_parts()
    stack = ParticleStack(**parts)
    parts["metadata"].iloc[0, 0] = 99
    parts["optics"]["new"] = 1
    parts["noise_group"][0] = 99
    assert stack.metadata["row"][0] == 0
    assert "new" not in stack.optics
    assert stack.noise_group[0] == 0


def test_copies_are_the_stack_itself(stack):
    assert copy.copy(stack) is stack
    assert copy.deepcopy(stack) is stack


# ------------------------------------------------------------------------------------ construction
@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        ({"ctf": "[:5]"}, "ctf has 5 rows, expected 12.*Slice ctf with the same rows"),
        ({"poses": "[:5]"}, "poses has 5 rows, expected 12.*Slice poses with the same rows"),
        ({"metadata": "[:5]"}, "metadata has 5 rows, expected 12"),
        ({"truth": "[:5]"}, "truth has 5 rows, expected 12"),
        ({"noise_group": "[:5]"}, "noise_group has 5 rows, expected 12"),
        ({"optics_group": np.zeros((12, 1))}, r"optics_group has shape \(12, 1\), expected \(12,\)"),
        ({"pixel_size": 0.0}, r"'pixel_size' of ParticleStack must be a finite number in \(0, inf\)"),
        ({"pixel_size": np.nan}, "'pixel_size' of ParticleStack must be a finite number"),
        ({"images": np.zeros((12, 8, 7))}, "crop or pad them to a common box first"),
        ({"images": np.zeros((12, 8))}, "Give one stack of square images"),
        ({"images": np.zeros((12, 2, 2))}, "D >= 4"),
        ({"images": np.zeros((12, 8, 8), complex)}, "Give images, not their transforms"),
    ],
)
def test_parts_that_do_not_fit_are_refused(numbered_parts, change, remedy):
    parts = numbered_parts()
    changed = {name: parts[name][:5] if isinstance(value, str) else value for name, value in change.items()}
    with pytest.raises(ValueError, match=remedy):
        ParticleStack(**{**parts, **changed})


def test_a_stack_needs_images_only():
    stack = ParticleStack(np.ones((3, 4, 4)) * np.arange(4))
    assert stack.pixel_size is stack.ctf is stack.poses is stack.truth is stack.optics is None
    assert stack.metadata.shape == (3, 0)
    assert stack[1:].metadata.shape == (2, 0)
    assert stack.noise_group.tolist() == [0, 0, 0]


def test_new_stacks_from_old_ones(stack, rows_of):
    turned = stack.with_poses(Poses.identity(12))
    assert (turned.poses.angle_rad == 0).all()
    assert stack.poses.angle_rad[5] == pytest.approx(0.05)
    assert stack.with_poses(None).poses is None
    assert stack.with_ctf(None).ctf is None
    assert stack.with_truth(None).truth is None
    more = stack.with_metadata(score=np.arange(12.0), row=np.arange(12) * 2, origin="here")
    assert more.metadata["score"][11] == 11.0
    assert more.metadata["row"][11] == 22
    assert more.metadata["origin"][3] == "here"
    assert rows_of(stack)["metadata"] == list(range(12))


def test_new_parts_must_be_in_step(stack):
    with pytest.raises(ValueError, match="poses has 3 rows, expected 12"):
        stack.with_poses(Poses.identity(3))
    with pytest.raises(ValueError, match="metadata column 'score' has 3 rows, expected 12"):
        stack.with_metadata(score=[1, 2, 3])


# ------------------------------------------------------------------------------------ repr
def test_repr_says_what_a_person_asks_first(stack):
    text = repr(stack)
    facts = ["12 particles", "8 px", "2 A/px", "in memory", "defocus 0.95 to 0.95 um", "300 kV", "Cs 2.7 mm"]
    facts += ["with poses", "2 optics group(s)", "4 noise group(s)"]
    assert [fact for fact in facts if fact not in text] == []
    bare = repr(ParticleStack(np.zeros((2, 4, 4))))
    assert "unknown pixel size" in bare
    assert "no CTF; no poses" in bare
    assert "0 particles" in repr(stack[:0])


# ------------------------------------------------------------------------------------ pickle, hash
def test_a_pickle_gives_everything_back(stack, rows_of):
    again = pickle.loads(pickle.dumps(stack))
    assert rows_of(again) == rows_of(stack)
    pd.testing.assert_frame_equal(again.metadata, stack.metadata)
    pd.testing.assert_frame_equal(again.optics, stack.optics)
    np.testing.assert_array_equal(again.noise_group, stack.noise_group)
    assert again.pixel_size == stack.pixel_size
    with pytest.raises(AttributeError, match="immutable"):
        again.ctf = None
    with pytest.raises(ValueError, match="read-only"):
        again.ctf.defocus_u_angstrom[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        again.poses.shift[0] = 0
    with pytest.raises(ValueError, match="read-only"):
        again.noise_group[0] = 0


def test_a_pickle_of_a_slice_holds_the_slice_alone(stack):
    big = ParticleStack(np.zeros((1000, 32, 32), np.float32))
    assert len(pickle.dumps(big[:2])) < 3 * 32 * 32 * 4


def test_hash_is_equal_for_equal_stacks_however_they_were_made(stack, numbered_parts):
    assert joblib.hash(stack) == joblib.hash(ParticleStack(**numbered_parts()))
    assert joblib.hash(stack) == joblib.hash(pickle.loads(pickle.dumps(stack)))
    assert joblib.hash(stack[2:6]) == joblib.hash(stack[[2, 3, 4, 5]])
    assert joblib.hash(stack[2:6]) == joblib.hash(pickle.loads(pickle.dumps(stack))[2:6])
    assert joblib.hash(stack[::4]) == joblib.hash(stack[np.arange(12) % 4 == 0])
    assert joblib.hash(stack[:9][3:]) == joblib.hash(stack[3:9])
    shift = np.asfortranarray(stack.poses.shift)  # as columns of a table come
    turned = stack.with_poses(Poses(stack.poses.angle_rad, shift))
    assert joblib.hash(turned) == joblib.hash(stack) and joblib.hash(turned[2:6]) == joblib.hash(stack[2:6])


def test_hash_differs_when_anything_does(stack, numbered_parts):
    other_images = numbered_parts()["images"] + np.float32(1e-3)
    others = [
        stack.with_poses(None),
        stack.with_poses(Poses.identity(12)),
        stack.with_ctf(None),
        stack.with_ctf(stack.ctf[::-1]),
        stack.with_ctf(dataclasses.replace(stack.ctf, scale=np.full(12, 0.5))),
        stack.with_metadata(score=1),
        stack.with_truth(None),
        stack.normalise(),
        stack.invert_contrast(),
        stack.downsample(4),
        stack[::-1],
        stack[1:],
        ParticleStack(**{**numbered_parts(), "pixel_size": 2.5}),
        ParticleStack(**{**numbered_parts(), "images": other_images}),
        ParticleStack(**{**numbered_parts(), "noise_group": np.zeros(12)}),
    ]
    hashes = [joblib.hash(one) for one in [stack, *others]]
    assert len(set(hashes)) == len(hashes)


def test_hash_is_the_same_in_another_process(stack, tmp_path):
    joblib.dump(stack, tmp_path / "stack.joblib")
    code = f"import joblib; print(joblib.hash(joblib.load({str(tmp_path / 'stack.joblib')!r})))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == joblib.hash(stack)


# ------------------------------------------------------------------------------------ bad images
@pytest.fixture
def spoilt(numbered_parts):
    parts = numbered_parts()
    parts["images"][3, 5, 5] = np.nan
    parts["images"][7, 1, 1] = np.inf
    parts["images"][9] = 2.5
    return ParticleStack(**parts)


def test_check_lists_the_images_that_cannot_be_used(spoilt):
    found = spoilt.check()
    assert found["row"].tolist() == [3, 7, 9]
    assert found["problem"].tolist()[:2] == ["holds NaN or infinity"] * 2
    assert found["problem"][2] == "is constant (every pixel is 2.5)"
    assert spoilt[:3].check().empty
    assert spoilt.normalise().check()["row"].tolist() == [3, 7, 9]


def test_reading_a_bad_image_names_it_and_says_what_to_do(spoilt):
    with pytest.raises(ParticleDataError, match=r"row 7.*NaN or infinity.*permissive=True"):
        spoilt.read([8, 7])
    with pytest.raises(ParticleDataError, match=r"row 1 .*image 9 of the array.*is constant.*stack.check"):
        spoilt[8:].read()
    with pytest.raises(ParticleDataError, match=r"2 more in the same block"):
        spoilt.read()
    assert spoilt.read([0, 1, 2, 4]).shape == (4, 8, 8)
