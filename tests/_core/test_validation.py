"""Messages say what was found, what was expected, and whose parameter it is."""

import numpy as np
import pytest

from sklearn_cryoem._core.validation import check_choice, check_images, check_number


@pytest.mark.parametrize("value", [1, 5, np.int64(3)])
def test_integers_inside_the_interval_pass(value):
    check_number("n_clusters", value, owner="SMLClusterer", minimum=1, maximum=5, integer=True)


@pytest.mark.parametrize("value", [True, 2.0, "3", None, [1]])
def test_what_is_not_an_integer_is_a_type_error(value):
    with pytest.raises(TypeError, match=r"'n_clusters' parameter of|The parameter 'n_clusters' of SML"):
        check_number("n_clusters", value, owner="SMLClusterer", minimum=1, integer=True)


@pytest.mark.parametrize("value", [0, -3, 6])
def test_numbers_outside_the_interval_are_named_with_the_interval(value):
    with pytest.raises(ValueError, match=rf"an int in \[1, 5\]\. Got {value} instead"):
        check_number("n_clusters", value, owner="SMLClusterer", minimum=1, maximum=5, integer=True)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0])
def test_open_bounds_and_non_finite_numbers_are_refused(value):
    with pytest.raises(ValueError, match=r"a finite number in \(0, inf\)"):
        check_number("alpha", value, owner="SMLClusterer", minimum=0, inclusive=False)


def test_none_passes_only_where_it_is_allowed():
    check_number("max_resolution", None, owner="MAPAligner", minimum=0, allow_none=True)
    with pytest.raises(TypeError, match="Got None instead"):
        check_number("max_resolution", None, owner="MAPAligner", minimum=0)


def test_choices_are_listed():
    check_choice("noise", "white", ("white", "shell"), owner="SMLClusterer")
    with pytest.raises(ValueError, match=r"must be one of 'white', 'shell'\. Got 'pink' instead"):
        check_choice("noise", "pink", ("white", "shell"), owner="SMLClusterer")
    with pytest.raises(ValueError, match="must be one of"):
        check_choice("noise", np.zeros(3), ("white", "shell"), owner="SMLClusterer")


def test_images_become_contiguous_float32():
    images = np.arange(2 * 6 * 6).reshape(2, 6, 6)[:, ::-1]
    checked = check_images(images)
    assert checked.dtype == np.float32
    assert checked.flags.c_contiguous
    np.testing.assert_array_equal(checked, images)


@pytest.mark.parametrize("shape", [(6, 6), (2, 6, 5), (2, 3, 3), (1, 2, 6, 6)])
def test_wrong_shapes_say_what_was_found_and_what_to_do(shape):
    with pytest.raises(ValueError, match=r"expected \(n_images, D, D\) with D >= 4.*crop or pad"):
        check_images(np.zeros(shape))


def test_the_first_image_with_a_nan_is_named():
    images = np.zeros((5, 8, 8))
    images[3, 2, 2] = np.nan
    with pytest.raises(ValueError, match=r"1 image\(s\), the first at index 3.*permissive=True"):
        check_images(images)
