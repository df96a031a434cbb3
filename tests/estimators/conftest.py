"""Fits in processes of their own, which a test may kill."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest


@pytest.fixture
def start_fit(request):
    """Start a script with a folder as its argument; returns when it has said that it is ready."""

    def start(script, folder):
        here = str(request.path.parent)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, *filter(None, sys.path)])}
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", script, str(folder)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        assert process.stdout.readline().strip() == "ready"
        return process

    return start


@pytest.fixture
def killed_at_random(start_fit):
    """Kill a script some times within `duration`, then let it end; returns its output and when that was."""

    def run(script, folder, duration, n_kills, after_kill):
        seed = np.random.SeedSequence().entropy  # other moments in every run: any of them has to do
        moments = np.random.default_rng(seed).uniform(0.0, duration, size=n_kills)
        for moment in moments:
            process = start_fit(script, folder)
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            after_kill()
        found, _ = start_fit(script, folder).communicate(timeout=120)
        return found.strip(), f"killed after {moments} s; seed {seed}"

    return run
