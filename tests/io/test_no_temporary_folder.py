"""Reading needs no folder that can be written to; what does says which, and what to do."""

import tempfile

import numpy as np
import pytest
from joblib import parallel_config

from sklearn_cryoem._core.parallel import task_pool
from sklearn_cryoem.io import _star_tables, read_mrc, read_particles, write_particles


@pytest.fixture
def nowhere(monkeypatch):
    """No temporary folder can be made, as on a system without a writable one."""

    def fail(*args, **kwargs):
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp', '/var/tmp', '/usr/tmp']")

    for name in ("gettempdir", "mkdtemp", "mkstemp", "TemporaryFile", "NamedTemporaryFile"):
        monkeypatch.setattr(tempfile, name, fail)


@pytest.mark.skipif(not _star_tables._IN_MEMORY, reason="this system has no files in memory")
@pytest.mark.parametrize("version", ["3.1", "1.x"])
def test_reading_needs_no_temporary_folder(project, nowhere, version):
    stack = read_particles(project.write(version=version))
    np.testing.assert_array_equal(stack.read(), project.images)
    np.testing.assert_array_equal(read_mrc(project.stacks[0])[0], project.images[:5])


def test_cryosparc_tables_need_none_either(project, monkeypatch, request):
    stack = read_particles(project.write()).with_metadata(rlnCoordinateX=0.0)
    write_particles(stack, project.folder / "a.cs")
    request.getfixturevalue("nowhere")
    np.testing.assert_array_equal(read_particles(project.folder / "a.cs").read(), project.images)


def test_where_there_are_no_files_in_memory_a_temporary_one_is_made(project, monkeypatch):
    path = project.write()
    monkeypatch.setattr(_star_tables, "_IN_MEMORY", False)
    np.testing.assert_array_equal(read_particles(path).read(), project.images)


def test_processes_that_find_none_say_what_to_do(nowhere):
    remedy = r"No temporary folder .*Set TMPDIR .*n_jobs=1"
    with parallel_config("loky"), pytest.raises(OSError, match=remedy), task_pool(2):
        pass
