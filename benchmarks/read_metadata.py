"""Time and memory of the metadata of a million particles.

    python benchmarks/read_metadata.py [--rows 1000000] [--stacks 5000]

Writes a STAR file of so many particles in so many (sparse) image stacks, then prints one line for each thing
that a stack of that size must do without touching an image.
"""

import argparse
import pickle
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import mrcfile
import numpy as np
from sklearn.model_selection import train_test_split

from sklearn_cryoem.io import read_particles, write_particles

OPTICS = """data_optics

loop_
_rlnOpticsGroup #1
_rlnOpticsGroupName #2
_rlnVoltage #3
_rlnSphericalAberration #4
_rlnAmplitudeContrast #5
_rlnImagePixelSize #6
_rlnImageSize #7
_rlnImageDimensionality #8
1 opticsGroup1 300.000000 2.700000 0.100000 1.250000 256 2


data_particles

loop_
"""
LABELS = [
    "rlnCoordinateX", "rlnCoordinateY", "rlnAutopickFigureOfMerit", "rlnClassNumber", "rlnAnglePsi",
    "rlnOriginXAngst", "rlnOriginYAngst", "rlnImageName", "rlnMicrographName", "rlnOpticsGroup",
    "rlnCtfMaxResolution", "rlnCtfFigureOfMerit", "rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle",
    "rlnCtfBfactor", "rlnCtfScalefactor", "rlnPhaseShift",
]  # fmt: skip
BOX = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="number of particles")
    parser.add_argument("--stacks", type=int, default=5_000, help="number of image stacks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = make_project(Path(folder), options.rows, options.stacks)
        sys.stdout.write(
            f"{options.rows:,} particles in {options.stacks:,} stacks, {len(LABELS)} columns, "
            f"{path.stat().st_size / 1e6:.0f} MB of text\n"
        )
        stack = measure("read_particles", lambda: read_particles(path))
        order = np.random.default_rng(0).permutation(len(stack))
        measure("half, as a slice", lambda: stack[: len(stack) // 2])
        measure("all, shuffled", lambda: stack[order])
        measure("256 rows", lambda: stack[order[:256]])
        measure("train_test_split", lambda: train_test_split(stack, random_state=0))
        measure("joblib.hash", lambda: joblib.hash(stack))
        text = measure("pickle", lambda: pickle.dumps(stack))
        sys.stdout.write(f"    {len(text) / len(stack):.0f} bytes a particle\n")
        measure("unpickle", lambda: pickle.loads(text))
        measure("repr", lambda: repr(stack))
        measure("write_particles", lambda: write_particles(stack, path.with_name("out.star")))


def make_project(folder: Path, n_rows: int, n_stacks: int) -> Path:
    """A STAR file and sparse image stacks: headers are real, pixels are holes that take no disk."""
    per_stack = -(-n_rows // n_stacks)
    (folder / "Extract").mkdir()
    first = folder / "Extract" / "stack_00000.mrcs"
    with mrcfile.new_mmap(first, (per_stack, BOX, BOX), mrc_mode=12) as mrc:
        mrc.set_image_stack()
        mrc.voxel_size = 1.25
    header, size = read_header(first), first.stat().st_size
    for number in range(1, n_stacks):
        with open(folder / "Extract" / f"stack_{number:05d}.mrcs", "wb") as file:
            file.write(header)
            file.truncate(size)
    path = folder / "particles.star"
    with open(path, "w", encoding="utf-8") as file:
        file.write(OPTICS + "".join(f"_{label} #{i}\n" for i, label in enumerate(LABELS, start=1)))
        for row in range(n_rows):
            stack, frame = divmod(row, per_stack)
            numbers = (
                f"{row % 4000}.217657 {row % 3700}.882354 0.163126 0 {row % 360}.000000 1.250000 -2.500000"
            )
            names = f"{frame + 1:06d}@Extract/stack_{stack:05d}.mrcs MotionCorr/job002/mic_{stack:05d}.mrc"
            defocus = f"{10000 + row % 9999}.006836 {9000 + row % 9999}.461914 79.130180"
            file.write(f"{numbers} {names} 1 4.841686 0.132045 {defocus} 0.000000 1.000000 0.000000\n")
    return path


def read_header(path: Path) -> bytes:
    """The first 1024 bytes of a file."""
    with open(path, "rb") as file:
        return file.read(1024)


def measure(what: str, function: Callable[[], Any]) -> Any:
    """Time one call; peak memory is that of the process so far."""
    start, start_cpu = time.perf_counter(), time.process_time()
    result = function()
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sys.stdout.write(f"{what:20s} {seconds:8.3f} s ({cpu:.3f} s of CPU), peak {peak:.2f} GB\n")
    return result


if __name__ == "__main__":
    main()
