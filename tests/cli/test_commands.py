"""The commands end to end, on a set small enough for a test."""

import argparse
import csv
import json

import mrcfile
import numpy as np
import pandas as pd
import pytest
import starfile

from sklearn_cryoem import load_model, read_particles, write_particles
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.cli.simulate import _as_classify_options
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.io import read_mrc
from sklearn_cryoem.metrics import fraction_within
from sklearn_cryoem.report.folder import run_of_folder
from sklearn_cryoem.report.page_data import page_data

FEW = "--align-classes 4 --align-batches 3 --align-iterations 2 --classes 3x3 --iterations 4 --jobs 1".split()
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """150 particles of 32 px with known truth, as files."""
    folder = tmp_path_factory.mktemp("simulated") / "sim"
    words = ["--particles", "150", "--box", "32", "--snr", "0.5", "--max-shift", "15", "--jobs", "1"]
    assert run("simulate", "-o", folder, "--quiet", *words) == 0
    return folder


@pytest.fixture(scope="module")
def classified(simulated, tmp_path_factory):
    """A finished run on them."""
    folder = tmp_path_factory.mktemp("classified") / "out"
    assert run("classify", simulated / "particles.star", "-o", folder, "--quiet", *FEW) == 0
    return folder


# ---------------------------------------------------------------- simulate
def test_simulate_writes_particles_that_can_be_read_and_their_truth(simulated):
    stack = read_particles(simulated / "particles.star")
    assert stack.shape == (150, 32, 32) and stack.ctf is not None and stack.poses is None
    with open(simulated / "truth.csv", newline="") as file:
        truth = list(csv.DictReader(file))
    assert len(truth) == 150 and {"view_x", "angle_rad", "shift_x", "is_junk"} <= set(truth[0])
    assert json.loads((simulated / "summary.json").read_text())["options"]["snr"] == 0.5


def test_the_seed_decides_and_the_jobs_do_not(simulated, tmp_path):
    words = ["--quiet", "--particles", "150", "--box", "32", "--snr", "0.5", "--max-shift", "15"]
    assert run("simulate", "-o", tmp_path / "same", *words, "--jobs", "2") == 0
    assert run("simulate", "-o", tmp_path / "other", *words, "--seed", "1") == 0
    images = [
        read_particles(path / "particles.star").read()
        for path in (simulated, tmp_path / "same", tmp_path / "other")
    ]
    np.testing.assert_array_equal(images[0], images[1])
    assert not np.array_equal(images[0], images[2])


def test_simulate_takes_maps_and_mixtures(tmp_path):
    axis = np.arange(16) - 8
    ball = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 < 16).astype(np.float32)
    with mrcfile.new(tmp_path / "ball.mrc") as mrc:
        mrc.set_data(ball)
        mrc.voxel_size = 5.0
    words = ["--particles", "20", "--box", "16", "--quiet"]
    assert run("simulate", "-o", tmp_path / "map", "--volume", tmp_path / "ball.mrc", *words) == 0
    assert read_particles(tmp_path / "map" / "particles.star").pixel_size == pytest.approx(5.0)
    mixture = ["--phantom", "rp", "rp-cp", "--weights", "1", "3"]
    assert run("simulate", "-o", tmp_path / "mixed", *mixture, *words) == 0
    rows = (tmp_path / "mixed" / "truth.csv").read_text().splitlines()
    assert len(rows) == 21
    assert run("simulate", "-o", tmp_path / "both", "--volume", "a.mrc", "--phantom", "rp", *words) == 1
    assert not (tmp_path / "both").exists()


def test_a_session_is_simulated_repeats_from_its_run_file_and_keeps_its_micrographs(tmp_path):
    words = ["--session", "--particles", "150", "--box", "32", "--quiet", "--jobs", "1"]
    assert run("simulate", "-o", tmp_path / "sim", *words) == 0
    stack = read_particles(tmp_path / "sim" / "particles.star")
    assert len(np.unique(stack.noise_group)) == 3
    with open(tmp_path / "sim" / "truth.csv", newline="") as file:
        truth = list(csv.DictReader(file))
    assert {"micrograph", "contrast", "view_density", "n_neighbours"} <= set(truth[0])
    junk = np.mean([row["is_junk"] == "True" for row in truth])
    assert junk == pytest.approx(0.2, abs=0.12)
    assert run("simulate", "--config", tmp_path / "sim" / "run.yaml", "-o", tmp_path / "again") == 0
    again = read_particles(tmp_path / "again" / "particles.star")
    np.testing.assert_array_equal(again.read(), stack.read())


