"""RELION on the real particles of betagal.py: its costs, and how many classes show a view of the molecule.

    python benchmarks/betagal_relion.py [--classes 50] [--iter 10] [--keep DIR] [--picture FILE.png]

RELION's 2-D classification by EM gets the particles, mask, number of classes and range of shifts that
``sklearn-cryoem classify`` has in betagal.py. Its class averages are scored in the same way, against
projections of the known map, and drawn in the same way. Classes that it left empty are not counted.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import mrcfile
import numpy as np
import pandas as pd
import starfile
from betagal import DATA, print_view_scores
from relion_run import find_relion, refine_options, run_relion

from sklearn_cryoem import read_particles, write_particles
from sklearn_cryoem.plotting import plot_class_averages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--star", type=Path, default=DATA / "betagal" / "particles_ctf_corrected.star")
    parser.add_argument("--map", type=Path, default=DATA / "volumes" / "ngl_betaGal.mrc")
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--iter", type=int, default=10, help="iterations; RELION's own default is 25 (10)")
    parser.add_argument("--mask-diameter", type=float, default=190.0, help="Angstrom")
    parser.add_argument("--jobs", type=int, default=1, help="threads")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--relion", help="path of relion_refine")
    parser.add_argument("--picture", type=Path, help="draw the class averages, largest class first")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--keep", help="folder for particles and results (default: a temporary one)")
    where.add_argument("--reuse", help="such a folder, whose finished run is not run again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.reuse or options.keep or scratch)
        found = classify(options, folder)
        averages, pixel_size, classes = read_classes(found)
        held = classes["size"].to_numpy() > 0
        print_view_scores(
            f"RELION, {held.sum()} of {len(held)} classes hold particles",
            averages[held], classes["size"].to_numpy()[held], pixel_size, options.map, options.mask_diameter,
        )  # fmt: skip
        if options.picture:
            draw(options.picture, averages, pixel_size, classes)


def classify(options, folder):
    """Run RELION on a copy of the particles, or take the run that is there; path of its last STAR file."""
    star = folder / "particles.star"
    if not star.exists():  # float32: RELION before version 4 cannot read the float16 of the original
        folder.mkdir(parents=True, exist_ok=True)
        write_particles(read_particles(options.star), star, write_images=True)
    relion = find_relion(options.relion)
    more = refine_options(
        method="EM", n_classes=options.classes, iterations=options.iter, mask_diameter=options.mask_diameter,
        seed=options.seed, threads=options.jobs,
    )  # fmt: skip
    out = folder / f"relion{relion.version}_EM{options.iter}_K{options.classes}_seed{options.seed}"
    costs, found = run_relion(relion, star, out, more, reuse=bool(options.reuse))
    sys.stdout.write(
        f"RELION {relion.version}, EM, {options.iter} iterations, K = {options.classes}: "
        f"wall {costs['wall_s']:.0f} s, CPU {costs['cpu_s']:.0f} s, peak memory {costs['memory_mb']:.0f} MB"
        f"{' (measured when it was run)' if costs['stored'] else ''}\n"
    )
    return found


def read_classes(found):
    """Class averages (n_classes, D, D), pixel size, and a table of size and resolution of each class."""
    part = str(found).removesuffix("_data.star")
    with mrcfile.open(f"{part}_classes.mrcs", permissive=True) as handle:
        averages, pixel_size = handle.data.astype(np.float32), float(handle.voxel_size.x)
    model = starfile.read(f"{part}_model.star", always_dict=True)
    labels = read_particles(found, metadata_only=True).metadata["rlnClassNumber"].to_numpy() - 1
    resolution = model["model_classes"]["rlnEstimatedResolution"].to_numpy(dtype=float)
    sizes = np.bincount(labels, minlength=len(averages))
    return averages, pixel_size, pd.DataFrame({"size": sizes, "resolution": resolution})


def draw(path, averages, pixel_size, classes):
    """Draw the gallery that `sklearn-cryoem classify` draws."""
    figure = plot_class_averages(averages, quality=classes, pixel_size=pixel_size, numbers=True)
    figure.savefig(path, dpi=80, bbox_inches="tight")


if __name__ == "__main__":
    main()
