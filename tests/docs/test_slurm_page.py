"""The script of docs/cluster.md, with jobs that a stand-in for SLURM runs on this machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sklearn_cryoem import MAPAligner, SMLClusterer, load_model, read_particles, write_particles
from sklearn_cryoem.datasets import make_particles

pytest.importorskip("dask_jobqueue")
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="jobs are shell scripts")

PAGE = Path(__file__).parents[2] / "docs" / "cluster.md"
SBATCH = """#!/bin/bash
echo "$1" >> {folder}/submitted
cp "$1" {folder}/job
cp "$1" {folder}/job$$.sh  # who submits removes the script
nohup bash {folder}/job$$.sh > {folder}/job$$.log 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = "#!/bin/bash\nkill $1\n"
ALIGNER = "MAPAligner(3, n_batches=4, max_iter=2, max_shift=15.0, checkpoint=state, random_state=0)"
CLUSTERER = "SMLClusterer((3, 3), max_iter=6, checkpoint=state, random_state=0)"


def script(folder):
    """The page's script, smaller and in a folder of its own."""
    (text,) = re.findall(
        r"```python\n(from dask\.distributed[^`]*?SLURMCluster.*?)```", PAGE.read_text(), re.S
    )
    for found, smaller in (
        ("MAPAligner(100, checkpoint=state, random_state=0)", ALIGNER),
        ("SMLClusterer(500, checkpoint=state, random_state=0)", CLUSTERER),
        ("cores=4", "cores=1"),
        ("processes=4", "processes=1"),
        ("minimum_jobs=4, maximum_jobs=4", "minimum_jobs=2, maximum_jobs=2"),
        ("wait_for_workers(4)", "wait_for_workers(1)"),
        ("/shared/run", str(folder)),
        ("/scratch", str(folder)),
    ):
        assert found in text, f"docs/cluster.md has no {found!r} any more"
        text = text.replace(found, smaller)
    return text


@pytest.fixture
def slurm(tmp_path):
    """A folder on the PATH with commands that do as SLURM's would, on this machine."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (commands / name).write_text(text.format(folder=tmp_path))
        (commands / name).chmod(0o755)
    return {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_the_script_for_slurm_ends_with_the_bits_of_one_process(tmp_path, slurm):
    images = {"n_views": 3, "path": tmp_path / "particles.mrcs"}
    made = make_particles("ribosome", 200, box=24, pixel_size=12.0, snr=0.5, random_state=0, **images)
    write_particles(made, tmp_path / "particles.star")
    (tmp_path / "fit.py").write_text(script(tmp_path))
    done = subprocess.run(
        [sys.executable, tmp_path / "fit.py"], env=slurm, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "submitted").read_text().splitlines()) >= 2
    job = (tmp_path / "job").read_text()
    assert "#SBATCH -p cpu" in job
    assert job.index("export OMP_NUM_THREADS=1") < job.index("dask_worker")

    stack = read_particles(tmp_path / "particles.star")
    here = MAPAligner(3, n_batches=4, max_iter=2, max_shift=15.0, random_state=0).fit(stack)
    far = load_model(tmp_path / "aligner.npz")
    np.testing.assert_array_equal(far.class_averages_, here.class_averages_)
    aligned = stack.with_poses(here.poses_)
    clusterer = SMLClusterer((3, 3), max_iter=6, random_state=0).fit(aligned)
    np.testing.assert_array_equal(
        load_model(tmp_path / "clusterer.npz").class_averages_, clusterer.class_averages_
    )
    assert len(read_particles(tmp_path / "classified.star")) == len(stack)