def test_what_a_session_draws_by_itself_is_refused(tmp_path, capsys):
    words = ["--session", "--views", "5", "--no-rotation"]
    assert run("simulate", "-o", tmp_path / "sim", *words) == 1
    said = capsys.readouterr().err
    assert "--views, --no-rotation. Leave them out, or leave out --session" in said
    assert not (tmp_path / "sim").exists()


# ---------------------------------------------------------------- classify
def test_classify_writes_all_that_it_promises(classified, simulated):
    summary = json.loads((classified / "summary.json").read_text())
    assert sorted(summary["files"]) == sorted(path.name for path in classified.iterdir())
    assert {
        "particles.star",
        "class_averages.mrcs",
        "gallery.png",
        "atlas.png",
        "convergence.png",
        "model.npz",
    } <= set(summary["files"])
    for name in ("gallery.png", "atlas.png", "convergence.png"):
        assert (classified / name).read_bytes().startswith(b"\x89PNG")
    results = summary["results"]
    assert results["n_particles"] == 150 and results["n_classes"] == 9
    assert sum(results["classes"]["size"]) == 150
    assert len(results["classes"]["resolution"]) == len(results["classes"]["latent_position"]) == 9
    assert summary["options"]["classes"] == [3, 3] and summary["options"]["seed"] == 0
    assert {"read", "align", "cluster", "total"} <= set(summary["seconds"])


def test_a_class_has_the_same_resolution_in_all_files(classified):
    quality = pd.read_csv(classified / "quality.csv")["resolution"].to_numpy()
    star = starfile.read(classified / "class_averages_model.star")["rlnEstimatedResolution"].to_numpy()
    summary = json.loads((classified / "summary.json").read_text())["results"]
    page = page_data(run_of_folder(classified, examples=False))
    told = [[np.nan if value is None else value for value in values]
            for values in (summary["classes"]["resolution"], page["resolution"])]  # fmt: skip
    wanted = np.where(np.isfinite(quality), quality, np.nan)
    np.testing.assert_allclose(np.where(star == 999.0, np.nan, star), wanted, rtol=1e-4)
    for values in told:
        np.testing.assert_allclose(values, wanted, rtol=1e-3)
    assert summary["finest_class_resolution"] == pytest.approx(np.nanmin(wanted), rel=1e-4)


def test_references_and_noise_groups_are_options_and_told(simulated, tmp_path, capsys):
    words = ["--align-references", "6", "--noise-groups", *FEW]
    assert run("classify", simulated / "particles.star", "-o", tmp_path / "out", *words) == 0
    assert "aligned with 6 references, merged into 4 classes, in " in capsys.readouterr().out
    results = json.loads((tmp_path / "out" / "summary.json").read_text())["results"]
    assert results["n_alignment_references"] == 6 and results["n_alignment_classes"] == 4
    assert len(results["alignment_pass_resolution"]) == results["alignment_passes"]
    aligner, clusterer = load_model(tmp_path / "out" / "model.npz")
    assert results["alignment_resolution"] == pytest.approx(aligner.resolution_, rel=1e-4)
    assert aligner.n_references == 6
    assert clusterer.noise == "group" and clusterer.noise_groups_ is not None


