import os

import pytest

from sklearn_cryoem._core.files import atomic_path, try_to_write


def test_the_file_appears_whole_under_its_name(tmp_path):
    target = tmp_path / "averages.mrcs"
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.suffix == ".mrcs" and temporary.parent == tmp_path
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "model.npz"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="disk"), atomic_path(target, overwrite=True) as temporary:
        temporary.write_text("new, half")
        raise RuntimeError("disk full")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_existing_file_is_not_replaced_unasked(tmp_path):
    target = tmp_path / "summary.json"
    target.write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"), atomic_path(target):
        pytest.fail("the body must not run")
    assert target.read_text() == "mine"


def test_a_file_that_appears_meanwhile_is_not_replaced_either(tmp_path):
    target = tmp_path / "summary.json"
    with pytest.raises(FileExistsError, match="Choose another name"), atomic_path(target) as temporary:
        temporary.write_text("ours")
        target.write_text("theirs")
    assert target.read_text() == "theirs"


def test_folders_are_named_in_the_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="Make it first"), atomic_path(tmp_path / "no" / "x.star"):
        pytest.fail("the body must not run")
    with pytest.raises(FileExistsError, match="name of a file"), atomic_path(tmp_path):
        pytest.fail("the body must not run")


def test_results_are_readable_like_other_files(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("")
    with atomic_path(tmp_path / "ours") as temporary:
        temporary.write_text("")
    assert os.stat(tmp_path / "ours").st_mode == os.stat(plain).st_mode


def test_what_cannot_be_written_is_known_by_trying(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    try_to_write(tmp_path / "new.txt", overwrite=False)
    try_to_write(tmp_path / "old.txt", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["old.txt"]
    assert (tmp_path / "old.txt").read_text() == "old"
    with pytest.raises(FileExistsError, match="Choose another name"):
        try_to_write(tmp_path / "old.txt", overwrite=False)
    with pytest.raises(OSError, match=r"n\.txt cannot be written .* Choose another folder or name"):
        try_to_write(tmp_path / ("n" * 300 + "n.txt"), overwrite=False)
    with pytest.raises(ValueError, match="Choose another name, or set the environment variable PYTHONUTF8=1"):
        try_to_write(tmp_path / "lone\ud800.txt", overwrite=False)
