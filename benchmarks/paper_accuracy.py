"""The paper's comparison of classifications on simulated views of the 70S ribosome.

    python benchmarks/paper_accuracy.py VOLUME.mrc [--snr 0.02,0.01,0.005] [--n 4000] [--nodes 225]
        [--poses true,aligned,mirror] [--methods sml2,map,...] [--plots DIR] [--keep DIR] [--full]

All views, CTF with astigmatism, shifts up to 10 Angstrom. The measure is the paper's: angles between the
views of all pairs of one class (peak and median of their histogram, fraction within 10 degrees; chance has
0.0076), class sizes ranked, and exp(entropy of the class sizes). SNR is signal over noise variance per pixel,
after the CTF: what an image holds in all grows with the number of its pixels, here 64 x 64 of 5 Angstrom.

"true" poses are perfect; "aligned" ones come from MAPAligner with 50 classes, whose frames differ, so equal
views may lie turned against one another and land in different classes; "mirror" poses from one that searches
mirror images, after which sml2m may use them as well. At these SNR 64 px images are at the edge of what can
be aligned at all: give --box 128 --pixel-size 2.5 for four times the pixels, and hours.

MAP classification is there three times: MAPAligner as it comes, which starts with its classes balanced and
gives them equal weights; plain EM from single images with estimated weights, as in the literature; and RELION
where it is installed. With true poses none of them searches any. RELION gets images centred below the pixel,
with their angles, and a minute of CPU time an iteration; with --keep it goes on where it was killed, and
methods that have ended are not run again.

ProjectionClusterer uses no poses: it gets the images as they are and finds all angles and shifts itself.

PCA + k-means and the Gaussian mixture get images low-passed to 20, 23, 27, 30 and 32 Angstrom and 10, 20, 30
and 50 components (the mixture 10 and 20). The line shows the best of these by the truth, which is more than
whoever uses them can know. SML chooses by itself. "Cells of the sphere" are as many even cells of the true
views, which no classification can surpass by much.

CPU seconds are those of this process and of RELION; with --jobs the aligner's workers are not counted.
--full is the paper's size: 50,000 images, 300 nodes; hours.
"""

import argparse
import sys
import tempfile
import time
import warnings
from functools import cached_property
from itertools import product
from pathlib import Path

import matplotlib as mpl
import numpy as np
from accuracy_figures import BINS, draw_all
from relion_run import find_relion, fixed_pose_options, particles_of, run_relion, write_centred
from scipy.spatial import cKDTree
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from sklearn_cryoem import MAPAligner, ProjectionClusterer, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, load_volume, make_particles
from sklearn_cryoem.datasets.draws import uniform_directions
from sklearn_cryoem.metrics import effective_classes, fraction_within, view_distances
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import half_plane

MASK_DIAMETER = 250.0  # Angstrom: the ribosome, whose edge may lie in that of the mask
ALIGNING_CLASSES = 50  # the aligner makes 2.5 times as many references
FINEST = 20.0  # Angstrom: RELION compares images up to here
CUT_OFFS = (20.0, 23.0, 27.0, 30.0, 32.0)  # Angstrom: low-pass filters before the principal components
COMPONENTS = {"pca": (10, 20, 30, 50), "gmm": (10, 20)}
METHODS = {
    "sml1": "SML, 1-D",
    "sml2": "SML, 2-D",
    "sml2r": "SML, 2-D, random start",
    "sml2m": "SML, 2-D, mirror images",
    "sml2s": "SML, sphere",
    "sml3": "SML, 3-D",
    "map": "MAPAligner",
    "em": "MAP, estimated weights",
    "relion": "RELION",
    "slices": "ProjectionClusterer",
    "pca": "PCA + k-means",
    "gmm": "Gaussian mixture",
    "cells": "cells of the sphere",
}
MAP_METHODS = tuple(METHODS[method] for method in ("map", "em", "relion"))


