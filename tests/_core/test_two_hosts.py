"""A cluster of two hosts in network namespaces: same bits, few bytes on the wires, one of which is cut."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_hosts.py")


@pytest.fixture
def namespaces():
    """Command words that give a process a network of its own; skips where that is not allowed."""
    missing = [name for name in ("unshare", "ip") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"network namespaces need {' and '.join(missing)} (util-linux, iproute2)")
    words = ["unshare", "--net", "--mount", "--fork", "--kill-child"]
    trial = "ip link add name left type veth peer name right && mount -t tmpfs none /run && ip netns add host"
    done = subprocess.run([*words, "sh", "-c", trial], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"network namespaces are not permitted here (root with CAP_NET_ADMIN): {done.stderr}")
    return words


def test_two_hosts_fit_with_the_bits_of_one_and_lose_a_wire_without_losing_the_result(tmp_path, namespaces):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [*namespaces, sys.executable, str(SCRIPT), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["hosts"] == ["10.213.7.2", "10.213.7.3"]
    assert found["same"]
    quarter, whole = found["bytes"]
    assert abs(whole - quarter) < 0.1 * quarter
    assert whole < 0.5 * 2000 * 24 * 24 * 4, "statistics move, images do not"
    assert found["wires_cut"] == 1 and found["same_though_cut"]
