"""Benchmarks run in the process of the test, which has imported what they import."""

import importlib
import sys
from pathlib import Path

import pytest

from sklearn_cryoem.datasets import make_ribosome_phantom
from sklearn_cryoem.io import write_mrc


@pytest.fixture
def benchmark(monkeypatch):
    """A function of a name: the module of that benchmark."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    return importlib.import_module


@pytest.fixture
def run(benchmark, monkeypatch, capsys):
    """Run a benchmark with words of the command line; what it prints."""

    def run(name, *words):
        monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
        benchmark(name).main()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def volume(tmp_path_factory):
    phantom = make_ribosome_phantom(32, 10.0)
    path = tmp_path_factory.mktemp("volume") / "ribosome.mrc"
    write_mrc(path, phantom.array, phantom.pixel_size)
    return path
