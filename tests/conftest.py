"""Fixtures shared by all tests."""

import sys
from pathlib import Path

import numpy as np
import pytest

# Worker processes import test modules by name (tests.contract.test_...) to find the classes pickled to them.
# Last on the path: the library tested is the installed one.
sys.path.append(str(Path(__file__).resolve().parents[1]))

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(params=[0, 1, 2])
def rng(request):
    """A generator over three seeds: a law must hold for each."""
    return np.random.default_rng(request.param)


@pytest.fixture
def shared_data():
    """Folder of real test inputs that live beside the checkout, not in it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real test inputs at {SHARED_DATA}")
    return SHARED_DATA
