"""Time and memory of make_particles.

    python benchmarks/simulate.py [--n 10000] [--box 128] [--jobs 2]

Prints one line per case: straight to disk, where the memory of the process must not grow with the number of
images, and in memory.
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

from sklearn_cryoem.datasets import make_particles


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000, help="number of images")
    parser.add_argument("--box", type=int, default=128, help="side in pixels")
    parser.add_argument("--jobs", type=int, default=2, help="number of workers")
    options = parser.parse_args()
    common = {"box": options.box, "snr": 0.05, "max_shift": 10.0, "n_jobs": options.jobs, "random_state": 0}
    make_particles("ribosome", 8, **{**common, "n_jobs": 1})  # imports and plans are not what is timed
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "particles.mrcs"
        measure("file, float32", options, path=path, **common)
        measure("file, float16", options, path=path, dtype="float16", overwrite=True, **common)
        measure("file, coloured noise, 10 % junk", options, path=path, noise="coloured", junk_fraction=0.1,
                overwrite=True, **common)  # fmt: skip
    measure("memory", options, **common)


def measure(case: str, options: argparse.Namespace, **parameters: object) -> None:
    """Time one simulation; peak memory is that of the process so far, so cases run from small to large."""
    start = time.perf_counter()
    stack = make_particles("ribosome", options.n, **parameters)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sys.stdout.write(
        f"{case:32s} {options.n:,} images of {stack.box} px, {options.jobs} jobs: {seconds:6.1f} s "
        f"({1e3 * seconds / options.n:.2f} ms an image), peak {peak:.2f} GB\n"
    )


if __name__ == "__main__":
    main()
