"""The comparison of classifications, whole, on a tiny set."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest

from sklearn_cryoem.datasets import make_ribosome_phantom
from sklearn_cryoem.io import write_mrc

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "paper_accuracy.py"
SETTING = "--n 120 --box 32 --pixel-size 10 --nodes 9 --relion-iter 3".split()


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    phantom = make_ribosome_phantom(32, 10.0)
    path = tmp_path_factory.mktemp("volume") / "ribosome.mrc"
    write_mrc(path, phantom.array, phantom.pixel_size)
    return path


def compare(volume, *more):
    command = [sys.executable, SCRIPT, volume, *SETTING, *map(str, more)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def lines_of(done):
    """Name -> the rest of its line, without the time."""
    assert done.returncode == 0, done.stderr
    lines = [re.match(r"  (.*?)\s+(within 10 .*classes)", line) for line in done.stdout.splitlines()]
    return {line[1]: line[2] for line in lines if line}


def test_each_method_is_measured_drawn_and_kept(volume, tmp_path):
    keep, plots = tmp_path / "kept", tmp_path / "plots"
    setting = "--methods", "sml1,sml2,map,em,pca,gmm", "--keep", keep, "--snr", "1,0.01", "--plots", plots
    first = compare(volume, *setting)
    told = lines_of(first)
    names = {re.sub(r", \d+ Å, \d+$", "", name) for name in told}
    assert names == {
        "SML, 1-D", "SML, 2-D", "MAPAligner", "MAP, estimated weights", "PCA + k-means", "Gaussian mixture",
    }  # fmt: skip
    assert first.stdout.count("times the pairs of") == 2
    assert first.stdout.count("times the effective classes of MAP") == 4
    drawn = sorted(path.stem for path in plots.iterdir())
    assert drawn == ["figure_2de_snr0.01_true", "supplementary_2_true", "supplementary_3_snr1_true"]
    assert all(matplotlib.image.imread(path).std() > 0.05 for path in plots.iterdir())

    found = next(keep.glob("*snr1_*"))
    shutil.copy(found / "sml2.npz", found / "gmm.npz")  # what is kept is what is told
    again = lines_of(compare(volume, *setting[:4], "--snr", 1))
    assert again["SML, 2-D"] == again["Gaussian mixture"]
    assert f"{again['SML, 2-D']}" in first.stdout


@pytest.mark.skipif(shutil.which("relion_refine") is None, reason="RELION is not installed")
def test_relion_gets_the_true_poses_and_goes_on_where_it_was_killed(volume, tmp_path):
    setting = "--methods", "relion", "--snr", 1, "--keep", tmp_path
    whole = compare(volume, *setting)
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
    again = compare(volume, *setting)
    assert set(lines_of(again)) == {name} and "nan s" in again.stdout
    assert "run_it001" not in (run / "log.txt").read_text() and (run / "run_it003_data.star").exists()


def test_methods_and_programs_that_are_not_there_are_named(volume, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    import paper_accuracy

    for words, said in (
        ("--methods umap", "no such methods: umap; there are sml1"),
        ("--poses found", "no such poses: found; there are true, aligned, mirror"),
        ("--relion no_such_relion", "give --relion PATH"),
    ):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(volume), *words.split()])
        with pytest.raises((SystemExit, FileNotFoundError)) as end:
            paper_accuracy.parse()
        assert said in f"{end.value} {capsys.readouterr().err}"
