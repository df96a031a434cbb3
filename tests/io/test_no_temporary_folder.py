"""Reading needs no folder that can be written to; what does says which, and what to do."""

import tempfile

import numpy as np
import pytest
from joblib import parallel_config

from sklearn_cryoem._core.parallel import task_pool
from sklearn_cryoem.io import read_mrc, read_particles, write_particles


@pytest.fixture
def nowhere(monkeypatch):
    """No temporary folder can be made, as on a system without a writable one."""

    def fail(*args, **kwargs):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp', '/usr/tmp']")

    for name in ("gettempdir", "mkdtemp", "mkstemp", "TemporaryFile", "NamedTemporaryFile"):
        monkeypatch.setattr(tempfile, name, fail)


def test_reading_needs_no_temporary_folder(project, request):
    star, table = project.write(), project.folder / "a.cs"
    write_particles(read_particles(star).with_metadata(rlnCoordinateX=0.0), table)
    star.write_text("data_general\n\n_rlnA 1\n\n" + star.read_text())
    request.getfixturevalue("nowhere")
    for path in (star, table):
        np.testing.assert_array_equal(read_particles(path).read(), project.images)
    np.testing.assert_array_equal(read_mrc(project.stacks[0])[0], project.images[:5])


def test_processes_that_find_none_say_what_to_do(nowhere):
    remedy = r"No temporary folder .*Set TMPDIR .*n_jobs=1"
    with parallel_config("loky"), pytest.raises(OSError, match=remedy), task_pool(2):
        pass
