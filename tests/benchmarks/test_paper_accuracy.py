"""The comparison of classifications, whole, on a tiny set."""

import re
import shutil
import sys

import matplotlib.image
import pytest

SETTING = "--n 120 --box 32 --pixel-size 10 --nodes 9 --relion-iter 3".split()
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def compare(run, volume):
    return lambda *more: run("paper_accuracy", volume, *SETTING, *more)


def lines_of(said):
    """Name -> the rest of its line, without the time."""
    lines = [re.match(r"  (.*?)\s+(within 10 .*classes)", line) for line in said.splitlines()]
    return {line[1]: line[2] for line in lines if line}


def test_each_method_is_measured_drawn_and_kept(compare, tmp_path):
    keep, plots = tmp_path / "kept", tmp_path / "plots"
    setting = "--methods", "sml1,sml2,map,em,pca,gmm", "--keep", keep, "--snr", "1,0.01", "--plots", plots
    first = compare(*setting)
    told = lines_of(first)
    names = {re.sub(r", \d+ Å, \d+$", "", name) for name in told}
    assert names == {
        "SML, 1-D", "SML, 2-D", "MAPAligner", "MAP, estimated weights", "PCA + k-means", "Gaussian mixture",
    }  # fmt: skip
    assert first.count("times the pairs of") == 2
    assert first.count("times the effective classes of MAP") == 4
    drawn = sorted(path.stem for path in plots.iterdir())
    assert drawn == ["figure_2de_snr0.01_true", "supplementary_2_true", "supplementary_3_snr1_true"]
    assert all(matplotlib.image.imread(path).std() > 0.05 for path in plots.iterdir())

    found = next(keep.glob("*snr1_*"))
    shutil.copy(found / "sml2.npz", found / "gmm.npz")  # what is kept is what is told
    again = lines_of(compare(*setting[:4], "--snr", 1))
    assert again["SML, 2-D"] == again["Gaussian mixture"]
    assert f"{again['SML, 2-D']}" in first


@pytest.mark.skipif(shutil.which("relion_refine") is None, reason="RELION is not installed")
def test_relion_gets_the_true_poses_and_goes_on_where_it_was_killed(compare, tmp_path):
    setting = "--methods", "relion", "--snr", 1, "--keep", tmp_path
    whole = compare(*setting)
    name, told = next(iter(lines_of(whole).items()))
    assert re.fullmatch(r"RELION [\d.]+, 3 iterations", name)
    assert float(told.split()[3].rstrip(",")) > 0.03  # chance has 0.0076, nine perfect classes 0.07
    (folder,) = tmp_path.iterdir()
    (folder / "relion.npz").unlink()
    run = folder / "relion" / "run"
    for path in run.glob("run_it003*"):
        path.unlink()
    costs = run / "costs.json"
    costs.write_text(re.sub(r',\s*"wall_s".*', "\n}", costs.read_text(), flags=re.DOTALL))
    again = compare(*setting)
    assert set(lines_of(again)) == {name} and "nan s" in again
    assert "run_it001" not in (run / "log.txt").read_text() and (run / "run_it003_data.star").exists()


def test_methods_and_programs_that_are_not_there_are_named(benchmark, volume, monkeypatch, capsys):
    for words, said in (
        ("--methods umap", "no such methods: umap; there are sml1"),
        ("--poses found", "no such poses: found; there are true, aligned, mirror"),
        ("--relion no_such_relion", "give --relion PATH"),
    ):
        monkeypatch.setattr(sys, "argv", ["paper_accuracy", str(volume), *words.split()])
        with pytest.raises((SystemExit, FileNotFoundError)) as end:
            benchmark("paper_accuracy").parse()
        assert said in f"{end.value} {capsys.readouterr().err}"
