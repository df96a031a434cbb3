"""What the command line says of options and data that do not go together, before any work."""

import json
from argparse import Namespace

import pandas as pd
import pytest

from sklearn_cryoem import ParticleStack
from sklearn_cryoem.cli.console import CommandError, Console
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.cli.preflight import check_options, warn_about_particles
from sklearn_cryoem.cli.results import warn_of_partition
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.io import write_particles

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
FEW = "--align-classes 2 --align-batches 2 --align-iterations 1 --classes 2x2 --iterations 2 --jobs 1".split()


def options(**given):
    usual = {"classes": 4, "max_shift": None, "mask_diameter": None, "max_resolution": None}
    return Namespace(**{**usual, "skip_align": False, **given})


@pytest.fixture(scope="module")
def stack():
    """60 particles of 24 px of 15 Angstrom: a box of 360 Angstrom."""
    return make_particles("ribosome", 60, box=24, pixel_size=15.0, snr=0.1, random_state=0)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"classes": 61}, "61 classes of 60 particles. Ask for fewer"),
        ({"classes": (8, 8)}, "64 classes of 60 particles. Ask for fewer"),
        ({"max_shift": 181.0}, "more than half the box .180 A.. Give how far"),
    ],
)
def test_what_makes_no_sense_is_refused(given, remedy, stack):
    with pytest.raises(CommandError, match=remedy):
        check_options(options(**given), stack, Console())


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ({"max_resolution": 3.0}, "30 A is the limit"),
    ],
)
def test_what_looks_like_a_wrong_unit_is_questioned(given, remedy, stack, capsys):
    console = Console()
    check_options(options(**given), stack, console)
    assert len(console.warnings) == 1 and remedy in console.warnings[0]
    assert remedy in capsys.readouterr().err


def test_sound_options_are_passed_in_silence(stack, capsys):
    sound = options(classes=(6, 10), max_shift=180.0, mask_diameter=200.0, max_resolution=30.0)
    check_options(sound, stack, Console())
    check_options(options(max_shift=500.0, skip_align=True), stack, Console())  # not used then
    assert capsys.readouterr().err == ""


def test_lengths_are_in_pixels_without_a_pixel_size(stack, capsys):
    bare = ParticleStack(stack.read())
    with pytest.raises(CommandError, match=r"half the box \(12 px\)"):
        check_options(options(max_shift=13.0), bare, Console())
    warn_about_particles(bare, Console(), mask_diameter=5.0)
    assert "it is in pixels" in capsys.readouterr().err


def test_dark_particles_are_noticed_whichever_way_they_became_so(stack, capsys):
    console = Console()
    assert warn_about_particles(stack, console) == [] and console.warnings == []
    found = warn_about_particles(stack.invert_contrast(), console)
    assert [finding.name for finding in found] == ["dark-particles"]
    warn_about_particles(stack.invert_contrast(), console)  # told once
    assert len(console.warnings) == 1 and "--invert" in console.warnings[0]
    assert console.warnings[0].endswith("[dark-particles]")


def test_a_mask_in_the_wrong_unit_is_questioned_in_the_words_of_the_option(stack, capsys):
    console = Console()
    warn_about_particles(stack, console, mask_diameter=72.0)
    assert "--mask-diameter 72 A is 20% of the box (360 A)" in console.warnings[0]
    assert console.warnings[0] in capsys.readouterr().err


def test_noise_alone_has_no_contrast(rng):
    console = Console()
    warn_about_particles(ParticleStack(rng.normal(size=(200, 16, 16))), console)
    for _ in range(5):  # of so few nothing can be said
        warn_about_particles(ParticleStack(rng.normal(size=(1, 16, 16))), console)
    assert console.warnings == []


def test_real_particles_are_bright(shared_data):
    from sklearn_cryoem import read_particles

    real = read_particles(shared_data / "betagal" / "particles_ctf_corrected.star")
    console = Console()
    warn_about_particles(real, console)
    assert console.notices == ["blank-edges"]  # and not dark


def test_the_folder_of_the_images_is_named_where_the_labels_lie_elsewhere(tmp_path, capsys):
    sim, inside, outside = tmp_path / "sim", tmp_path / "sim" / "out", tmp_path / "out"
    words = ["--particles", "30", "--box", "16", "--quiet", "--jobs", "1"]
    assert main(["simulate", "-o", str(sim), *words]) == 0
    (sim / "particles.mrcs").rename(sim / "x.mrcs")
    text = (sim / "particles.star").read_text()
    (sim / "particles.star").write_text(text.replace("particles.mrcs", "x.mrcs"))
    for out, needed in [(inside, False), (outside, True)]:
        assert main(["classify", str(sim / "particles.star"), "-o", str(out), *FEW]) == 0
        assert (f"pass --images-dir {sim} " in capsys.readouterr().out) == needed
    assert main(["info", "--images-dir", str(sim), str(outside / "particles.star")]) == 0
    assert "longest shift angstrom" in capsys.readouterr().out


