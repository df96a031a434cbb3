import numpy as np
import pytest

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.particles import ParticleStack
from sklearn_cryoem.physics.fourier import fourier_resize
from sklearn_cryoem.physics.images import normalise_background


@pytest.fixture
def big(numbered_parts):
    return ParticleStack(**numbered_parts(n_images=10, box=16))


# ------------------------------------------------------------------------------------ lazy steps
def test_lazy_steps_equal_the_functions_applied_at_once(big):
    images = big.read()
    np.testing.assert_array_equal(big.invert_contrast().read(), -images)
    np.testing.assert_array_equal(big.downsample(8).read(), fourier_resize(images, 8))
    np.testing.assert_array_equal(big.normalise(10.0).read(), normalise_background(images, 2.5))


def test_steps_happen_in_the_order_asked(big):
    images = big.read([4, 2])
    expected = normalise_background(fourier_resize(-images, 8), 2.0)
    lazy = big.invert_contrast().downsample(8).normalise(16.0)  # 4 A per pixel now: radius 2 px
    np.testing.assert_array_equal(lazy.read([4, 2]), expected)
    np.testing.assert_array_equal(lazy[[4, 2]].read(), expected)
    assert lazy.read([]).shape == (0, 8, 8)


def test_default_background_lies_outside_three_quarters_of_the_box(big):
    np.testing.assert_array_equal(big.normalise().read(), big.normalise(0.75 * 16 * 2.0).read())


def test_the_diameter_is_in_pixels_where_the_pixel_size_is_unknown(numbered_parts):
    parts = {**numbered_parts(box=16), "pixel_size": None}
    stack = ParticleStack(**parts)
    expected = normalise_background(parts["images"], 5.0)
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
