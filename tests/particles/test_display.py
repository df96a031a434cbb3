"""Grey values, and the PNG files they become."""

import base64
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sklearn_cryoem import CTFTable, MAPAligner, ParticleStack, SMLClusterer, read_particles
from sklearn_cryoem.particles import Poses
from sklearn_cryoem.particles.display import png_data_uri, robust_grey, to_bytes
from sklearn_cryoem.physics.masks import pixel_radius


@pytest.fixture
def rng():
    """One seed: what is tested does not depend on the numbers."""
    return np.random.default_rng(0)


def test_grey_values_do_not_depend_on_brightness_or_contrast(rng):
    images = rng.normal(size=(3, 16, 16)).astype(np.float32)
    np.testing.assert_allclose(robust_grey(7 * images - 3), robust_grey(images), atol=1e-5)


def test_one_hot_pixel_does_not_darken_a_tile(rng):
    image = rng.normal(size=(1, 64, 64)).astype(np.float32)
    spoiled = image.copy()
    spoiled[0, 32, 32] = 1e6
    assert abs(np.median(robust_grey(spoiled)) - np.median(robust_grey(image))) < 0.02


def test_corners_outside_the_mask_do_not_count():
    image = np.zeros((1, 32, 32), np.float32)
    inside = pixel_radius(32) <= 15.5
    image[0, inside] = np.linspace(0, 1, inside.sum())
    spoiled = image.copy()
    spoiled[0, ~inside] = -50.0
    np.testing.assert_allclose(robust_grey(spoiled)[0, inside], robust_grey(image)[0, inside], atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 5.0, np.nan, np.inf])
def test_empty_images_become_mid_grey_without_a_warning(value):
    grey = robust_grey(np.full((2, 8, 8), value, np.float32))
    assert (grey == 0.5).all()


def test_a_bad_tile_does_not_touch_its_neighbour(rng):
    images = rng.normal(size=(2, 16, 16)).astype(np.float32)
    alone = robust_grey(images[:1])
    images[1, 3, 3] = np.nan
    np.testing.assert_array_equal(robust_grey(images)[0], alone[0])


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (64, 32)])
def test_a_data_uri_holds_a_png_that_is_read_back_bit_for_bit(rng, shape):
    smooth = np.add.outer(np.arange(shape[0]), 2 * np.arange(shape[1])) % 256
    for pixels in (rng.integers(0, 256, shape), smooth, np.zeros(shape)):
        kind, _, data = png_data_uri(pixels.astype(np.uint8)).partition(",")
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert kind == "data:image/png;base64" and picture.mode == "L"
        np.testing.assert_array_equal(np.asarray(picture), pixels)


def test_without_pillow_a_stack_shows_its_table_and_says_why_there_are_no_pictures(rng, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "Pillow" in cells(ParticleStack(rng.normal(size=(2, 8, 8))))["images"]


def test_bytes_span_black_to_white_in_equal_steps():
    assert to_bytes(np.array([0.0, 0.5, 1.0, 7.0], np.float32)).tolist() == [0, 128, 255, 255]
    assert np.unique(to_bytes(np.linspace(0, 1, 1000, dtype=np.float32), levels=4)).tolist() == [
        0,
        85,
        170,
        255,
    ]


# ---------------------------------------------------------------- a stack in a notebook
def cells(stack):
    """The table as name -> value."""
    return dict(re.findall(r"<th[^>]*>(.*?)</th><td[^>]*>(.*?)</td>", stack._repr_html_()))


def test_the_table_gives_every_number_its_unit(rng):
    ctf = CTFTable.constant(9, defocus_u_angstrom=12000.0, defocus_v_angstrom=11000.0, voltage_volts=300e3,
                            cs_angstrom=2.7e7, amplitude_contrast=0.1, astigmatism_angle_rad=0.0)  # fmt: skip
    stack = ParticleStack(
        rng.normal(size=(9, 16, 16)), pixel_size=2.5, ctf=ctf, poses=Poses.identity(9),
        noise_group=np.arange(9) // 3, metadata=pd.DataFrame({"rlnDefocusU": np.ones(9)}),
    )  # fmt: skip
    shown = cells(stack)
    assert shown["box"] == "16 px = 40 Å" and shown["pixel size"] == "2.5 Å"
    assert "300 kV, Cs 2.7 mm" in shown["CTF"] and shown["groups"] == "1 of optics, 3 of noise (micrographs)"
    assert shown["poses"] == "in-plane angle and shift" and shown["metadata"] == "1 column"
    assert "9 particles" in stack._repr_html_()


def test_a_bare_stack_says_what_it_lacks(rng):
    shown = cells(ParticleStack(rng.normal(size=(2, 8, 8))))
    assert shown["pixel size"] == "unknown: lengths are in pixels"
    assert shown["CTF"] == "none: taken as 1" and shown["poses"] == "none" and "metadata" not in shown


@pytest.mark.parametrize(("n_images", "expected"), [(0, 0), (2, 2), (50, 6)])
def test_a_few_images_are_shown_and_no_more_are_read(rng, n_images, expected):
    stack = ParticleStack(rng.normal(size=(n_images, 100, 100)).astype(np.float32))
    rows = []
    original = stack.images.read
    object.__setattr__(stack.images, "read", lambda which=None: rows.append(which) or original(which))
    shown = stack._repr_html_()
    assert shown.count("<img") == expected
    assert rows == ([slice(0, expected)] if expected else [])


def test_lost_images_are_told_and_raise_nothing(tmp_path, rng):
    from sklearn_cryoem.io import write_mrc

    write_mrc(tmp_path / "a.mrcs", rng.normal(size=(3, 8, 8)).astype(np.float32), 2.0)
    stack = read_particles(tmp_path / "a.mrcs")
    (tmp_path / "a.mrcs").unlink()
    shown = stack._repr_html_()
    assert "<img" not in shown and "cannot be read" in shown


def test_names_of_files_cannot_become_code(tmp_path, rng):
    from sklearn_cryoem.io import write_mrc

    write_mrc(tmp_path / "<b>.mrcs", rng.normal(size=(3, 8, 8)).astype(np.float32), 2.0)
    assert "<b>.mrcs" not in read_particles(tmp_path / "<b>.mrcs")._repr_html_()


@pytest.mark.parametrize("estimator", [MAPAligner(7), SMLClusterer((3, 4))])
def test_estimators_have_scikit_learns_diagram(estimator):
    shown = estimator._repr_html_()
    assert "sk-estimator" in shown and type(estimator).__name__ in shown
