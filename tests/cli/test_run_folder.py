import json
import os
import sys
from argparse import Namespace

import numpy as np
import pandas as pd
import pytest
import yaml

from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.run_folder import RunFolder, as_json


def test_the_summary_comes_last_and_lists_what_is_there(tmp_path):
    with RunFolder(tmp_path / "a" / "out", ["truth.csv", "never.png"]) as folder:
        assert not (folder / "summary.json").exists()
        with folder.timed("write"):
            folder.write_csv("truth.csv", pd.DataFrame({"x": [1], "y": [2]}))
        options = Namespace(command="simulate", box=64, quiet=True)
        folder.write_summary(options, {"resolution": np.array([8.0, np.inf])}, ["a warning"])
    summary = json.loads((tmp_path / "a" / "out" / "summary.json").read_text())
    assert summary["files"] == ["truth.csv", "run.yaml", "summary.json"]
    assert summary["results"] == {"resolution": [8.0, None]}
    assert summary["warnings"] == ["a warning"] and summary["options"] == {"box": 64}
    assert 0 <= summary["seconds"]["write"] <= summary["seconds"]["total"]
    assert summary["versions"]["numpy"] == np.__version__
    assert (tmp_path / "a" / "out" / "truth.csv").read_text().splitlines() == ["x,y", "1,2"]


def test_files_that_are_there_are_not_replaced_unasked(tmp_path):
    (tmp_path / "truth.csv").write_text("mine")
    with pytest.raises(CommandError, match="pass --force to replace"):
        RunFolder(tmp_path, ["truth.csv"])
    assert (tmp_path / "truth.csv").read_text() == "mine"


def test_other_peoples_files_are_left_alone_even_by_force(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "summary.json").write_text("{}")
    with RunFolder(tmp_path, ["truth.csv"], force=True) as folder:
        assert not (folder / "summary.json").exists(), "an old summary would make a broken run look finished"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_folder_that_holds_only_other_files_needs_no_force(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with RunFolder(tmp_path, ["truth.csv"]):
        pass


def test_a_failure_before_the_first_file_leaves_no_folder(tmp_path):
    with pytest.raises(RuntimeError, match="no particles"), RunFolder(tmp_path / "out", ["truth.csv"]):
        raise RuntimeError("no particles")
    assert not (tmp_path / "out").exists()


def test_a_failure_keeps_what_is_whole_but_no_summary(tmp_path):
    with pytest.raises(RuntimeError, match="disk"), RunFolder(tmp_path / "out", ["a.csv", "b.csv"]) as folder:
        folder.write_csv("a.csv", pd.DataFrame(columns=["x"]))
        with folder.writing("b.csv") as path:
            path.write_text("half")
            raise RuntimeError("disk full")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.csv"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(CommandError, match="name of a folder to --output"):
        RunFolder(tmp_path / "out", [])
    with pytest.raises(CommandError, match="Choose another --output"):
        RunFolder(tmp_path / "out" / "deeper", [])


def test_everything_becomes_strict_json(tmp_path):
    value = {
        "a": np.float32(0.1),
        "b": (np.int64(3), True, None),
        "c": tmp_path,
        "d": np.nan,
        5: np.bool_(False),
    }
    text = json.dumps(as_json(value), allow_nan=False)
    assert json.loads(text) == {"a": 0.1, "b": [3, True, None], "c": str(tmp_path), "d": None, "5": False}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_names_that_are_not_unicode_are_kept_in_the_options_of_a_run(tmp_path):
    stack = tmp_path / os.fsdecode(b"\xff\xc3\xa9.star")
    with RunFolder(tmp_path / "out", ["left.csv"]) as folder:
        folder.write_csv("left.csv", pd.DataFrame({"image": [stack]}))
        folder.write_summary(Namespace(command="classify", particles=stack, title="é"), {}, [])
    written = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text(encoding="utf-8"))
    assert written["particles"] == str(stack)
    assert "é" in (tmp_path / "out" / "run.yaml").read_text(encoding="utf-8")
