"""Many file-backed particles: wall and CPU time, peak memory against its estimate, and accuracy, by workers.

    python benchmarks/scale.py [--full] [--n 2000,4000] [--box 64] [--align 10] [--cluster 50]
        [--runs 1,2,dask] [--folder DIR] [--memory 4GB] [--batches 200] [--iterations 100]

Particles of a phantom with CTF, shifts and SNR 0.1 are simulated straight to a float16 stack in DIR (kept if
it is named: a second call reads it). Every run is a process of its own: n_jobs=1, n_jobs=2, or a dask
cluster of two processes. It aligns, then clusters what it aligned; features for the clusters lie in files of
DIR, which every run makes for itself. Memory is the proportional set size of the process and its children,
read five times a second, less what it was before the fit; the estimate is what the library logged before it
began, or came to finer detail. Accuracy is the fraction of pairs of one class whose views lie within 10
degrees (chance: 0.0076).

A line after the runs with one and two workers says how far more of them would help. Of the CPU seconds of
one worker, some stay with the caller (the time of its thread in the run with two), and some each process
spends for itself (phases of the shifts). The rest is shared: "Amdahl" is the speed-up if it could be cut at
will, "as cut" that with the tasks there are, each started as soon as a worker is free.

--full is N = 25,000, 50,000 and 100,000 of 128 px, K = 100 and 500 classes: 3.3 GB of disk for the largest
stack, and 8 GB for its features.
"""

import argparse
import ctypes
import gc
import heapq
import json
import logging
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from unittest.mock import patch

from joblib import parallel_config

from sklearn_cryoem import MAPAligner, SMLClusterer, set_memory_limit
from sklearn_cryoem._core.parallel import TaskPool
from sklearn_cryoem.alignment.prepared import PreparedSearch
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.metrics import fraction_within

FULL = {"n": [25_000, 50_000, 100_000], "box": 128, "align": 100, "cluster": 500}
MANY = (16, 64)  # workers
_UNITS = {"B": 1, "kB": 2**10, "MB": 2**20, "GB": 2**30}


def main() -> None:
    options = parse()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"{options.box} px, {options.align} classes to align, {options.cluster} to cluster")
        print("       N   run     step   wall s    CPU s  peak MB  estimate accuracy")
        for n in options.n:
            call([sys.executable, __file__, "--simulate", folder, *common(options, n)])
            found = {}
            for run in options.runs:
                rows = json.loads(call([sys.executable, __file__, "--fit", run, folder, *common(options, n)]))
                found[run] = rows
                for row in rows:
                    print(
                        f"{n:>8,} {run:>5} {row['step']:>8} {row['wall_s']:8.1f} {row['cpu_s']:8.1f} "
                        f"{row['peak'] / 2**20:8.0f} {row['estimate'] / 2**20:9.0f} {row['accuracy']:8.3f}",
                        flush=True,
                    )
            for one, two in zip(found.get("1", []), found.get("2", []), strict=False):
                print(f"{n:>8,}  more {one['step']:>8} {more_workers(one, two['caller_s'])}", flush=True)


def more_workers(row, serial):
    """What the run with one worker, and the seconds of the caller with two, say of 16 and 64."""
    maps, work = row["maps"], row["cpu_s"]
    own = sum(own for tasks in maps for _, own in tasks)  # by each worker, for itself
    shared = work - serial - own
    amdahl = [work / (serial + own + shared / n_workers) for n_workers in MANY]
    cut = [work / (serial + own + sum(makespan(tasks, n_workers) for tasks in maps)) for n_workers in MANY]
    return (
        f"{serial:.2f} s in the caller ({serial / work:.1%}), {own:.2f} s made by each worker "
        f"({own / work:.1%}) of {work:.1f} s; with {MANY[0]} and {MANY[1]} workers Amdahl {amdahl[0]:.1f}, "
        f"{amdahl[1]:.1f}; as cut {cut[0]:.1f}, {cut[1]:.1f}"
    )


