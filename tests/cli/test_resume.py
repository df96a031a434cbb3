"""A run of the command line that was killed or interrupted: the same command goes on, same result."""

import pytest

from sklearn_cryoem import MAPAligner, load_model
from sklearn_cryoem.cli import main as cli
from sklearn_cryoem.cli._resume import UNFINISHED
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.estimators import _checkpoint
from sklearn_cryoem.io import read_particles, write_particles
from sklearn_cryoem.manifold import crossfit

WORDS = [
    "--jobs",
    "1",
    "--align-classes",
    "3",
    "--align-batches",
    "4",
    "--classes",
    "9",
    "--iterations",
    "12",
    "--quiet",
]
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    path = tmp_path_factory.mktemp("particles") / "particles.star"
    write_particles(make_particles("ribosome", 240, box=24, snr=1.0, max_shift=15.0, random_state=0), path)
    return path


def classify(star, folder):
    return cli.main(["classify", str(star), "-o", str(folder), *WORDS])


def interrupt(monkeypatch, module, name, after):
    calls, function = [], getattr(module, name)

    def interrupted(*args, **options):
        calls.append(args)
        if len(calls) > after:
            raise KeyboardInterrupt
        return function(*args, **options)

    monkeypatch.setattr(module, name, interrupted)


def test_the_same_command_goes_on_where_the_clustering_was_interrupted(star, tmp_path, monkeypatch):
    monkeypatch.setattr(_checkpoint, "SECONDS_BETWEEN", 0.0)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert classify(star, whole) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, crossfit, "fold_statistics", 2)
        assert classify(star, cut) == 130
    assert not (cut / "summary.json").exists()
    assert len(list((cut / UNFINISHED).glob("smlclusterer-*.npz"))) == 1
    with monkeypatch.context() as patch:
        patch.delattr(MAPAligner, "fit")  # the alignment was done and is not done again
        assert classify(star, cut) == 0
    assert not (cut / UNFINISHED).exists()
    assert (cut / "class_averages.mrcs").read_bytes()[1024:] == (whole / "class_averages.mrcs").read_bytes()[
        1024:
    ]
    labels = [
        read_particles(folder / "particles.star", metadata_only=True).metadata["rlnClassNumber"]
        for folder in (cut, whole)
    ]
    assert (labels[0] == labels[1]).all()
    assert load_model(cut / "model.npz")[-1].checkpoint is None


def test_ctrl_c_during_the_alignment_says_how_to_go_on(star, tmp_path, monkeypatch, capsys):
    from sklearn_cryoem.alignment import em

    with monkeypatch.context() as patch:
        interrupt(patch, em, "_after_pass", 1)
        assert classify(star, tmp_path / "out") == 130
    said = capsys.readouterr().err
    assert "The same command goes on from here" in said
    assert "warm_start" not in said
    assert "still changed" not in said  # it was not stopped by --align-iterations
    assert len(list((tmp_path / "out" / UNFINISHED).glob("mapaligner-*.npz"))) == 1
    assert classify(star, tmp_path / "out") == 0


def test_a_run_that_fails_before_its_first_state_leaves_no_folder(star, tmp_path, monkeypatch):
    def fails(*args, **options):
        raise ValueError("nothing works")

    monkeypatch.setattr(MAPAligner, "fit", fails)
    assert classify(star, tmp_path / "out") != 0
    assert not (tmp_path / "out").exists()