def test_labels_in_the_file_are_those_of_the_model_and_the_averages(classified, simulated):
    labelled = read_particles(classified / "particles.star", images_dir=simulated)
    numbers = labelled.metadata["rlnClassNumber"].to_numpy()
    assert numbers.min() >= 1 and numbers.max() <= 9
    summary = json.loads((classified / "summary.json").read_text())
    np.testing.assert_array_equal(
        np.bincount(numbers - 1, minlength=9), summary["results"]["classes"]["size"]
    )
    model = load_model(classified / "model.npz")
    np.testing.assert_array_equal(model[-1].labels_, numbers - 1)
    np.testing.assert_array_equal(model[-1].predict(labelled), numbers - 1)
    with mrcfile.open(classified / "class_averages.mrcs") as mrc:
        np.testing.assert_array_equal(mrc.data, model[-1].class_averages_)
        assert float(mrc.voxel_size.x) == pytest.approx(labelled.pixel_size, rel=1e-4)


def test_classes_hold_like_views(classified, simulated):
    numbers = read_particles(classified / "particles.star", images_dir=simulated).metadata["rlnClassNumber"]
    with open(simulated / "truth.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    views = np.array([[float(row[f"view_{axis}"]) for axis in "xyz"] for row in rows])
    labels = numbers.to_numpy()
    everyone = fraction_within(np.zeros(150, int), views, 30)
    assert fraction_within(labels, views, 30) > 1.5 * everyone


def test_averages_have_the_box_of_the_signal_and_on_request_that_of_the_particles(tmp_path):
    source = tmp_path / "in"
    stack = aligned_to_truth(
        make_particles("ribosome", 40, box=80, n_views=2, path=tmp_path / "a.mrcs", random_state=0)
    )
    write_particles(stack, tmp_path / "a.star")
    words = ["--skip-align", "--max-resolution", "24", "--full-averages", "--quiet", *FEW]
    assert run("classify", tmp_path / "a.star", "-o", source, *words) == 0
    small, whole = (read_mrc(source / f"class_averages{end}.mrcs") for end in ("", "_full"))
    assert small[0].shape[1:] == (64, 64) and whole[0].shape == (len(small[0]), 80, 80)
    assert small[1] * 64 == pytest.approx(whole[1] * 80, rel=1e-4)
    assert whole[1] == pytest.approx(stack.pixel_size, rel=1e-4)
    after = read_particles(source / "particles.star", images_dir=tmp_path)
    assert after.box == 80
    np.testing.assert_allclose(after.poses.shift, stack.poses.shift, atol=1e-4)
    page = run_of_folder(source)
    assert page.pixel_size == pytest.approx(small[1], rel=1e-4)


def test_poses_of_the_file_can_be_used_as_they_are(classified, simulated, tmp_path):
    words = ["-o", tmp_path / "out", "--skip-align", "--images-dir", simulated, "--quiet", *FEW]
    assert run("classify", classified / "particles.star", *words) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert "align" not in summary["seconds"]
    before, after = (
        read_particles(path / "particles.star", images_dir=simulated)
        for path in (classified, tmp_path / "out")
    )
    np.testing.assert_allclose(after.poses.angle_rad, before.poses.angle_rad, atol=1e-6)


def test_without_poses_there_is_nothing_to_skip(simulated, tmp_path, capsys):
    assert run("classify", simulated / "particles.star", "-o", tmp_path / "out", "--skip-align", *FEW) == 1
    assert "Leave it out, or give a file with rlnAnglePsi" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        (["--classes", "2x2x2"], "--classes"),
        (["--max-resolution", "1000"], "Ask for a finer resolution"),
        (["--mask-diameter", "9000"], "particle's diameter"),
        (["--align-classes", "500"], "Ask for fewer classes"),
        (["--align-references", "2", "--align-classes", "4"], "--align-references"),
    ],
)
def test_what_cannot_work_is_refused_before_the_alignment(
    words, remedy, simulated, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("sklearn_cryoem.estimators.map_aligner.fit_alignment", None)
    assert run("classify", simulated / "particles.star", "-o", tmp_path / "out", "--jobs", "1", *words) == 1
    assert remedy in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_results_are_not_replaced_unasked(classified, simulated, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in classified.iterdir()}
    assert run("classify", simulated / "particles.star", "-o", classified, *FEW) == 1
    assert "pass --force" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in classified.iterdir()} == before


