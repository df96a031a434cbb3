"""Run as a program: fit everything with so many workers of a kind, and print how busy which OS threads were.

``python busy_threads.py N_JOBS BACKEND`` prints JSON of processor seconds: ``known``, of the threads that
Python knows of in this process; ``foreign``, of all others in it, which are those of BLAS and OpenMP;
``workers``, the same two for every worker process, of which Python knows its main thread; ``control``, of the
foreign threads in a product of matrices that may use two.
"""

import json
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
from joblib import parallel_config
from threadpoolctl import threadpool_limits

from sklearn_cryoem import DeepClusterer, MAPAligner, RealigningClusterer, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.estimators import EigenImages


def seconds(process):
    """Processor time of every thread of a process that lives, by its number."""
    found = {}
    for folder in Path(f"/proc/{process}/task").iterdir():
        try:
            found[int(folder.name)] = int((folder / "schedstat").read_text().split()[0]) / 1e9
        except OSError:  # it has just ended
            continue
    return found


def measured():
    """Seconds of threads that Python knows and of all others: of this process (0) and of each worker."""
    known = {thread.native_id for thread in threading.enumerate()}
    found = {0: split(seconds("self"), known)}
    for text in [path.read_text() for path in Path("/proc/self/task").glob("*/children")]:
        for number in text.split():
            if b"loky" in Path(f"/proc/{number}/cmdline").read_bytes():
                found[int(number)] = split(seconds(number), {int(number)})
    return found


def split(times, known):
    """Sum over the threads that are known and over the others."""
    mine = sum(time for number, time in times.items() if number in known)
    return np.array([mine, sum(times.values()) - mine])


def at_rest():
    """What is measured once BLAS has started its threads: each waits busily for a while."""
    last, now = {}, measured()
    while {number: times[1] for number, times in last.items()} != {
        number: times[1] for number, times in now.items()
    }:
        time.sleep(0.5)  # one that has no core to wait on stands still, too
        last, now = now, measured()
    return now


def fit_all(unaligned, n_jobs):
    """Fit every estimator and ask it for everything."""
    stack = aligned_to_truth(unaligned)
    clusterer = SMLClusterer(64, max_iter=4, n_jobs=n_jobs, random_state=0)
    aligner = MAPAligner(6, n_batches=4, max_iter=2, n_jobs=n_jobs, random_state=0)
    tree = DeepClusterer(
        MAPAligner(3, n_batches=2, max_iter=1, n_jobs=n_jobs, random_state=0), clusterer,
        images_per_subclass=20, n_jobs=n_jobs, random_state=0,
    )  # fmt: skip
    aligner.fit(unaligned).score(unaligned)
    tree.fit(unaligned).predict(unaligned)
    clusterer.fit(stack).predict_proba(stack)
    clusterer.inverse_transform(np.zeros((200, clusterer.latent_nodes_.shape[1])))
    half = len(stack) // 2 + 20
    stream = SMLClusterer(36, max_iter=9, n_jobs=n_jobs, random_state=0)
    stream.partial_fit(stack[:half]).partial_fit(stack[half:])
    RealigningClusterer(SMLClusterer(9, max_iter=3, n_jobs=n_jobs), n_rounds=1, n_jobs=n_jobs).fit(stack)
    EigenImages(4, n_jobs=n_jobs).fit(stack).transform(stack)


def main(n_jobs, backend):
    """Print what was measured."""
    particles = make_particles("ribosome", 250, box=32, snr=1.0, n_views=3, max_shift=8.0, random_state=0)
    with parallel_config(backend), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for estimator in (MAPAligner(2, n_batches=1, max_iter=1), SMLClusterer(4, max_iter=1)):
            estimator.set_params(n_jobs=n_jobs).fit(particles[:100])  # so that there are workers
        before = at_rest()
        if backend == "threading":  # the same process
            fit_all(particles[:100], 1)
        fit_all(particles, n_jobs)
    after = measured()
    spent = {number: (after[number] - before[number]).tolist() for number in before.keys() & after.keys()}
    start = at_rest()
    with threadpool_limits(limits=2):
        for _ in range(20):
            np.ones((400, 400)) @ np.ones((400, 400))
    control = (measured()[0] - start[0])[1]
    known, foreign = spent.pop(0)
    workers = list(spent.values())
    print(json.dumps({"known": known, "foreign": foreign, "workers": workers, "control": control}))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
