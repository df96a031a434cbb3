"""Fits in processes of their own, which a test may kill."""

import os
import subprocess
import sys

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