def test_missing_pictures_are_said_before_any_work(simulated, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run("classify", simulated / "particles.star", "-o", tmp_path / "out", *FEW) == 1
    assert "pip install 'sklearn-cryoem[plot]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "remedy"),
    [
        ("missing.star", None, "Check the path"),
        ("empty.star", "", "empty.star"),
        ("movies.star", "data_movies\n\nloop_\n_rlnMicrographMovieName #1\na.mrc\n", "movies.star"),
        ("lost.star", "data_\n\nloop_\n_rlnImageName #1\n000001@lost.mrcs\n", "lost"),
        ("notes.txt", "hello", ".star"),
    ],
)
def test_bad_input_is_one_line_that_names_the_file(name, content, remedy, tmp_path, capsys):
    if content is not None:
        (tmp_path / name).write_text(content)
    assert run("classify", tmp_path / name, "-o", tmp_path / "out", *FEW) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: ") and remedy in error
    assert not (tmp_path / "out").exists()


def test_permissive_leaves_bad_particles_out_and_lists_them(simulated, tmp_path):
    text = (simulated / "particles.star").read_text().replace("000007@", "000999@")
    (simulated / "damaged.star").write_text(text)
    words = ["-o", tmp_path / "out", "--quiet", *FEW]
    assert run("classify", simulated / "damaged.star", *words) == 1
    assert run("classify", simulated / "damaged.star", "--permissive", *words) == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["results"]["n_left_out"] == 1 and summary["results"]["n_particles"] == 149
    assert "999" in (tmp_path / "out" / "left_out.csv").read_text()
    assert "left out" in summary["warnings"][0]


# ---------------------------------------------------------------- info
def test_info_knows_particles_runs_models_and_maps(classified, simulated, capsys):
    facts = {}
    for path in ("particles.star", "class_averages.mrcs", "model.npz", ""):
        assert run("info", "--json", "--images-dir", simulated, classified / path) == 0
        facts[path] = json.loads(capsys.readouterr().out)
    assert facts["particles.star"]["particles"] == 150 and facts["particles.star"]["in_plane_poses"] == "yes"
    assert facts["class_averages.mrcs"]["box_px"] == 32
    assert "SMLClusterer" in facts["model.npz"]["smlclusterer"]
    assert facts[""]["kind"] == "finished run of classify" and facts[""]["n_classes"] == 9


def test_info_speaks_even_where_images_are_gone(classified, simulated, tmp_path, capsys):
    (tmp_path / "moved.star").write_text((simulated / "particles.star").read_text())
    assert run("info", tmp_path / "moved.star") == 1
    text = capsys.readouterr()
    assert "defocus angstrom" in text.out and "particles.mrcs" in text.out
    assert text.err.startswith("error: ") and "Pass --images-dir" in text.err


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("no.star", "Check the path"), ("x.pdf", "run's folder"), ("folder", "run that ended")],
)
def test_info_says_what_it_cannot_read(name, remedy, tmp_path, capsys):
    (tmp_path / "x.pdf").write_text("")
    (tmp_path / "folder").mkdir()
    assert run("info", tmp_path / name) == 1
    assert remedy in capsys.readouterr().err


# ---------------------------------------------------------------- demo
def in_few_passes(options):
    """What the demo runs, with fewer passes of the alignment."""
    return argparse.Namespace(**{**vars(_as_classify_options(options)), "align_batches": 50})


def test_the_demo_measures_itself(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sklearn_cryoem.cli.simulate._DEMO_BOX", 32)
    words = ["--particles", "300", "--align-classes", "6", "--classes", "16", "--jobs", "1"]
    monkeypatch.setattr("sklearn_cryoem.cli.simulate._as_classify_options", in_few_passes)
    assert run("demo", "-o", tmp_path / "demo", *words) == 0
    text = capsys.readouterr().out
    for word in (
        "within 10 degrees",
        "by chance",
        "in-plane angle",
        "centring",
        "junk",
        "gallery.png",
        "particles.star",
    ):
        assert word in text
    measured = json.loads((tmp_path / "demo" / "summary.json").read_text())["results"]["accuracy"]
    assert measured["pairs_within_20_degrees"] > measured["pairs_within_20_degrees_by_chance"]
