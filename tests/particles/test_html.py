"""How a stack shows itself in a notebook."""

import re

import numpy as np
import pandas as pd
import pytest

from sklearn_cryoem import CTFTable, MAPAligner, ParticleStack, SMLClusterer, read_particles
from sklearn_cryoem.particles import Poses


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
