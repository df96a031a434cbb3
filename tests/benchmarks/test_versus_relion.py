"""The comparison with RELION, whole, on a tiny set."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sklearn_cryoem.datasets import make_ribosome_phantom
from sklearn_cryoem.io import write_mrc

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "versus_relion.py"
SETTING = "--n 40 --views 2 --box 32 --pixel-size 9 --snr 1 --classes 2 --iter 1".split()

pytestmark = pytest.mark.skipif(shutil.which("relion_refine") is None, reason="RELION is not installed")


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    phantom = make_ribosome_phantom(32, 9.0)
    path = tmp_path_factory.mktemp("volume") / "ribosome.mrc"
    write_mrc(path, phantom.array, phantom.pixel_size)
    return path


def compare(volume, *more):
    command = [sys.executable, SCRIPT, volume, *SETTING, *map(str, more)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_both_programs_are_measured_on_the_same_files_and_a_kept_run_is_not_run_again(volume, tmp_path):
    lines = tmp_path / "results.jsonl"
    first = compare(volume, "--keep", tmp_path / "kept", "--json", lines)
    assert first.returncode == 0, first.stderr
    ours, relion = (json.loads(line) for line in lines.read_text().splitlines())
    assert ours["program"] == "MAPAligner" and relion["program"].startswith("RELION")
    assert ours["information"] > 0.9  # two views at SNR 1
    assert 0 <= relion["information"] <= 1
    for result in (ours, relion):
        assert 0 < result["cpu_s"] < 60 and result["wall_s"] > 0 and 5 < result["memory_mb"] < 2000
    assert "mutual information" in first.stdout.splitlines()[-1]

    again = compare(volume, "--reuse", tmp_path / "kept", "--json", lines, "--programs", "relion")
    assert again.returncode == 0, again.stderr
    stored = json.loads(lines.read_text().splitlines()[-1])
    assert stored["note"].endswith("stored")
    for name in ("cpu_s", "wall_s", "memory_mb", "information", "angle_error_degrees"):
        assert stored[name] == relion[name]

    other = compare(volume, "--reuse", tmp_path / "kept", "--programs", "relion", "--mask-diameter", 200)
    assert "differs in its options. Give another --reuse folder" in other.stderr
