"""Two hosts in network namespaces, a dask worker on each, a scheduler on a third: fits, and what they moved.

    unshare --net --mount python tests/_core/two_hosts.py FOLDER

FOLDER is what the hosts share. Everything else goes with the namespaces when this process ends. Prints JSON:
whether bits are those of n_jobs=1, which hosts worked, and bytes on the wires, counted by the system.
"""

import json
import socket
import subprocess
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import dask
import numpy as np
from distributed import Client, LocalCluster
from joblib import parallel_config
from sklearn.exceptions import ConvergenceWarning
from sklearn.pipeline import make_pipeline

from sklearn_cryoem import MAPAligner, SMLClusterer
from sklearn_cryoem._core.parallel import DaskPool, ordered_map
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.io import read_particles, write_mrc
from sklearn_cryoem.manifold.expectation import sweep
from sklearn_cryoem.particles.features import FeatureBlocks

HERE, HOSTS = "10.213.7.1", {"one": "10.213.7.2", "two": "10.213.7.3"}


def main():
    folder = Path(sys.argv[1])
    connect()
    warnings.simplefilter("ignore", ConvergenceWarning)
    soon = {"distributed.comm.timeouts.connect": "3s", "distributed.comm.timeouts.tcp": "11s"}  # the least
    nobody = {"n_workers": 0, "host": HERE, "dashboard_address": ":0", "silence_logs": 50}
    with dask.config.set(soon), LocalCluster(**nobody) as local, Client(local) as client:
        workers = [start_worker(name, client.scheduler.address, folder) for name in HOSTS]
        client.wait_for_workers(len(HOSTS), timeout=60)
        try:
            print(json.dumps(measure(folder, client)))
        finally:
            for worker in workers:
                worker.kill()


# ---------------------------------------------------------------- hosts
def connect():
    """A switch here, and a wire to each host."""
    call("ip link set lo up")
    call("ip link add switch type bridge")
    call(f"ip address add {HERE}/24 dev switch")
    call("ip link set switch up")
    call("mount -t tmpfs none /run")
    for name, address in HOSTS.items():
        call(f"ip netns add {name}")
        call(f"ip link add to_{name} type veth peer name wire netns {name}")
        call(f"ip link set to_{name} master switch up")
        call(f"ip -n {name} link set lo up")
        call(f"ip -n {name} address add {address}/24 dev wire")
        call(f"ip -n {name} link set wire up")


def call(command):
    subprocess.run(command.split(), check=True)


def start_worker(name, scheduler, folder):
    (folder / name).mkdir()
    command = [
        *("ip", "netns", "exec", name, sys.executable, "-m", "distributed.cli.dask_worker", scheduler),
        *("--no-nanny", "--nthreads", "1", "--no-dashboard", "--local-directory", str(folder / name)),
    ]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)


def bytes_on_the_wires():
    """Sent and received over both wires since they were laid."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    fields = {line.split(":")[0].strip(): line.split(":")[1].split() for line in lines if ":" in line}
    return sum(int(fields[f"to_{name}"][column]) for name in HOSTS for column in (0, 8))


def address(_):
    """Where a task runs: the address by which it reaches this host."""
    time.sleep(0.05)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((HERE, 9))
        return probe.getsockname()[0]


# ---------------------------------------------------------------- fits
def measure(folder, client):
    """What came of it."""
    made = make_particles("ribosome", 2000, box=24, snr=1.0, n_views=3, max_shift=15.0, random_state=0)
    write_mrc(folder / "particles.mrcs", made.read(), made.pixel_size)
    stack = read_particles(folder / "particles.mrcs").with_ctf(made.ctf)
    with parallel_config("dask"):
        hosts = sorted(set(ordered_map(address, range(12))))
    few, aligned = stack[:600], stack.with_poses(aligned_to_truth(made).poses)
    here = pipeline().fit(few)
    found = {"hosts": hosts, "same": same(far(few), here), "bytes": bytes_of_iterations(aligned, here[-1])}
    cut = []
    found["same_though_cut"] = same(far(few, partial(cut_a_wire, cut)), here)
    found["wires_cut"] = len(cut)
    return found


def pipeline():
    aligner = MAPAligner(3, n_batches=4, max_iter=2, max_shift=15.0, random_state=0)
    return make_pipeline(aligner, SMLClusterer((4, 4), max_iter=6, tol=10.0, random_state=0))


def far(stack, at_result=None):
    """Fitted on the hosts; something may happen when the results of some tasks have been taken."""
    result, calls = DaskPool._result, []

    def result_and_act(self, task):
        calls.append(task)
        if at_result is not None:
            at_result(len(calls))
        return result(self, task)

    DaskPool._result = result_and_act
    try:
        with parallel_config("dask"):
            return pipeline().fit(stack)
    finally:
        DaskPool._result = result


def cut_a_wire(cut, n_results):
    if n_results == 12:
        call("ip link set to_two down")
        cut.append("two")


def same(model, other):
    pairs = [
        (getattr(a, name), getattr(b, name))
        for a, b in zip((step for _, step in model.steps), (step for _, step in other.steps), strict=True)
        for name in ("labels_", "class_averages_", "log_posterior_")
    ]
    return all(np.array_equal(a, b) for a, b in pairs)


def bytes_of_iterations(aligned, model):
    """Of one pass over a quarter of the particles, and over all of them."""
    moved = []
    for n in (500, 2000):
        blocks = FeatureBlocks(aligned[:n], model._space.plane, block_size=30)  # 16 tasks either way
        matcher = model._manifold.matcher(blocks.layout, dtype=np.float32)
        passes = []
        for _ in range(4):
            before = bytes_on_the_wires()
            with parallel_config("dask"):
                sweep(blocks, [matcher])
            passes.append(bytes_on_the_wires() - before)
        moved.append(min(passes))
    return moved


if __name__ == "__main__":
    main()
