"""Stacks of several pixel sizes and boxes in one frame."""

import pickle

import numpy as np
import pandas as pd
import pytest

from sklearn_cryoem import ParticleStack
from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.particles import concatenate, rescale
from sklearn_cryoem.particles.frames import common_frame, pixel_growth


@pytest.fixture(scope="module")
def mixed():
    """The same views of one phantom in two frames."""
    how = {"snr": 1e4, "max_shift": 12.0, "defocus": (12e3, 12e3), "astigmatism": 0.0, "random_state": 4}
    return [
        aligned_to_truth(make_particles("ribosome", 12, box=box, pixel_size=size, **how))
        for box, size in ((72, 5.0), (60, 6.5))
    ]


def test_the_same_particles_are_alike_in_the_common_frame(mixed):
    assert common_frame(mixed) == (6.5, 54)
    joined = concatenate(mixed, rescale=True)
    assert joined.shape == (24, 54, 54) and joined.pixel_size == 6.5
    images = joined.read()
    for one, other in zip(images[:12], images[12:], strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.995
    np.testing.assert_array_equal(joined.poses.shift[:12], mixed[0].poses.shift)
    np.testing.assert_array_equal(joined.ctf.defocus_u_angstrom[12:], mixed[1].ctf.defocus_u_angstrom)


def test_rows_of_both_are_read_in_any_order_and_travel(mixed):
    joined = concatenate(mixed, rescale=True)
    order = np.random.default_rng(0).permutation(24)
    np.testing.assert_array_equal(joined[order].read(), joined.read()[order])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(joined[order])).read(), joined.read(order))
    assert "resampled to 54 px that are 1.3 times larger" in repr(joined)


def test_growth_of_pixels_is_known_through_all_steps(mixed):
    joined = concatenate(mixed, rescale=True)
    np.testing.assert_allclose(pixel_growth(joined.images), [1.3] * 12 + [1.0] * 12)
    assert (pixel_growth(mixed[0].downsample(36).invert_contrast().images) == 2.0).all()
    assert (pixel_growth(concatenate([mixed[0], mixed[0]]).images) == 1.0).all()
    np.testing.assert_allclose(pixel_growth(joined.downsample(27)[[0, 23]].images), [2.6, 2.0])


def test_without_being_asked_nothing_is_rescaled(mixed):
    with pytest.raises(ValueError, match=r"differ in box: \[60, 72\]. Pass rescale=True"):
        concatenate(mixed)
    with pytest.raises(ValueError, match=r"differ in pixel size: .*Pass rescale=True"):
        concatenate([mixed[0], rescale(mixed[1], 6.5, 60)[:3].downsample(60), rescale(mixed[0], 5.5, 60)][1:])
    alike = concatenate([mixed[0], mixed[0]], rescale=True)
    np.testing.assert_array_equal(alike.read([0, 12]), mixed[0].read([0, 0]))


def test_frames_that_cannot_be_are_refused(mixed):
    bare = ParticleStack(mixed[0].read())
    with pytest.raises(ValueError, match=r"has no pixel size. Give it one"):
        rescale(bare, 6.0)
    with pytest.raises(ValueError, match=r"stack\(s\) \[1\] have no pixel size.*Give it"):
        concatenate([mixed[0], bare], rescale=True)
    with pytest.raises(ValueError, match="Take pixels of 5 A or larger"):
        rescale(mixed[0], 4.0)
    assert rescale(mixed[0], 6.0).shape == (12, 60, 60)


def test_a_larger_box_is_filled_with_nothing(mixed):
    inner, wide = rescale(mixed[0], 6.0, 60).read(), rescale(mixed[0], 6.0, 72).read()
    np.testing.assert_allclose(wide[:, 6:66, 6:66], inner, rtol=1e-5, atol=1e-4)
    assert not wide[:, :5].any() and not wide[:, :, 67:].any()


# ------------------------------------------------------------------------------------ concatenate
def test_parts_joined_again_are_the_whole(stack, rows_of):
    whole = concatenate([stack[:5], stack[5:6], stack[6:]])
    assert rows_of(whole) == rows_of(stack)
    assert whole.optics.equals(stack.optics)
    np.testing.assert_array_equal(whole.optics_group, stack.optics_group)


@pytest.mark.parametrize("key", [slice(3, 9), [10, 2, 2, 7], slice(None, None, -1), []])
def test_a_joined_stack_is_sliced_like_any_other(stack, rows_of, key):
    whole = concatenate([stack[:4], stack[4:]])
    assert rows_of(whole[key]) == rows_of(stack[key])
    np.testing.assert_array_equal(whole.read(key), stack.read(key))
    assert whole[key].nbytes == stack[key].nbytes


def test_noise_groups_of_different_stacks_stay_apart(stack):
    whole = concatenate([stack[:3], stack[:3]])
    assert len(set(whole.noise_group[:3]) & set(whole.noise_group[3:])) == 0


def test_optics_groups_of_different_tables_stay_apart(stack, numbered_parts):
    other = ParticleStack(**{**numbered_parts(), "optics": stack.optics.assign(rlnVoltage=200.0)})
    whole = concatenate([stack, other])
    assert len(np.unique(whole.optics_group)) == 4
    assert whole.optics is None  # these have no numbers to tell them by


def test_optics_tables_with_numbers_are_joined(stack):
    names = {"rlnOpticsGroup": [1, 2], "rlnOpticsGroupName": ["a", "b"]}
    parts = [
        ParticleStack(
            stack.read(), optics_group=stack.optics_group,
            metadata=pd.DataFrame({"rlnOpticsGroup": [1, 2] * 6}),
            optics=pd.DataFrame({**names, "rlnVoltage": volts}),
        )
        for volts in (300.0, 200.0)
    ]  # fmt: skip
    whole = concatenate(parts)
    assert whole.optics["rlnOpticsGroup"].tolist() == [1, 2, 3, 4]
    assert whole.optics["rlnOpticsGroupName"].tolist() == ["a", "b", "a_3", "b_4"]
    voltage = whole.metadata["rlnOpticsGroup"].map(whole.optics.set_index("rlnOpticsGroup")["rlnVoltage"])
    assert (voltage[:12] == 300.0).all() and (voltage[12:] == 200.0).all()


def test_bad_images_of_a_joined_stack_are_found(stack, numbered_parts):
    parts = numbered_parts()
    parts["images"][2] = 1.0
    whole = concatenate([stack, ParticleStack(**parts)])
    assert whole.check()["row"].tolist() == [14]
    with pytest.raises(ParticleDataError, match="image 2 of the array"):
        whole.read(slice(10, 16))


@pytest.mark.parametrize(
    ("other", "remedy"),
    [
        (lambda stack: stack.downsample(4), r"differ in box: \[4, 8\].*Pass rescale"),
        (lambda stack: stack.with_poses(None), r"stack\(s\) \[1\] have no poses.*stack.with_poses\(None\)"),
        (lambda stack: stack.with_ctf(None), r"stack\(s\) \[1\] have no ctf"),
        (lambda stack: stack.with_truth(None), r"stack\(s\) \[1\] have no truth"),
        (lambda stack: ParticleStack(stack.read()), "differ in pixel size.*Pass rescale"),
    ],
)
def test_stacks_that_do_not_go_together_are_refused(stack, other, remedy):
    with pytest.raises(ValueError, match=remedy):
        concatenate([stack, other(stack)])


def test_there_must_be_something_to_join():
    with pytest.raises(ValueError, match="expected at least one ParticleStack"):
        concatenate([])