def test_info_describes_labels_of_a_stack_without_ctf(tmp_path, capsys):
    words = ["--particles", "30", "--box", "16", "--quiet", "--jobs", "1"]
    assert main(["simulate", "-o", str(tmp_path), *words]) == 0
    out = tmp_path / "out"
    assert main(["classify", str(tmp_path / "particles.mrcs"), "-o", str(out), "--quiet", *FEW]) == 0
    capsys.readouterr()
    assert main(["info", str(out / "particles.star")]) == 0
    text = capsys.readouterr().out
    assert "found" in text and "--no-ctf" in text and "30" in text
    (tmp_path / "particles.mrcs").unlink()
    assert main(["info", str(out / "particles.star")]) == 1
    text = capsys.readouterr()
    assert "--images-dir" in text.out and text.err.startswith("error: ") and "--images-dir" in text.err


@pytest.mark.parametrize("passes", ["1", "2"])
def test_summary_and_warnings_agree_on_whether_the_alignment_converged(passes, tmp_path, capsys):
    words = ["--particles", "60", "--box", "16", "--snr", "1", "--quiet", "--jobs", "1"]
    assert main(["simulate", "-o", str(tmp_path), *words]) == 0
    out, few = tmp_path / "out", list(FEW)
    few[few.index("--align-iterations") + 1] = passes
    assert main(["classify", str(tmp_path / "particles.star"), "-o", str(out), "--quiet", *few]) == 0
    summary = json.loads((out / "summary.json").read_text())
    warned = [text for text in summary["warnings"] if text.startswith("MAPAligner stopped at")]
    assert summary["results"]["alignment_converged"] == (not warned) == (passes == "2")
    assert all("Raise --align-iterations, or --align-batches" in text for text in warned)
    assert all(text in capsys.readouterr().err for text in warned)


def test_a_larger_box_is_refused_in_the_words_of_the_option(tmp_path, capsys):
    words = ["--particles", "30", "--box", "16", "--quiet", "--jobs", "1"]
    assert main(["simulate", "-o", str(tmp_path), *words]) == 0
    star, out = str(tmp_path / "particles.star"), tmp_path / "out"
    assert main(["classify", star, "-o", str(out), "--downsample", "32"]) == 1
    assert "--downsample is 32 pixels, expected 4 to 16" in capsys.readouterr().err
    assert not out.exists()


def test_a_wrong_number_of_classes_is_told_of_grids(capsys):
    with pytest.raises(SystemExit):
        main(["classify", "x.star", "-o", "out", "--classes", "10xten"])
    assert "'10xten' is not a whole number from 1, nor a grid such as 10x10" in capsys.readouterr().err


FOUND = {
    "n_classes_with_particles": 9, "agreement_of_repeat": 0.5, "defocus_share": 0.02,
    "defocus_share_by_chance": 0.012, "defocus_p_value": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize(
    ("found", "name"),
    [
        ({}, None),
        ({"agreement_of_repeat": 0.03}, "classes-by-chance"),
        ({"agreement_of_repeat": None}, None),
        ({"agreement_of_repeat": 0.0, "n_classes_with_particles": 1}, None),
        ({"defocus_share": 0.2}, "classes-follow-defocus"),
        ({"defocus_share": 0.2, "defocus_p_value": 0.01}, None),
        ({"defocus_share": float("nan"), "defocus_share_by_chance": float("nan")}, None),
    ],
)
def test_what_is_wrong_with_all_classes_together_is_told(found, name, capsys):
    console = Console(quiet=True)
    warn_of_partition({**FOUND, **found}, console)
    assert console.notices == ([] if name is None else [name])
    assert "mutual information of 0.03" in capsys.readouterr().err or name != "classes-by-chance"


def test_classes_of_noise_do_not_come_out_again_and_those_of_views_do(tmp_path, capsys):
    """The second clustering labels half of the particles, which it has not seen."""
    words = "--skip-align --classes 4x4 --iterations 30 --jobs 1 --seed 0 --quiet".split()
    found = {}
    for name, snr in (("views", 1.0), ("noise", 1e-6)):
        stack = make_particles("ribosome", 200, box=24, snr=snr, n_views=4, random_state=0)
        write_particles(aligned_to_truth(stack), tmp_path / f"{name}.star")
        out = tmp_path / name
        assert main(["classify", str(tmp_path / f"{name}.star"), "-o", str(out), *words]) == 0
        found[name] = json.loads((out / "summary.json").read_text())
        stability = pd.read_csv(out / "quality.csv")["stability"]
        assert stability.min() > 0.9 if name == "views" else stability.max() < 0.3
    assert found["views"]["results"]["agreement_of_repeat"] > 0.9
    assert found["noise"]["results"]["agreement_of_repeat"] < 0.1
    assert "[classes-by-chance]" in capsys.readouterr().err
    assert not any("classes-by-chance" in text for text in found["views"]["warnings"])
    assert any("classes-by-chance" in text for text in found["noise"]["warnings"])
    assert len(found["views"]["results"]["kept_by_rarity"]) == 5
