"""What a run takes over: the alignment of an earlier run, averages, or projections of a map."""

import re

import numpy as np
import pytest

from sklearn_cryoem import MAPAligner, load_model, read_particles
from sklearn_cryoem.cli import results
from sklearn_cryoem.cli.classify import make_aligner
from sklearn_cryoem.cli.main import main, parse
from sklearn_cryoem.datasets import make_particles, make_ribosome_phantom, project
from sklearn_cryoem.io import write_mrc, write_particles

FEW = "--align-classes 2 --align-batches 2 --align-iterations 1 --classes 2x2 --iterations 2 --jobs 1".split()
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    """They take their time, and tests/cli/test_commands.py looks at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "draw", lambda *_: None)
        yield


def run(*words):
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def star(tmp_path_factory):
    path = tmp_path_factory.mktemp("particles") / "particles.star"
    write_particles(make_particles("ribosome", 60, box=24, snr=0.5, random_state=0), path)
    return path


@pytest.fixture(scope="module")
def first(star):
    folder = star.parent / "first"
    assert run("classify", star, "-o", folder, *FEW) == 0
    return folder


def test_an_alignment_is_taken_over_where_nothing_that_it_depends_on_has_changed(
    first, tmp_path, monkeypatch, capfd
):
    again = ("classify", "--config", first / "run.yaml", "--classes", "3x2")
    with monkeypatch.context() as patch:
        patch.setattr(MAPAligner, "fit", lambda *_: pytest.fail("aligned again"))
        assert run(*again, "-o", tmp_path / "out") == 0
        assert "that of the earlier run is taken" in capfd.readouterr().err
        assert run(*again, "-o", tmp_path / "out", "--force", "--jobs", 2) == 0, (
            "or of the run that it replaces"
        )
    old, new = load_model(first / "model.npz"), load_model(tmp_path / "out" / "model.npz")
    np.testing.assert_array_equal(old[0].poses_.angle_rad, new[0].poses_.angle_rad)
    assert len(new[1].class_averages_) == 6


def test_alignments_of_other_options_or_particles_are_made_anew(first, star, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(MAPAligner, "fit", stop)
    for change in (["--max-shift", "40"], ["--seed", "1"], ["--invert"]):
        assert run("classify", "--config", first / "run.yaml", "-o", tmp_path / "out", *change) != 0
    fewer = tmp_path / "fewer.star"
    write_particles(read_particles(star)[:50], fewer)
    assert run("classify", fewer, "--config", first / "run.yaml", "-o", tmp_path / "out") != 0


def test_a_run_that_goes_on_says_so(star, tmp_path, monkeypatch, capfd):
    from sklearn_cryoem import SMLClusterer

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(SMLClusterer, "fit", stop)
        assert run("classify", star, "-o", tmp_path / "out", *FEW) != 0
    assert "going on" not in capfd.readouterr().err
    assert run("classify", star, "-o", tmp_path / "out", *FEW) == 0
    assert re.search("out: going on from where an earlier run ended", capfd.readouterr().err)


def aligner(star, *words):
    options = parse(["classify", str(star), "-o", "out", *map(str, words)])
    return make_aligner(options, read_particles(star))


def test_references_are_brought_to_the_pixels_of_the_particles(star, tmp_path):
    volume, stack = make_ribosome_phantom(48, 7.0), read_particles(star)
    averages = project(volume, [0.1, 0.5, 1.0], [0.3, 1.0, 2.0])
    write_mrc(tmp_path / "averages.mrcs", averages, 7.0)
    found = aligner(star, "--ref", tmp_path / "averages.mrcs")
    assert found.n_clusters == 3, "as many classes as there are averages at most"
    expected = project(volume, [0.1, 0.5, 1.0], [0.3, 1.0, 2.0], box=24, pixel_size=stack.pixel_size)
    for one, other in zip(found.init, expected, strict=True):
        assert np.corrcoef(one.ravel(), other.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("mirror", [False, True])
def test_a_map_is_seen_from_all_sides(star, tmp_path, mirror):
    volume = make_ribosome_phantom(32, 12.0)
    write_mrc(tmp_path / "map.mrc", volume.array, 12.0)
    words = ["--align-batches", 2, "--align-iterations", 1, *(["--mirror"] if mirror else [])]
    found = aligner(
        star, "--ref", tmp_path / "map.mrc", "--align-classes", 4, "--align-references", 9, *words
    )
    assert found.n_clusters == 4 and found.init.shape == (9, 24, 24)
    assert found.fit(read_particles(star)).reference_class_.shape == (9,)


def test_a_missing_file_is_told(star, tmp_path, capfd):
    assert run("classify", star, "-o", tmp_path / "out", "--ref", tmp_path / "no.mrcs", *FEW) == 1
    assert "Check the path given to --ref" in capfd.readouterr().err
