import numpy as np
import pytest

from sklearn_cryoem._core.exceptions import ParticleDataError
from sklearn_cryoem.particles import ParticleStack, concatenate
from sklearn_cryoem.physics import filters
from sklearn_cryoem.physics.fourier import fourier_resize


@pytest.fixture
def big(numbered_parts):
    return ParticleStack(**numbered_parts(n_images=10, box=16))


# ------------------------------------------------------------------------------------ lazy steps
def test_lazy_steps_equal_the_functions_applied_at_once(big):
    images = big.read()
    np.testing.assert_array_equal(big.invert_contrast().read(), filters.invert_contrast(images))
    np.testing.assert_array_equal(big.downsample(8).read(), fourier_resize(images, 8))
    np.testing.assert_array_equal(big.normalise(10.0).read(), filters.normalise_background(images, 2.5))


def test_steps_happen_in_the_order_asked(big):
    images = big.read([4, 2])
    expected = filters.normalise_background(fourier_resize(-images, 8), 2.0)
    lazy = big.invert_contrast().downsample(8).normalise(16.0)  # 4 A per pixel now: radius 2 px
    np.testing.assert_array_equal(lazy.read([4, 2]), expected)
    np.testing.assert_array_equal(lazy[[4, 2]].read(), expected)
    assert lazy.read([]).shape == (0, 8, 8)


def test_default_background_lies_outside_three_quarters_of_the_box(big):
    np.testing.assert_array_equal(big.normalise().read(), big.normalise(0.75 * 16 * 2.0).read())


def test_the_diameter_is_in_pixels_where_the_pixel_size_is_unknown(numbered_parts):
    parts = {**numbered_parts(box=16), "pixel_size": None}
    stack = ParticleStack(**parts)
    expected = filters.normalise_background(parts["images"], 5.0)
    np.testing.assert_array_equal(stack.normalise(10.0).read(), expected)


def test_downsampling_keeps_angstrom_and_scales_pixels(big, numbered_parts):
    small = big.downsample(8)
    assert small.pixel_size == 4.0
    assert small.shape == (10, 8, 8)
    np.testing.assert_array_equal(small.poses.shift, big.poses.shift)
    unknown = ParticleStack(**{**numbered_parts(box=16), "pixel_size": None})
    np.testing.assert_allclose(unknown.downsample(8).poses.shift, unknown.poses.shift / 2)
    assert unknown.downsample(8).pixel_size is None


def test_a_shift_stays_where_it_was_after_downsampling():
    # A blob 3 A right of the centre lies 3 A right of the centre in the smaller box too.
    y, x = np.mgrid[:32, :32] - 16
    blob = np.exp(-((x - 3) ** 2 + y**2) / 8)[None]
    small = ParticleStack(blob, pixel_size=1.0).downsample(16).read()[0]
    y, x = np.mgrid[:16, :16] - 8
    centre = 2.0 * np.array([(small * x).sum(), (small * y).sum()]) / small.sum()
    np.testing.assert_allclose(centre, [3.0, 0.0], atol=0.05)


@pytest.mark.parametrize("box", [17, 3, 8.0, None])
def test_a_box_that_is_not_smaller_is_refused(big, box):
    with pytest.raises((ValueError, TypeError), match=r"'box' of ParticleStack must be an int in \[4, 16\]"):
        big.downsample(box)


@pytest.mark.parametrize("diameter", [0, -3.0, np.inf])
def test_a_diameter_that_cannot_be_is_refused(big, diameter):
    with pytest.raises(ValueError, match="'diameter' of ParticleStack must be a finite number"):
        big.normalise(diameter)


def test_nothing_is_read_until_it_is_needed(big):
    class Untouchable:
        box, is_in_memory, nbytes = 16, False, 0

        def __len__(self):
            return 10

        def read(self, rows=None, *, check=True):
            raise RuntimeError("touched a pixel")

        def take(self, rows):
            return self

        def describe(self):
            return "nowhere"

        def locate(self, row):
            return "nowhere"

    lazy = ParticleStack(Untouchable(), pixel_size=2.0).normalise().invert_contrast().downsample(8)
    assert "cropped in Fourier space to 8 px" in repr(lazy)
    with pytest.raises(RuntimeError, match="touched a pixel"):
        lazy.read([0])


def test_bad_images_are_named_before_they_are_transformed(numbered_parts):
    parts = numbered_parts(box=16)
    parts["images"][5, 3, 3] = np.nan
    with pytest.raises(ParticleDataError, match="image 5 of the array"):
        ParticleStack(**parts).normalise().downsample(8)[4:].read()


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
    assert whole.optics is None


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
        (lambda stack: stack.downsample(4), r"differ in box: \[4, 8\].*stack.downsample"),
        (lambda stack: stack.with_poses(None), r"stack\(s\) \[1\] have no poses.*stack.with_poses\(None\)"),
        (lambda stack: stack.with_ctf(None), r"stack\(s\) \[1\] have no ctf"),
        (lambda stack: stack.with_truth(None), r"stack\(s\) \[1\] have no truth"),
        (lambda stack: ParticleStack(stack.read()), "differ in pixel size.*Rescale"),
    ],
)
def test_stacks_that_do_not_go_together_are_refused(stack, other, remedy):
    with pytest.raises(ValueError, match=remedy):
        concatenate([stack, other(stack)])


def test_there_must_be_something_to_join():
    with pytest.raises(ValueError, match="expected at least one ParticleStack"):
        concatenate([])