def makespan(tasks, n_workers):
    """Seconds until tasks, begun in order, have ended."""
    ends = [0.0] * n_workers
    for seconds, own in tasks:
        heapq.heapreplace(ends, ends[0] + seconds - own)
    return max(ends)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="the sizes that a release is measured with")
    parser.add_argument("--n", type=numbers, default=[2000, 4000], help="numbers of particles")
    parser.add_argument("--box", type=int, default=64, help="side in pixels")
    parser.add_argument("--align", type=int, default=10, help="classes of the aligner")
    parser.add_argument("--cluster", type=int, default=50, help="classes of the clusterer")
    parser.add_argument("--batches", type=int, default=200, help="mini-batches of the aligner")
    parser.add_argument("--iterations", type=int, default=100, help="iterations of the clusterer, at most")
    parser.add_argument("--runs", type=lambda text: text.split(","), default=["1", "2", "dask"])
    parser.add_argument("--memory", default=None, help="set_memory_limit")
    parser.add_argument("--folder", default=None, help="where stacks are kept")
    options = parser.parse_args()
    if options.full:
        vars(options).update(FULL)
    return options


def numbers(text):
    return [int(part) for part in text.split(",")]


def common(options, n):
    """What the processes of one size are told."""
    keys = ("box", "align", "cluster", "batches", "iterations", "memory")
    return [json.dumps({"n": n, **{key: getattr(options, key) for key in keys}})]


def call(command):
    """Output of a command; what it says on its error stream is shown as it comes."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment = {**os.environ, **threads}
    return subprocess.run(
        [*map(str, command)], stdout=subprocess.PIPE, check=True, text=True, env=environment
    ).stdout


# ---------------------------------------------------------------- in the processes
def tables(folder, size):
    """File of the pickled stack, whose pixels stay in theirs."""
    return folder / f"{size['n']}x{size['box']}.pickle"


def simulate(folder, size):
    """Write stack and truth, unless they are there."""
    path = tables(folder, size)
    if not path.exists():
        stack = make_particles(
            "ribosome", size["n"], box=size["box"], snr=0.1, max_shift=10.0, random_state=0, n_jobs=2,
            path=path.with_suffix(".mrcs"), dtype="float16", overwrite=True,
        )  # fmt: skip
        path.write_bytes(pickle.dumps(stack))


def fit(run, folder, size):
    """Align and cluster; print what it cost as JSON."""
    warnings.simplefilter("ignore")
    set_memory_limit(size["memory"])
    stack = pickle.loads(tables(folder, size).read_bytes())
    directions = stack.truth[["view_x", "view_y", "view_z"]].to_numpy()
    jobs = None if run == "dask" else int(run)
    aligner = MAPAligner(size["align"], n_batches=size["batches"], random_state=0, n_jobs=jobs)
    rows, features = [], tempfile.TemporaryDirectory(dir=folder)
    clusterer = SMLClusterer(
        size["cluster"], max_iter=size["iterations"], cache_folder=features.name, random_state=0, n_jobs=jobs
    )
    with features, cluster_of_two() if run == "dask" else parallel_config():
        for step, estimator in (("align", aligner), ("cluster", clusterer)):
            with Meter() as meter, Tasks() if run == "1" else nullcontext() as tasks:
                estimator.fit(stack)
            if step == "align":
                stack = stack.with_poses(estimator.poses_)
            accuracy = fraction_within(estimator.labels_, directions)
            maps = tasks.maps if tasks else []
            rows.append({"step": step, "accuracy": float(accuracy), "maps": maps, **meter.costs})
    print(json.dumps(rows))


@contextmanager
def cluster_of_two():
    """Two dask workers on this machine, as joblib's backend."""
    from distributed import Client, LocalCluster

    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "silence_logs": 50}
    with LocalCluster(**options) as cluster, Client(cluster), parallel_config("dask"):
        yield


