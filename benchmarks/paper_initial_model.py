"""First models of the proteasome's regulatory particle from class averages, as in the paper's section 3.3.

    python benchmarks/paper_initial_model.py [--volumes DIR] [--snr 0.05] [--n 2000] [--nodes 100]
        [--averages 60] [--seeds 0] [--jobs 2] [--full] [--betagal PARTICLES.star MAP.mrc [--symmetry D2]]

Particles of RP in all views (DIR/4cr2_RP_rough_DERIVED.mrc; a phantom without --volumes), in poses that
MAPAligner finds, are sorted by SML and by PCA + k-means. `initial_model` makes a volume from the best
averages of each, and `ProjectionClusterer` one from the particles themselves. Each volume is laid onto the
true one, in both hands, and compared by Fourier shell correlation at 0.5: in the paper 20.6 Angstrom from
averages of SML, and 29.1 from those of PCA + k-means.

--full is the paper's size: 10,000 particles, 1,000 classes of SML of which the best 234 are taken.
--betagal takes real beta-galactosidase instead, and makes a volume from its raw picks.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import numpy as np
from paper_subclasses import BOX, PIXEL_SIZE, class_averages
from scipy import fft, ndimage, optimize
from scipy.spatial.transform import Rotation
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from sklearn_cryoem import MAPAligner, ProjectionClusterer, SMLClusterer
from sklearn_cryoem.datasets import load_volume, make_particles, make_proteasome_phantoms
from sklearn_cryoem.estimators import EigenImages, initial_model
from sklearn_cryoem.io import read_particles
from sklearn_cryoem.projections.volumes import resized, shell_correlation
from sklearn_cryoem.quality import class_quality

MASK_DIAMETER = 260.0  # Angstrom
DOCKING_SIDE, N_ROTATIONS, N_REFINED = 20, 2000, 6


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", metavar="DIR", type=Path, help="where the maps of the proteasome are")
    parser.add_argument("--snr", type=float, default=0.05, help="per pixel, after the CTF (0.05)")
    parser.add_argument("--n", type=int, default=2000, help="number of particles (2000)")
    parser.add_argument("--nodes", type=int, default=100, help="classes (100)")
    parser.add_argument("--averages", type=int, default=60, help="averages taken of these, the best (60)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of particles and starts (0)")
    parser.add_argument("--jobs", type=int, default=1, help="number of workers")
    parser.add_argument("--full", action="store_true", help="10,000 particles, 234 of 1,000 classes")
    parser.add_argument("--betagal", nargs=2, metavar=("STAR", "MAP"), help="its particles, and its map")
    parser.add_argument("--symmetry", default="D2", help="of beta-galactosidase, C1 for none (D2)")
    options = parser.parse_args()
    if options.full:
        options.n, options.nodes, options.averages = 10_000, 1_000, 234
    warnings.simplefilter("ignore", ConvergenceWarning)
    if options.betagal:
        for seed in options.seeds:
            betagal(seed, options)
        return
    truth = true_volume(options.volumes)
    for seed in options.seeds:
        compare(truth, seed, options)


def betagal(seed, options):
    """Print the resolution of a volume of raw picks, and how many are taken for junk."""
    start, raw = time.process_time(), read_particles(options.betagal[0])
    model = ProjectionClusterer(
        100, symmetry=options.symmetry, flat=True, mask_diameter=190.0, max_shift=12.0, max_resolution=14.0,
        n_jobs=options.jobs, random_state=seed,
    ).fit(raw)  # fmt: skip
    seconds, known = time.process_time() - start, load_volume(options.betagal[1])
    report(f"seed {seed}, {options.symmetry}", model, known, seconds, raw.pixel_size)
    tell(f"  {model.class_sizes_[-1]} of {len(raw)} picks are in the flat class")


def true_volume(folder):
    """RP, of the file or a phantom, in the box of the particles."""
    if folder is None:
        return make_proteasome_phantoms(BOX, PIXEL_SIZE)[0]
    return load_volume(folder / "4cr2_RP_rough_DERIVED.mrc")


def compare(truth, seed, options):
    """Print the resolution of each model of one set of particles."""
    raw = make_particles(
        truth, options.n, box=BOX, pixel_size=PIXEL_SIZE, snr=options.snr, max_shift=15.0,
        defocus=(10000.0, 25000.0), astigmatism=500.0, random_state=seed,
    )  # fmt: skip
    tell(f"seed {seed}: {raw!r}")
    more = {"mask_diameter": MASK_DIAMETER, "n_jobs": options.jobs, "random_state": seed}
    start = time.process_time()
    aligned = MAPAligner(50, max_shift=25.0, **more).fit_transform(raw)
    tell(f"  MAPAligner: {time.process_time() - start:.0f} CPU s")
    eigen = EigenImages(20, max_resolution=30.0, mask_diameter=MASK_DIAMETER).fit_transform(aligned)
    labels = {
        "SML": SMLClusterer(options.nodes, **more).fit_predict(aligned),
        "PCA + k-means": KMeans(options.nodes, n_init=3, random_state=seed).fit_predict(eigen),
    }
    for name, found in labels.items():
        quality = class_quality(found, aligned, mask_diameter=MASK_DIAMETER)
        best = quality.sort_values("rank").index[: options.averages]
        start = time.process_time()
        model = initial_model(
            class_averages(aligned, found)[best], PIXEL_SIZE, sizes=quality["size"][best],
            resolutions=quality["resolution"][best], **more,
        )  # fmt: skip
        report(f"{options.averages} averages of {name}", model, truth, time.process_time() - start)
    start = time.process_time()
    model = ProjectionClusterer(min(options.nodes, 200), max_shift=25.0, **more).fit(raw)
    report("particles", model, truth, time.process_time() - start)


def report(name, model, truth, seconds, pixel_size=PIXEL_SIZE):
    """Print a line."""
    resolution, correlation = docked_resolution(model.volumes_[0].astype(np.float64), truth, pixel_size)
    tell(f"  {name:30s} {resolution:5.1f} A, correlation {correlation:.2f}, {seconds:6.1f} CPU s")


def tell(text):
    """Print a line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


