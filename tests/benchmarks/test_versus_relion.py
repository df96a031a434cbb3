"""The comparison with RELION, whole, on a tiny set."""

import json
import shutil

import pytest

SETTING = "--n 40 --views 2 --box 32 --pixel-size 10 --snr 1 --classes 2 --iter 1".split()

pytestmark = [
    pytest.mark.skipif(shutil.which("relion_refine") is None, reason="RELION is not installed"),
    pytest.mark.filterwarnings("default"),
]


def test_both_programs_are_measured_on_the_same_files_and_a_kept_run_is_not_run_again(run, volume, tmp_path):
    def compare(*more):
        return run("versus_relion", volume, *SETTING, *more)

    lines = tmp_path / "results.jsonl"
    first = compare("--keep", tmp_path / "kept", "--json", lines)
    ours, relion = (json.loads(line) for line in lines.read_text().splitlines())
    assert ours["program"] == "MAPAligner" and relion["program"].startswith("RELION")
    assert ours["information"] > 0.9  # two views at SNR 1
    assert 0 <= relion["information"] <= 1
    for result in (ours, relion):
        assert 0 < result["cpu_s"] < 60 and result["wall_s"] > 0 and 5 < result["memory_mb"] < 2000
    assert "mutual information" in first.splitlines()[-1]

    compare("--reuse", tmp_path / "kept", "--json", lines, "--programs", "relion")
    stored = json.loads(lines.read_text().splitlines()[-1])
    assert stored["note"].endswith("stored")
    for name in ("cpu_s", "wall_s", "memory_mb", "information", "angle_error_degrees"):
        assert stored[name] == relion[name]

    with pytest.raises(ValueError, match=r"differs in its options\. Give another --reuse folder"):
        compare("--reuse", tmp_path / "kept", "--programs", "relion", "--mask-diameter", 200)
