"""`sklearn-cryoem deep` end to end, on a set small enough for a test."""

import json

import mrcfile
import numpy as np
import pytest

from sklearn_cryoem import load_model, read_particles
from sklearn_cryoem.cli.main import main

FEW = "--align-classes 3 --align-batches 5 --align-iterations 2 --iterations 6 --jobs 1 --quiet".split()
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep") / "sim"
    words = "--particles 150 --box 32 --snr 0.5 --max-shift 15 --jobs 1 --quiet".split()
    assert run("simulate", "-o", folder, *words) == 0
    return folder / "particles.star"


@pytest.fixture(scope="module")
def divided(simulated, tmp_path_factory):
    folder = tmp_path_factory.mktemp("deep") / "out"
    assert run("deep", simulated, "-o", folder, "--images-per-subclass", 12, *FEW) == 0
    return folder


def test_it_writes_all_that_it_promises(divided):
    summary = json.loads((divided / "summary.json").read_text())
    assert summary["command"] == "deep"
    assert set(summary["files"]) == {
        "particles.star", "class_averages.mrcs", "class_averages_model.star", "quality.csv",
        "suggested.json", "tree.json", "gallery.png", "atlas.png", "convergence.png",
        "model.npz", "alignment_averages.mrcs", "alignment_gallery.png", "summary.json",
            "run.yaml",
    }  # fmt: skip
    for name in summary["files"]:
        assert (divided / name).stat().st_size > 0


def test_tree_labels_averages_and_model_agree(divided, simulated):
    tree = json.loads((divided / "tree.json").read_text())
    leaves = [leaf for entry in tree["classes"] for leaf in entry["subclasses"]]
    assert [leaf["class_number"] for leaf in leaves] == list(range(1, tree["n_classes"] + 1))
    stack = read_particles(divided / "particles.star", images_dir=simulated.parent)
    number = stack.metadata["rlnClassNumber"].to_numpy()
    sizes = np.bincount(number, minlength=tree["n_classes"] + 1)[1:]
    assert sizes.tolist() == [leaf["n_images"] for leaf in leaves]
    model = load_model(divided / "model.npz")
    np.testing.assert_array_equal(model.labels_ + 1, number)
    with mrcfile.open(divided / "class_averages.mrcs") as file:
        np.testing.assert_array_equal(file.data, model.class_averages_)


def test_the_suggested_sub_classes_become_a_subset(divided, simulated, tmp_path):
    suggested = json.loads((divided / "suggested.json").read_text())["classes"]
    assert suggested
    good = tmp_path / "good.star"
    assert run("select", divided, "--keep-suggested", "-o", good) == 0
    number = read_particles(good, images_dir=simulated.parent).metadata["rlnClassNumber"]
    assert set(number) <= set(suggested)
    sizes = json.loads((divided / "summary.json").read_text())["results"]
    assert len(number) == sizes["n_particles_suggested"]


def test_poses_of_the_file_can_be_used_and_its_first_classes_are_of_the_clusterer(
    divided, simulated, tmp_path
):
    words = ["--skip-align", "--images-dir", simulated.parent, *FEW]
    for name, more in (("out", ["--classes", "2x1"]), ("united", ["--images-per-subclass", "10"])):
        assert run("deep", divided / "particles.star", "-o", tmp_path / name, *words, *more) == 0
        summary = json.loads((tmp_path / name / "summary.json").read_text())
        assert summary["results"]["n_first_classes"] == 2
        assert "alignment_averages.mrcs" not in summary["files"]
    # by default more nodes are found and united, which keeps a minority together
    assert len(load_model(tmp_path / "united" / "model.npz").first_.class_sizes_) > 2


def test_it_says_what_it_did_and_refuses_what_it_cannot_do(simulated, divided, tmp_path, capsys):
    loud = [word for word in FEW if word != "--quiet"]
    assert run("deep", simulated, "-o", tmp_path / "whole", "--min-class-size", 1000, *loud) == 0
    assert "3 first classes, of which 0 were divided" in capsys.readouterr().out
    assert run("deep", simulated, "-o", tmp_path / "a", "--min-class-size", 1, *FEW) == 1
    assert "--min-class-size" in capsys.readouterr().err
    assert run("deep", simulated, "-o", divided, *FEW) == 1
    assert "--force" in capsys.readouterr().err
    assert run("deep", tmp_path / "no.star", "-o", tmp_path / "b", *FEW) == 1
    assert "there is no" in capsys.readouterr().err


def test_a_run_that_divides_nothing_says_what_to_change(simulated, tmp_path, capsys):
    assert run("deep", simulated, "-o", tmp_path / "out", "--min-class-size", 1000, "--classes", 3, *FEW) == 0
    said = capsys.readouterr().err
    assert "No class was divided" in said
    assert "fewer than 1,000 stay whole. Take fewer --align-classes" in said
    assert "--classes is not used without --skip-align" in said