class Tasks(ExitStack):
    """CPU seconds of each task of each map of a fit with one worker, and how many each worker would spend."""

    def __enter__(self):
        super().__enter__()
        self.maps, self.own, self.before = [], 0.0, 0.0
        begin, go_through = TaskPool._begin, TaskPool.map

        def timed(pool, number, *args):
            start, own, before = time.thread_time(), self.own, self.before
            result = begin(pool, number, *args)
            seconds = time.thread_time() - start - (self.before - before)
            self.maps[-1].append((seconds, self.own - own))
            return result

        def counted(pool, *args, **how):
            if type(pool) is TaskPool:  # no thread that reads
                self.maps.append([])
            return go_through(pool, *args, **how)

        self.enter_context(patch.object(TaskPool, "_begin", timed))
        self.enter_context(patch.object(TaskPool, "map", counted))
        phases, make = vars(PreparedSearch)["_phases"], PreparedSearch.make

        def made(search, *args):
            _, start = search._phases, time.thread_time()  # phases are not part of it
            make(search, *args)
            seconds = time.thread_time() - start
            if args[0].start == 0:
                self.maps.insert(-1, [])  # several workers make references before others begin
            self.maps[-2].append((seconds, 0.0))
            self.before += seconds

        def made_by_each(search, made=phases.func):
            start = time.thread_time()
            found = made(search)
            self.own += time.thread_time() - start
            return found

        self.enter_context(patch.object(PreparedSearch, "make", made))
        self.enter_context(patch.object(phases, "func", made_by_each))
        return self


class Meter(logging.Handler):
    """Wall and CPU time, peak memory of this process and its children, and the estimate that was logged."""

    def __enter__(self):
        gc.collect()
        with suppress(OSError, AttributeError):  # what the last fit has freed is given back first
            ctypes.CDLL(None).malloc_trim(0)
        self.estimate, self.peak, self.is_over = 0.0, 0.0, False
        logger = logging.getLogger("sklearn_cryoem")
        logger.setLevel(logging.INFO)
        logger.addHandler(self)
        self.start, self.used, self.before = time.perf_counter(), cpu_seconds(), memory_bytes()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        self.caller = time.thread_time()
        return self

    def __exit__(self, *error):
        self.caller = time.thread_time() - self.caller
        self.is_over = True
        self.thread.join()
        logging.getLogger("sklearn_cryoem").removeHandler(self)
        self.costs = {
            "wall_s": time.perf_counter() - self.start,
            "cpu_s": cpu_seconds() - self.used,
            "peak": self.peak - self.before,
            "caller_s": self.caller,
            "estimate": self.estimate,
        }

    def watch(self):
        """Read the memory until the work is over."""
        while not self.is_over:
            self.peak = max(self.peak, memory_bytes())
            time.sleep(0.2)

    def emit(self, record):
        """Find the estimate among what is logged."""
        found = re.search(r"needs about ([\d.]+) (\w+)", record.getMessage())
        if found:  # the aligner says so again when it comes to finer detail
            self.estimate = max(self.estimate, float(found[1]) * _UNITS[found[2]])


def family():
    """Identifiers of the calling process and all its descendants."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    mine, found = {os.getpid()}, True
    while found:
        found = {child for child, parent in parents.items() if parent in mine} - mine
        mine |= found
    return mine


def memory_bytes():
    """Proportional set size: what processes share is counted once."""
    total = 0
    for process in family():
        try:
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
        except OSError:
            continue
        total += 1024 * int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)[1])
    return total


def cpu_seconds():
    """CPU time of this process and its descendants, those that ended included."""
    ticks = 0
    for process in family():
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += sum(int(field) for field in fields[11:15])  # its own, and of children that ended
    return ticks / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--simulate"]:
        simulate(Path(sys.argv[2]), json.loads(sys.argv[3]))
    elif sys.argv[1:2] == ["--fit"]:
        fit(sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        main()