# ---------------------------------------------------------------- docking
def docked_resolution(found, truth, pixel_size):
    """Resolution in Angstrom at a shell correlation of 0.5 with a true Volume, best of both hands.

    Returns
    -------
    resolution, correlation : float
        And the correlation of the densities.
    """
    box = len(found)
    side = round(truth.box * truth.pixel_size / pixel_size)  # the same field in voxels of the particles
    known = cropped(resized(truth.array.astype(np.float64), side + side % 2), box)
    coarse = resized(known, DOCKING_SIDE)
    ends = [(hand, *docked(resized(hand, DOCKING_SIDE), coarse)) for hand in (found, found[::-1])]
    hand, _, pose = max(ends, key=lambda end: end[1])
    start = np.append(pose[:3], pose[3:] * box / DOCKING_SIDE)
    correlation, pose = climbed(hand, known, start)
    curve = shell_correlation(moved(hand, pose), known, box // 2 - 1)
    rings = int(np.argmax(np.append(curve < 0.5, True)))
    return box * pixel_size / max(rings, 1), correlation


def cropped(volume, box):
    """The middle of a volume, or the volume amid zeros, in a box."""
    wide = np.pad(volume, max(0, -(-(box - len(volume)) // 2)))
    first = len(wide) // 2 - box // 2
    return wide[(slice(first, first + box),) * 3]


def docked(volume, truth):
    """Correlation and pose, rotation vector and shift in voxels, that lay a volume onto another."""
    target = fft.rfftn(truth).conj()
    turns = Rotation.random(N_ROTATIONS, random_state=0).as_rotvec()
    found = [placed(moved(volume, [*turn, 0.0, 0.0, 0.0]), target) for turn in turns]
    best = sorted(range(N_ROTATIONS), key=lambda at: -found[at][0])[:N_REFINED]
    ends = [climbed(volume, truth, [*turns[at], *found[at][1]]) for at in best]
    return max(ends, key=lambda end: end[0])


def climbed(volume, truth, pose):
    """Correlation and pose at the nearest top."""
    other = truth - truth.mean()

    def loss(pose):
        one = moved(volume, pose)
        one -= one.mean()
        return -np.vdot(one, other) / max(np.linalg.norm(one) * np.linalg.norm(other), 1e-12)

    end = optimize.minimize(loss, pose, method="Powell", options={"maxiter": 6})
    return -end.fun, end.x


def moved(volume, pose):
    """A volume turned by a rotation vector about its centre voxel, then shifted, in voxels."""
    matrix = Rotation.from_rotvec(pose[:3]).as_matrix()
    centre = len(volume) // 2
    return ndimage.affine_transform(volume, matrix, centre - matrix @ (centre + np.array(pose[3:])), order=1)


def placed(volume, target):
    """Largest correlation over all shifts, and the shift in voxels."""
    table = fft.irfftn(fft.rfftn(volume - volume.mean()) * target, s=volume.shape)
    at = np.array(np.unravel_index(table.argmax(), table.shape))
    side = len(volume)
    score = table.max() / max(np.linalg.norm(volume - volume.mean()), 1e-12)
    return score, -((at + side // 2) % side - side // 2)


if __name__ == "__main__":
    main()
