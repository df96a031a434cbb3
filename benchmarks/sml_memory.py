"""Peak memory of SMLClusterer on particles that stay in their file.

    python benchmarks/sml_memory.py [--n 20000] [--box 128] [--nodes 300] [--iterations 6] [--jobs 2]

Particles are simulated to disk in a process of their own, so that the peak is that of the fit. Few iterations
suffice: the last ones use all frequencies, and memory does not grow from one to the next.
Accuracy after so few is printed for what it is.
"""

import argparse
import multiprocessing
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, make_particles
from sklearn_cryoem.metrics import fraction_within


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=20_000, help="number of images")
    parser.add_argument("--box", type=int, default=128, help="side in pixels")
    parser.add_argument("--nodes", type=int, default=300, help="number of classes")
    parser.add_argument("--iterations", type=int, default=6, help="EM iterations")
    parser.add_argument("--jobs", type=int, default=2, help="number of workers")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        for step in (simulate, fit):
            process = context.Process(target=step, args=(Path(folder), options))
            process.start()
            process.join()
            if process.exitcode:
                sys.exit(process.exitcode)


def particles(folder, options):
    """Write the stack, and read it back from its file: the seed gives CTF and truth again."""
    return aligned_to_truth(
        make_particles(
            "ribosome", options.n, box=options.box, snr=0.05, path=folder / "particles.mrcs", overwrite=True,
            max_shift=5.0, random_state=0, n_jobs=options.jobs,
        )
    )  # fmt: skip


def simulate(folder, options):
    """Write the file and everything else that the fit needs."""
    stack = particles(folder, options)
    import pickle  # the stack is file-backed: what is kept here is its tables

    (folder / "stack").write_bytes(pickle.dumps(stack))


def fit(folder, options):
    """Fit, and print time, peak memory and accuracy."""
    import pickle

    stack = pickle.loads((folder / "stack").read_bytes())
    before = peak()
    model = SMLClusterer(options.nodes, max_iter=options.iterations, n_jobs=options.jobs, random_state=0)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(stack)
    seconds = time.perf_counter() - start
    directions = stack.truth[["view_x", "view_y", "view_z"]].to_numpy()
    sys.stdout.write(
        f"{stack!r}\n{np.prod(model.grid_shape_)} nodes, {model.n_iter_} iterations, {options.jobs} jobs: "
        f"{seconds:.0f} s ({1e3 * seconds / options.n / model.n_iter_:.1f} ms an image and iteration)\n"
        f"peak memory {peak():.2f} GB, {before:.2f} GB of it before the fit; all images as float32: "
        f"{stack.nbytes / 1e9:.2f} GB\n"
        f"same-class pairs within 10 degrees: {fraction_within(model.labels_, directions):.3f}\n"
    )


def peak():
    """Peak resident memory of this process in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


if __name__ == "__main__":
    main()
