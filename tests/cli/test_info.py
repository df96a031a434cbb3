"""`info` on small files: what it shows of the CTF, and names that a locale cannot say."""

import dataclasses
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from sklearn_cryoem import write_particles
from sklearn_cryoem.cli import inspect, preflight
from sklearn_cryoem.cli.main import main
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.io import write_mrc


def run(*words):
    return main([str(word) for word in words])


def test_info_tells_the_phase_shift_and_what_was_done_to_the_images(tmp_path, capsys):
    stack = make_particles("ribosome", 6, box=32, path=tmp_path / "a.mrcs", random_state=0)
    ctf = dataclasses.replace(
        stack.ctf, phase_shift_rad=np.full(6, np.pi / 2), phase_flipped=np.arange(6) < 4
    )
    write_particles(stack.with_ctf(ctf), tmp_path / "a.star")
    assert run("info", "--no-checks", tmp_path / "a.star") == 0
    said = capsys.readouterr().out
    assert re.search(r"phase shift degrees +90\n", said)
    assert re.search(r"phase flipped particles +4\n", said)
    assert re.search(r"ctf premultiplied particles +0\n", said)


def test_info_says_how_long_a_classification_takes(tmp_path, capsys, monkeypatch):
    stack = make_particles("ribosome", 60, box=16, path=tmp_path / "a.mrcs", random_state=0)
    write_particles(stack, tmp_path / "a.star")
    monkeypatch.setattr(inspect, "_SLOW", 60)
    assert run("info", tmp_path / "a.star") == 0
    assert re.search(r"classify +about \d+ s with its default options, on \d+ core", capsys.readouterr().out)


def test_time_grows_with_particles_and_falls_with_cores_but_for_what_one_does_alone(monkeypatch):
    stack = make_particles("ribosome", 100, box=16, random_state=0)
    monkeypatch.setattr("sklearn_cryoem.estimators.map_aligner.timed_visits", lambda *given: (1.0, 40000.0))
    monkeypatch.setattr(preflight.time, "process_time", lambda: 0.0)
    one, all_of_them = (preflight.seconds_of_classification(stack, n) for n in (1, 10**9))
    assert one == 15.0 + 40000.0 + 100 * 20  # mini-batches, and visits of each particle
    assert all_of_them == pytest.approx(15.0 + 0.05 * (one - 15.0))


BOTH = """
import sys
from sklearn_cryoem.cli.main import main
assert [main(["info", path]) for path in sys.argv[1:]] == [1, 0]
"""


def test_names_that_the_locale_cannot_say_end_in_a_plain_message(tmp_path):
    folder = tmp_path / "ü"
    folder.mkdir()
    write_mrc(folder / "a.mrcs", np.random.default_rng(0).normal(size=(3, 16, 16)), 2.0)
    write_mrc(folder / "a.mrc", np.zeros((16, 16, 16)), 2.0)
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-c", BOTH, str(folder / "a.mrcs"), str(folder / "a.mrc")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "set the environment variable PYTHONUTF8=1" in done.stderr and "codec" not in done.stderr