def main() -> None:
    options = parse()
    warnings.simplefilter("ignore", ConvergenceWarning)
    mpl.use("Agg")
    volume = load_volume(options.volume)
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for snr in options.snr:
            for poses in options.poses:
                case = Case(volume, snr, poses, options, options.keep or Path(scratch))
                sys.stdout.write(f"SNR {snr:g}, {poses} poses: {case.raw!r}\n")
                found[snr, poses] = compare(case)
                print_ratios(found[snr, poses])
    if options.plots:
        images = f"{options.n:,} images of {options.box} px, {options.pixel_size:g} Å/px"
        draw_all(found, f"{images}, {options.nodes} classes", options.plots)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("volume", help="map of a 70S ribosome, .mrc")
    parser.add_argument("--snr", type=listed(float), default=[0.02, 0.01, 0.005], help="0.02,0.01,0.005")
    parser.add_argument("--n", type=int, default=4000, help="number of images (4000)")
    parser.add_argument("--nodes", type=int, default=225, help="number of classes (225)")
    parser.add_argument("--box", type=int, default=64, help="pixels (64)")
    parser.add_argument("--pixel-size", type=float, default=5.0, help="Angstrom (5)")
    parser.add_argument("--poses", type=listed(str), default=["true"], help="true,aligned,mirror")
    parser.add_argument("--methods", type=listed(str), help=f"{','.join(METHODS)} (all that can be run)")
    parser.add_argument("--relion", help="path of relion_refine")
    parser.add_argument("--relion-iter", type=int, default=25, help="its iterations (25)")
    parser.add_argument("--plots", type=Path, help="folder for the figures")
    parser.add_argument("--keep", type=Path, help="folder for the classes found, which are not found again")
    parser.add_argument("--jobs", type=int, help="number of workers")
    parser.add_argument("--seed", type=int, default=0, help="of images and starts (0)")
    parser.add_argument("--full", action="store_true", help="50,000 images, 300 nodes")
    options = parser.parse_args()
    if options.full:
        options.n, options.nodes = 50_000, 300
    if options.methods is None:
        options.methods = [method for method in METHODS if method != "relion" or has_relion(options.relion)]
    for name, known in (("methods", METHODS), ("poses", ("true", "aligned", "mirror"))):
        if unknown := set(getattr(options, name)) - set(known):
            parser.error(f"no such {name}: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return options


def listed(kind):
    return lambda text: [kind(item) for item in text.split(",")]


def has_relion(path):
    """Whether there is a RELION to run; one that was named must be there."""
    try:
        find_relion(path)
    except FileNotFoundError as error:
        if path:
            raise
        sys.stdout.write(f"Without RELION: {error}\n")
        return False
    return True


# ---------------------------------------------------------------- images
class Case:
    """A set of images with their poses, made when they are needed, and the folder of what is found."""

    def __init__(self, volume, snr, poses, options, folder):
        self.options, self.poses = options, poses
        self.raw = make_particles(
            volume, options.n, box=options.box, pixel_size=options.pixel_size, snr=snr, max_shift=10.0,
            defocus=(10000.0, 25000.0), astigmatism=500.0, random_state=options.seed,
        )  # fmt: skip
        self.directions = self.raw.truth[["view_x", "view_y", "view_z"]].to_numpy()
        size = f"{options.n}_{options.box}px_{options.pixel_size:g}A_K{options.nodes}"
        self.folder = folder / f"{size}_snr{snr:g}_{poses}_seed{options.seed}"
        self.folder.mkdir(parents=True, exist_ok=True)

    @cached_property
    def aligner(self):
        """What finds the poses where they are not the true ones."""
        return MAPAligner(
            ALIGNING_CLASSES, mask_diameter=MASK_DIAMETER, max_shift=15.0, n_jobs=self.options.jobs,
            mirror=self.poses == "mirror", random_state=self.options.seed,
        ).fit(self.raw)  # fmt: skip

    @cached_property
    def stack(self):
        """Images with their poses."""
        if self.poses == "true":
            return aligned_to_truth(self.raw)
        return self.raw.with_poses(self.aligner.poses_.unmirrored())

    @cached_property
    def components(self):
        """Cut-off -> components of the aligned, masked, low-passed images with the signs of their CTF."""
        width = self.options.box * self.options.pixel_size
        plane = half_plane(self.options.box, min(width / min(CUT_OFFS), self.options.box // 2))
        blocks = FeatureBlocks(self.stack, plane, MASK_DIAMETER)
        index, flipped = blocks.layout.norm_index, []
        for number in range(len(blocks)):
            block = blocks.load(number, blocks.layout.n_shells)
            flipped.append(block.data / np.sqrt(np.maximum(block.norm[:, index], 1e-12)))  # c y / |c|
        features = np.concatenate(flipped)
        sizes = {finest: 2 * np.count_nonzero(plane.radius <= width / finest) for finest in CUT_OFFS}
        return {
            finest: PCA(50, svd_solver="covariance_eigh").fit_transform(features[:, :size])
            for finest, size in sizes.items()
        }


# ---------------------------------------------------------------- methods
def compare(case):
    """Name -> what `tell` returns; of what was tried with several settings, the best."""
    results = {}
    for method in case.options.methods:
        outcomes = kept(method, case)
        if method in COMPONENTS:
            outcomes = [max(outcomes, key=lambda outcome: fraction_within(outcome[1], case.directions))]
        for note, labels, seconds in outcomes:
            name = METHODS[method] + note
            results[name] = tell(name, labels, case.directions, seconds)
    return results


def kept(method, case):
    """Yield notes, labels and CPU seconds of a method: of an earlier run, or as it runs now."""
    path = case.folder / f"{method}.npz"
    if not path.exists():
        outcomes = list(timed(labels_of(method, case)))
        columns = dict(zip(("notes", "labels", "seconds"), zip(*outcomes, strict=True), strict=True))
        np.savez_compressed(path, **columns)
        return outcomes
    with np.load(path) as found:
        notes, seconds = (found[name].tolist() for name in ("notes", "seconds"))
        return list(zip(notes, found["labels"], seconds, strict=True))


def timed(outcomes):
    """Notes, labels and CPU seconds from notes, labels and the seconds of other processes."""
    start = time.process_time()
    for note, labels, elsewhere in outcomes:
        yield note, labels, time.process_time() - start + elsewhere
        start = time.process_time()


def labels_of(method, case):
    """Yield notes, labels, CPU seconds of other processes: one, or one for each setting that is tried."""
    options, n, seed = case.options, case.options.nodes, case.options.seed
    if method.startswith("sml"):
        init = "random" if method.endswith("r") else "pca"
        topology = "sphere" if method.endswith("s") else "grid"
        model = SMLClusterer(
            n, n_components=int(method[3]), topology=topology, init=init, mask_diameter=MASK_DIAMETER,
            n_jobs=options.jobs, mirror=method.endswith("m"), random_state=seed,
        )  # fmt: skip
        yield "", model.fit_predict(case.stack), 0.0
    elif method in COMPONENTS:
        for (finest, components), n_axes in product(case.components.items(), COMPONENTS[method]):
            clusters = KMeans(n, n_init=3, random_state=seed)
            if method == "gmm":
                clusters = GaussianMixture(n, covariance_type="diag", random_state=seed, reg_covar=1e-3)
            yield f", {finest:g} Å, {n_axes}", clusters.fit_predict(components[:, :n_axes]), 0.0
    elif method == "cells":
        centres = uniform_directions(n, np.random.default_rng(seed))
        yield "", cKDTree(centres).query(case.directions)[1], 0.0
    elif method == "relion":
        yield relion_labels(case)
    elif method == "slices":
        model = ProjectionClusterer(
            n, mask_diameter=MASK_DIAMETER, max_shift=15.0, n_jobs=options.jobs, random_state=seed
        )
        yield ", no poses", model.fit(case.raw).labels_, 0.0
    else:
        if case.poses != "true" and method == "map":
            yield f", {ALIGNING_CLASSES} classes", case.aligner.labels_, 0.0
        yield "", map_labels(method, case), 0.0


def map_labels(method, case):
    """Classes of MAPAligner: as it comes, or plain EM; found poses may still move a little."""
    options = case.options
    more = {"angle_range": 0.0, "max_shift": 0.0}
    if case.poses != "true":
        more = {"angle_range": 0.1, "max_shift": options.pixel_size}
    if method == "em":
        more |= {"n_batches": 0, "max_iter": 40, "tol": 0.0, "class_prior": "estimated"}
    model = MAPAligner(
        options.nodes, n_references=options.nodes, mask_diameter=MASK_DIAMETER, n_jobs=options.jobs,
        random_state=options.seed, **more,
    )  # fmt: skip
    return model.fit(case.stack).labels_


def relion_labels(case):
    """Note, classes and CPU seconds of RELION at fixed poses."""
    options, relion = case.options, find_relion(case.options.relion)
    star = case.folder / "relion" / "particles.star"
    if not star.exists():
        write_centred(case.stack, star)
    more = fixed_pose_options(
        n_classes=options.nodes, iterations=options.relion_iter, mask_diameter=MASK_DIAMETER, finest=FINEST,
        seed=options.seed + 1, threads=options.jobs or 1,
    )  # fmt: skip
    costs, found = run_relion(relion, star, star.parent / "run", more, reuse=True)
    particles, row = particles_of(found, star, options.n)
    labels = np.empty(options.n, dtype=int)
    labels[row] = particles.metadata["rlnClassNumber"].to_numpy() - 1
    seconds = float("nan") if costs["continued"] else costs["cpu_s"]
    return f" {relion.version}, {options.relion_iter} iterations", labels, seconds


# ---------------------------------------------------------------- what is told
def tell(name, labels, directions, seconds):
    """Print a line; return histogram of angles, fraction within 10 degrees, effective classes, sizes."""
    angles = view_distances(labels, directions, random_state=0)
    counts = np.histogram(angles, BINS)[0]
    peak = 0.5 * (BINS[counts.argmax()] + BINS[counts.argmax() + 1])
    fraction, classes = fraction_within(labels, directions), effective_classes(labels)
    sys.stdout.write(
        f"  {name:30s} within 10 degrees {fraction:.4f}, peak {peak:3.0f}, median {np.median(angles):3.0f} "
        f"degrees, {classes.perplexity:4.0f} effective classes, {seconds:6.1f} s\n"
    )
    sys.stdout.flush()
    sizes = np.sort(np.bincount(labels))[::-1]
    return {
        "counts": counts, "fraction": fraction, "effective": classes.perplexity, "sizes": sizes[sizes > 0],
    }  # fmt: skip


def print_ratios(results):
    """SML in two dimensions against the best of the others, and the effective classes of MAP."""
    ours = results.get(METHODS["sml2"])
    found_by = (name for name in results if not name.startswith(("SML", METHODS["cells"])))
    others = {name: results[name]["fraction"] for name in found_by}
    if ours is None or not others:
        return
    best = max(others, key=others.get)
    sys.stdout.write(f"  SML, 2-D has {ours['fraction'] / others[best]:.2f} times the pairs of {best}\n")
    for name, found in results.items():
        if name.startswith(MAP_METHODS):
            ratio = ours["effective"] / found["effective"]
            sys.stdout.write(f"  SML, 2-D has {ratio:.2f} times the effective classes of {name}\n")


if __name__ == "__main__":
    main()
