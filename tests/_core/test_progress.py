"""Progress shows a bar or log lines when asked, and nothing otherwise."""

import builtins
import logging
import sys
from contextlib import suppress

import pytest

from sklearn_cryoem._core import progress as module
from sklearn_cryoem._core.memory import format_bytes
from sklearn_cryoem._core.progress import progress


def test_silent_progress_writes_nothing(capfd, caplog):
    with caplog.at_level(logging.INFO), progress(3, "EM", verbose=0) as bar:
        for _ in range(3):
            bar.update()
            bar.note("objective 1.0")
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_a_bar_goes_to_a_terminal_where_tqdm_is_installed(capfd, monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with progress(3, "EM iterations", verbose=1) as bar:
        bar.update(3)
    out, err = capfd.readouterr()
    assert out == ""
    assert "EM iterations" in err
    assert "3/3" in err


@pytest.mark.parametrize("fails", [False, True])
def test_a_bar_that_ends_early_is_full_unless_the_work_failed(capfd, monkeypatch, fails):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with suppress(OSError), progress(80, "EM", verbose=1) as bar:
        bar.update(55)
        if fails:
            raise OSError
    assert ("55/80" if fails else "100%") in capfd.readouterr().err.split("\r")[-1]


def test_log_lines_replace_the_bar_where_stderr_is_no_terminal(capfd, caplog, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOG_LINES", -1.0)
    with caplog.at_level(logging.INFO), progress(3, "EM", verbose=1) as bar:
        bar.update(2)
    assert capfd.readouterr() == ("", "")
    assert "EM: 2 of 3" in caplog.text


def test_whoever_listens_hears_of_every_step():
    heard = []
    with progress(3, "EM", verbose=0, on_step=heard.append) as bar:
        bar.update()
        bar.update(2)
    assert heard == [1, 2]


def test_log_lines_replace_the_bar_where_tqdm_is_missing(monkeypatch, caplog):
    real_import = builtins.__import__

    def without_tqdm(name, *args, **kwargs):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tqdm)
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LOG_LINES", -1.0)
    with caplog.at_level(logging.INFO), progress(2, "EM", verbose=1) as bar:
        bar.note("12.0 Angstrom")
        bar.update()
    assert "EM: 1 of 2 12.0 Angstrom" in caplog.text


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(5, "5 B"), (1536, "1.5 kB"), (3 * 1024**2, "3.0 MB"), (5e12, "4656.6 GB")]
)
def test_bytes_are_shown_in_the_unit_a_person_would_use(n_bytes, text):
    assert format_bytes(n_bytes) == text


def test_what_remains_follows_from_the_costs_of_the_steps(caplog, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with caplog.at_level(logging.INFO), progress(9, "EM", verbose=1, costs=[1, 1, 2, 2, 5, 9]) as bar:
        bar.resume(1)  # done by an earlier run, in no time
        assert bar.seconds_left is None
        for _ in range(3):
            now[0] += 1.0
            bar.update()
        assert bar.seconds_left == pytest.approx(3.0 / 5.0 * 14.0)
        assert "EM: 4 of 9 about 8 s left" in caplog.text
        bar.update(5)
        assert bar.seconds_left == 0.0  # it takes longer than expected


@pytest.mark.parametrize(("seconds", "text"), [(8.4, "8 s"), (300, "5 min"), (9000, "2.5 h"), (1e5, "28 h")])
def test_times_have_two_digits(seconds, text):
    assert module.in_words(seconds) == text
