"""Sound data give no warning on any of the ways: reading, looking at images, info, and short fits."""

import re
import warnings

import pytest

from sklearn_cryoem import MAPAligner, SMLClusterer, check_particles, read_particles, write_particles
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.particles.screening import look_at

SIMULATED = {  # phantom, box and the options that differ from the usual
    "junk": ("ribosome", 64, {"junk_fraction": 0.3}),
    "no CTF": ("ribosome", 32, {"defocus": None}),
    "clear": ("ring-10", 48, {"snr": 5.0, "defocus": (15e3, 15e3), "voltage_volts": 200e3}),
    "coloured noise": ("rp", 48, {"noise": "coloured", "junk_fraction": 0.1}),
    "off centre": ("rp-cp", 50, {"max_shift": 40.0, "dtype": "float16"}),
    "wide range": (["ribosome", "ring-10"], 49, {"defocus": (3e3, 40e3), "n_views": 4}),
}


@pytest.mark.parametrize("name", SIMULATED)
def test_simulated_particles_give_no_warning(name, tmp_path, capsys):
    phantom, box, options = SIMULATED[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = make_particles(phantom, 120, box=box, path=tmp_path / "a.mrcs", random_state=0, **options)
        write_particles(made, tmp_path / "a.star")
        stack = read_particles(tmp_path / "a.star", ctf=made.ctf is not None)
        assert check_particles(stack, mask_diameter=0.8 * box * stack.pixel_size) == []
        aligner = MAPAligner(4, n_batches=5, max_iter=2, tol=10.0, random_state=0)
        aligned = aligner.fit_transform(stack[:60])
        SMLClusterer(4, max_resolution=40.0, max_iter=150, tol=1.0, random_state=0).fit(aligned)
    assert main(["info", str(tmp_path / "a.star")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["ngl_betaGal", "4v4r", "3cf3"])
def test_particles_of_real_maps_give_no_warning(shared_data, name):
    """At a small pixel size, where the CTF reaches beyond the box and the particle fills much of it."""
    from sklearn_cryoem.datasets import load_volume

    volume = load_volume(shared_data / "volumes" / f"{name}.mrc")
    stack = make_particles(volume, 100, box=128, pixel_size=3.0, junk_fraction=0.1, random_state=0)
    assert check_particles(stack) == []


def test_real_particles_give_no_warning(shared_data, capsys):
    star = shared_data / "betagal" / "particles_ctf_corrected.star"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stack = read_particles(star)
        stack = stack[look_at(stack).measures.blank_lines == 0.0]  # the others are padded, which is said
        assert check_particles(stack, mask_diameter=190.0) == []
        aligner = MAPAligner(4, mask_diameter=190.0, n_batches=5, max_iter=2, tol=10.0, random_state=0)
        aligned = aligner.fit_transform(stack[:100])
        SMLClusterer(4, mask_diameter=190.0, max_resolution=30.0, max_iter=150, tol=1.0).fit(aligned)
    assert main(["info", str(star)]) == 0
    assert re.fullmatch(r"warning: 15\d of 2,374 .* blank along an edge .*\n", capsys.readouterr().err)
