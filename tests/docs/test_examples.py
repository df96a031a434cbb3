"""The tutorial, and a morning's work as a notebook and as a shell script: they run, and say what is so."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sklearn_cryoem import read_particles
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.io import read_mrc

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def in_relion(folder, *words):
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "ERROR" not in done.stdout + done.stderr, done.stdout + done.stderr
    return done.stdout


def smaller(text, sizes):
    """A script or page with smaller numbers, so that a test can run it."""
    for found, instead in sizes.items():
        assert found in text, f"it has no {found!r} any more"
        text = text.replace(found, instead)
    return text


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning", "ignore:.*columns-lost")
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, shown = {}, []
    for cell in json.loads((EXAMPLES / "morning.ipynb").read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            tree = ast.parse("".join(cell["source"]))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "morning.ipynb", "exec"), found)
            if last is not None:
                shown.append(eval(compile(ast.Expression(last.value), "morning.ipynb", "eval"), found))
    assert sum(hasattr(value, "_repr_png_") for value in shown) == 2
    truth = found["truth"]
    assert len(truth) > 200 and truth["is_junk"].mean() < 0.05
    session = found["chosen"].metadata["rlnImageName"].str.partition("@")[2]
    assert (
        session.nunique() == 2 and not pd.DataFrame([session, truth["particle"].array]).T.duplicated().any()
    )
    for name in ("good.star", "good.cs"):
        assert len(read_particles(tmp_path / name, rescale=True)) == len(truth)


@pytest.fixture
def run_script(tmp_path, monkeypatch, capsys):
    """Run a script of bash, then in this process the commands of this library in it; what they say."""
    command, called = tmp_path / "bin" / "sklearn-cryoem", tmp_path / "bin" / "called"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nprintf "%s\\n" "$PWD" "$@" "" >>"{called}"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")

    def run(script, *words):
        called.write_text("")
        done = subprocess.run(
            ["bash", "-c", f"set -e\n{script}", "bash", *words], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        for call in called.read_text().split("\n\n")[:-1]:
            folder, *given = call.split("\n")
            with monkeypatch.context() as patch:
                patch.chdir(folder)
                assert main(given) == 0, capsys.readouterr().err[-2000:]
        said = capsys.readouterr()
        return done.stdout + done.stderr + said.out + said.err

    return run


def without_numbers(line):
    return re.sub(r"[\d.,]*\d", "0", line.strip())


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(sys.platform == "win32", reason="it is for bash")
def test_the_tutorial_runs_from_top_to_bottom_and_shows_what_is_said(
    run_script, tmp_path, monkeypatch, capsys
):
    """Each block as it is written but for sizes; lines that the page shows are there but for numbers."""
    sizes = {
        "--particles 600": "--particles 300",
        "--snr 0.15": "--snr 0.4",
        "--align-classes 16 --classes 36": "--align-classes 6 --align-batches 30 --classes 16",
        "--K 36": "--K 16",
    }
    page = smaller((ROOT / "docs" / "tutorial.md").read_text("utf-8"), sizes)
    said, shown = "", []
    monkeypatch.chdir(tmp_path)
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        if "relion" in block and not shutil.which("relion_refine"):
            continue
        if language == "bash":
            said += run_script(block)
        elif language == "python":
            exec(compile(block, "tutorial.md", "exec"), {})
            said += capsys.readouterr().out
        else:
            shown += [line.removesuffix("...") for line in block.splitlines()]
    said = without_numbers(said)
    for line in shown:
        assert without_numbers(line) in said, line


@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(sys.platform == "win32", reason="it is a script of bash")
def test_the_shell_script_runs_and_relion_reads_what_it_leaves(run_script, tmp_path):
    sizes = {
        "--particles 200": "--particles 140",
        "--particles 300": "--particles 200",
        "--snr 0.2": "--snr 0.4",
        "--align-classes 9 --align-batches 60": "--align-classes 6 --align-batches 30",
        "--align-iterations 4 --classes 16": "--align-iterations 2 --classes 9",
        "--max-per-class 40": "--max-per-class 30",
    }
    run_script(smaller((EXAMPLES / "morning.sh").read_text("utf-8"), sizes), "work")
    work = tmp_path / "work"
    truth = pd.concat(
        [pd.read_csv(work / name / "truth.csv").assign(session=name) for name in ("first", "second")]
    )
    truth["rlnImageName"] = [
        f"{row + 1:06d}@{name}/particles.mrcs"
        for row, name in zip(truth.index, truth["session"], strict=True)
    ]
    good = read_particles(work / "good.star", rescale=True, images_dir=work)
    kept = truth.set_index("rlnImageName").loc[good.metadata["rlnImageName"]]
    assert kept["is_junk"].mean() < 0.5 * truth["is_junk"].mean()
    assert truth.duplicated(["session", "particle"]).sum() > 10
    assert not kept.duplicated(["session", "particle"]).any(), "each particle once"
    sizes = good.metadata["rlnClassNumber"].value_counts()
    assert len(good) > 120 and sizes.max() <= 30 and set(kept["session"]) == {"first", "second"}
    table = pd.read_csv(work / "cleaned" / "quality.csv").set_index("class")
    assert table["map_correlation"][sizes.index].min() >= 0.6
    assert len(read_mrc(work / "chosen.mrcs")[0]) == len(sizes)
    cryosparc = np.load(work / "good.cs")
    assert len(cryosparc) == len(good) and set(cryosparc["blob/psize_A"]) == {9.0, 7.5}
    assert (work / "compared" / "pairs.png").is_file() and (work / "cleaned" / "report.html").is_file()
    if shutil.which("relion_star_handler"):
        group = ["--select", "rlnOpticsGroup", "--minval", "2", "--maxval", "2"]
        in_relion(work, "relion_star_handler", "--i", "good.star", "--o", "second.star", *group)
        in_relion(work, "relion_stack_create", "--i", "second.star", "--o", "second")
        assert len(read_mrc(work / "second.mrcs")[0]) == (kept["session"] == "second").sum()
        said = in_relion(work, "relion_image_handler", "--i", "chosen.mrcs", "--stats")
        assert said.count("40 x 40 x 1 x 1") == len(sizes)
