"""The main job on real particles: wall time, peak memory, and how many classes show a view of the molecule.

    python benchmarks/betagal.py [--star FILE] [--map FILE] [--jobs 2] [--keep FOLDER] [classify options ...]

Runs ``sklearn-cryoem classify`` in a process of its own on 2,374 beta-galactosidase particles and then
compares every class average with projections of the known map (which the classification never sees): the
highest correlation coefficient over 400 views, all in-plane angles and shifts, inside a disc, between 60 and
12 A. Blurred junk has a score too: read the figures beside the pictures. The map has its centre of symmetry
in the centre, so the shift of the best match says how far a class is off.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
from scipy import fft

from sklearn_cryoem.datasets import load_volume
from sklearn_cryoem.datasets.forward import project
from sklearn_cryoem.physics.masks import mask_background
from sklearn_cryoem.physics.polar import angular_orders, polar_grid, polar_transform, translation_phase

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RECOGNISED, OFF_CENTRE_PX = 0.7, 3.0
COARSE_ANGSTROM, FINE_ANGSTROM = 60.0, 12.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--star", type=Path, default=DATA / "betagal" / "particles_ctf_corrected.star")
    parser.add_argument("--map", type=Path, default=DATA / "volumes" / "ngl_betaGal.mrc")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--mask-diameter", type=float, default=190.0, help="Angstrom")
    parser.add_argument("--keep", type=Path, help="folder for the results (default: a temporary one)")
    options, more = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as scratch:
        out = options.keep or Path(scratch) / "out"
        command = [
            sys.executable, "-m", "sklearn_cryoem.cli", "classify", str(options.star), "-o", str(out),
            "--force", "--jobs", str(options.jobs), "--mask-diameter", str(options.mask_diameter), *more,
        ]  # fmt: skip
        start = time.perf_counter()
        subprocess.run(command, check=True)
        wall = time.perf_counter() - start
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        print(
            f"wall {wall:.1f} s, CPU {usage.ru_utime + usage.ru_stime:.1f} s, "
            f"peak memory {usage.ru_maxrss / 1024:.0f} MB"
        )
        summary = json.loads((out / "summary.json").read_text())
        print(
            json.dumps(
                {key: value for key, value in summary.items() if not isinstance(value, list)}, indent=1
            )
        )
        report_views(out, options.map, options.mask_diameter)


def report_views(out: Path, map_path: Path, mask_diameter: float) -> None:
    sizes = pd.read_csv(out / "quality.csv")["size"].to_numpy()
    with mrcfile.open(out / "class_averages.mrcs") as handle:
        averages, pixel_size = handle.data.astype(np.float32), float(handle.voxel_size.x)
    print_view_scores("class averages", averages, sizes, pixel_size, map_path, mask_diameter)


def print_view_scores(name, averages, sizes, pixel_size, map_path, mask_diameter):
    """Print how many averages correlate well with a projection of the map, and how many are off centre."""
    scores, off_px = view_scores(averages, load_volume(map_path), pixel_size, mask_diameter)
    best = np.sort(scores)[::-1]
    counts = ", ".join(f"{(scores >= level).sum()} at {level:g}" for level in (0.7, 0.8, 0.85, 0.9))
    print(f"{name}: {len(averages)} classes; correlation with a projection: {counts} or above")
    print("  best 20:", np.array2string(best[:20], precision=2))
    seen = scores >= RECOGNISED
    print(f"  particles in classes at {RECOGNISED:g} or above: {sizes[seen].sum() / sizes.sum():.3f}")
    off = off_px[seen] > OFF_CENTRE_PX
    print(f"  of these {seen.sum()} classes more than {OFF_CENTRE_PX:g} px off centre: {off.sum()}")


def view_scores(averages, volume, pixel_size, mask_diameter, n_views=400, reach_px=7, seed=0):
    """Highest correlation of each average with any projection, and how far off it lies; both (n_classes,)."""
    box = averages.shape[-1]
    rng = np.random.default_rng(seed)
    rot, tilt = rng.uniform(-np.pi, np.pi, n_views), np.arccos(rng.uniform(-1, 1, n_views))
    views = project(volume, rot, tilt, box=box, pixel_size=pixel_size)
    radius = 0.5 * mask_diameter / pixel_size
    grid = polar_grid(box, box * pixel_size / FINE_ANGSTROM, radius + reach_px)
    band = grid.radius >= box * pixel_size / COARSE_ANGSTROM
    weight = np.sqrt(grid.ring_weight * band)[:, None].astype(np.float32)  # (n_rings, 1)
    n_orders = grid.n_angles // 2

    def orders_of(values):
        orders = angular_orders(values, n_orders) * weight
        norm = np.abs(orders[..., 0]) ** 2 + 2 * (np.abs(orders[..., 1:]) ** 2).sum(-1)
        return orders / np.sqrt(norm.sum(-1))[..., None, None]

    reference = orders_of(polar_transform(mask_background(views, radius, 3.0), grid))  # (n_views, n_rings, M)
    masked = polar_transform(
        mask_background(averages, radius, 3.0), grid
    )  # (n_classes, n_rings, n_angles / 2)
    steps = np.arange(-reach_px, reach_px + 1)
    moves = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    best, off = np.full(len(averages), -1.0), np.zeros(len(averages))
    for move in moves[np.hypot(*moves.T) <= reach_px]:
        moved = orders_of(masked * translation_phase(grid, move)[0])
        cross = np.einsum("vrm,krm->kvm", np.conj(reference), moved, optimize=True)
        correlation = fft.irfft(cross, grid.n_angles, axis=-1, norm="forward")
        highest = correlation.max(axis=(1, 2))
        off[highest > best] = np.hypot(*move)
        best = np.maximum(best, highest)
    return best, off


if __name__ == "__main__":
    main()
