"""`sklearn-cryoem watch`: files appear between two looks, and a run that ended goes on."""

import json
import shutil
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest

from sklearn_cryoem import load_model, read_particles, report
from sklearn_cryoem.cli import main as cli
from sklearn_cryoem.cli import results, watch
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.io import write_particles

WORDS = ["--jobs", "1", "--align-classes", "3", "--align-batches", "2", "--align-iterations", "2",
         "--classes", "9", "--iterations", "4", "--batch", "40"]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def stack():
    return make_particles("ribosome", 200, box=16, snr=1.0, n_views=3, max_shift=15.0, random_state=0)


@pytest.fixture
def follow(stack, tmp_path, monkeypatch):
    """A function: run `watch` on a folder, doing one thing after the other between looks; its exit code."""
    inbox = tmp_path / "in"
    inbox.mkdir()

    def run(*between, particles=inbox, more=()):
        things, now = iter(between), [0.0]

        def sleep(seconds):
            assert seconds == 30.0, "--every"
            now[0] += seconds
            thing = next(things, KeyboardInterrupt)
            if thing is KeyboardInterrupt:
                raise KeyboardInterrupt
            if callable(thing):
                thing()
            elif thing is not None:
                name, rows = thing
                write_particles(stack[rows], inbox / name, overwrite=True)

        monkeypatch.setattr(results, "draw", lambda *_: None)  # pictures take their time
        monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=sleep, monotonic=lambda: now[0]))
        return cli.main(["watch", str(particles), "-o", str(tmp_path / "out"), *WORDS, *more])

    return run


def outcome(folder):
    summary = json.loads((folder / "summary.json").read_text())
    table = read_particles(folder / "particles.star", images_dir=folder.parent / "in").metadata
    return summary["results"], table[["rlnImageName", "rlnClassNumber", "rlnAnglePsi"]]


def test_files_are_taken_as_they_come_each_particle_once_also_after_a_restart(
    follow, stack, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(report, "report", lambda *_, **__: SimpleNamespace(save=lambda *_, **__: None))
    first, second, third = ("a.star", slice(0, 80)), ("b.star", slice(80, 130)), ("c.star", slice(130, 200))
    # taken at the second look at a file that rests
    assert follow(first, None, None, second, None, None, third, None, None, None) == 130
    said = capsys.readouterr()
    assert "The same command goes on from here" in said.err
    lines = [line for line in said.out.splitlines() if " classes, the finest of " in line]
    assert [line.split()[0] for line in lines] == ["80", "130", "200"]
    assert "held-out" not in lines[0] and "held-out log-likelihood" in lines[1]
    told, whole = outcome(tmp_path / "out")
    assert told["n_particles"] == whole["rlnImageName"].nunique() == 200
    assert load_model(tmp_path / "out" / "model.npz")[0].n_images_seen_ == 200

    shutil.rmtree(tmp_path / "out")
    for name in ("b", "c"):
        (tmp_path / "in" / f"{name}.star").unlink()
    assert follow(None, None) == 130
    assert follow(None, None, second, None, None) == 130  # nothing new at first: what is known stays
    (tmp_path / "out" / "summary.json").unlink()
    assert follow(None, None, None, third, None, None) == 130
    again, parts = outcome(tmp_path / "out")
    assert again["n_particles"] == 200
    np.testing.assert_array_equal(parts.to_numpy(), whole.to_numpy())


def test_a_star_file_may_grow_and_what_is_left_is_taken_when_nothing_comes_any_longer(
    follow, stack, tmp_path
):
    grows = tmp_path / "in" / "all.star"
    write_particles(stack[:80], grows)
    looks = (None, None, ("all.star", slice(0, 95)), None, None, None, None)
    assert follow(*looks, particles=grows, more=("--idle", "90")) == 0
    told, table = outcome(tmp_path / "out")
    assert told["n_particles"] == table["rlnImageName"].nunique() == 95
    assert load_model(tmp_path / "out" / "model.npz")[-1].watched_["sizes"] == [80, 15]
    assert (tmp_path / "out" / "report.html").read_text().count("<html") == 1
    chosen = tmp_path / "good.star"
    assert cli.main(["select", str(tmp_path / "out"), "--classes", "1-9", "-o", str(chosen), "-q"]) == 0
    assert len(read_particles(chosen, metadata_only=True)) == 95
    if shutil.which("relion_star_handler"):
        command = ["relion_star_handler", "--i", "out/particles.star", "--o", "theirs.star"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)


def test_a_file_that_is_half_written_waits_and_a_particle_that_is_gone_is_told(
    follow, stack, tmp_path, capsys
):
    path = tmp_path / "in" / "a.star"
    write_particles(stack[:80], path)
    text = path.read_text()
    path.write_text(text[: len(text) - 30])
    assert follow(None, None) == 130
    assert "a.star is left until it can be read" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model.npz").exists()
    path.write_text(text)
    assert follow(None, None) == 130
    write_particles(stack[:70], path, overwrite=True)
    (tmp_path / "out" / "summary.json").unlink()
    write_particles(stack[:5].downsample(12), tmp_path / "in" / "Z.star")  # read before the one that is known
    assert follow(None, None) == 1
    told = capsys.readouterr().err
    assert "Z.star is left until it can be read: its box and pixel size are [12, " in told
    assert "10 particles that were learned from are no longer in" in told


def test_a_folder_without_particles_is_told_and_that_of_the_results_is_refused(follow, tmp_path, capsys):
    assert follow(None, None, more=("--idle", "30")) == 0
    assert "nothing was learned" in capsys.readouterr().err
    (tmp_path / "out").rename(tmp_path / "aside")
    assert follow(particles=tmp_path / "in", more=("-o", str(tmp_path / "in"))) == 1
    assert "Choose another --output" in capsys.readouterr().err


def test_the_words_about_more_particles():
    state = {"gains": [[0.5, 0.1]], "sizes": [500, 500, 500]}
    assert "not known" in watch._what_more_would_do(state)
    state["gains"] += [[0.2, 0.05]]
    assert "would gain 0.4 nats" in watch._what_more_would_do(state)
    state["gains"] += [[0.05, 0.03], [-0.2, 0.03]]
    assert watch._what_more_would_do(state) == "another thousand would change nothing"


def test_a_file_whose_images_come_later_is_read_when_they_are_there(follow, stack, tmp_path, capsys):
    images, aside = tmp_path / "in" / "a.mrcs", tmp_path / "aside"
    write_particles(stack[:40], tmp_path / "in" / "a.star")
    images.rename(aside)
    assert follow(None, None, None, lambda: aside.rename(images), None) == 130
    assert capsys.readouterr().err.count("a.star is left until") == 1  # once, though tried twice
    assert len(outcome(tmp_path / "out")[1]) == 40
