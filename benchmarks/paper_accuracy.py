"""The paper's comparison of classifications on simulated views of the 70S ribosome.

    python benchmarks/paper_accuracy.py VOLUME.mrc [--snr 0.02,0.01,0.005] [--n 4000] [--nodes 225]
        [--poses true,aligned] [--methods sml2,map,...] [--relion STAR] [--plots DIR] [--full]

All views, CTF with astigmatism, shifts up to 10 Angstrom. The measure is the paper's: angles between the
views of all pairs of one class (peak and median of their histogram, fraction within 10 degrees; chance has
0.0076), class sizes ranked, and exp(entropy of the class sizes). SNR is signal over noise variance per pixel,
after the CTF: what an image holds in all grows with the number of its pixels, here 64 x 64 of 5 Angstrom.

"true" poses are perfect; "aligned" ones come from MAPAligner with 50 classes, whose frames differ, so equal
views may lie turned against one another and land in different classes. At these SNR 64 px images are at the
edge of what can be aligned at all: give --box 128 --pixel-size 2.5 for four times the pixels, and hours.
MAP classification (MAPAligner) gets the true poses and searches only round them, or finds its own.

--full is the paper's size: 50,000 images, 300 nodes; hours.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from sklearn_cryoem import MAPAligner, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, load_volume, make_particles
from sklearn_cryoem.metrics import effective_classes, fraction_within, view_distances
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import half_plane

MASK_DIAMETER = 270.0  # Angstrom: the ribosome
ALIGNING_CLASSES = 50  # the aligner makes 2.5 times as many references
BINS = np.arange(0.0, 182.0, 2.0)
METHODS = {
    "sml1": "SML, 1-D",
    "sml2": "SML, 2-D",
    "sml2r": "SML, 2-D, random start",
    "sml3": "SML, 3-D",
    "map": "MAP classification",
    "pca": "PCA + k-means",
    "gmm": "Gaussian mixture",
}


def main() -> None:
    options = parse()
    warnings.simplefilter("ignore", ConvergenceWarning)
    mpl.use("Agg")
    volume = load_volume(options.volume)
    for snr in options.snr:
        raw = make_particles(
            volume, options.n, box=options.box, pixel_size=options.pixel_size, snr=snr, max_shift=10.0,
            defocus=(10000.0, 25000.0), astigmatism=500.0, random_state=options.seed,
        )  # fmt: skip
        directions = raw.truth[["view_x", "view_y", "view_z"]].to_numpy()
        for poses in options.poses:
            sys.stdout.write(f"SNR {snr:g}, {poses} poses: {raw!r}\n")
            results = compare(raw, poses, directions, options)
            print_ratios(results)
            if options.plots:
                draw(results, f"snr{snr:g}_{poses}", options.plots)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("volume", help="map of a 70S ribosome, .mrc")
    parser.add_argument("--snr", type=listed(float), default=[0.02, 0.01, 0.005], help="0.02,0.01,0.005")
    parser.add_argument("--n", type=int, default=4000, help="number of images (4000)")
    parser.add_argument("--nodes", type=int, default=225, help="number of classes (225)")
    parser.add_argument("--box", type=int, default=64, help="pixels (64)")
    parser.add_argument("--pixel-size", type=float, default=5.0, help="Angstrom (5)")
    parser.add_argument("--poses", type=listed(str), default=["true"], help="true,aligned")
    parser.add_argument("--methods", type=listed(str), default=list(METHODS), help=",".join(METHODS))
    parser.add_argument("--relion", type=Path, help="STAR file of RELION's classes of the same images")
    parser.add_argument("--plots", type=Path, help="folder for the figures")
    parser.add_argument("--jobs", type=int, help="number of workers")
    parser.add_argument("--seed", type=int, default=0, help="of images and starts (0)")
    parser.add_argument("--full", action="store_true", help="50,000 images, 300 nodes")
    options = parser.parse_args()
    if options.full:
        options.n, options.nodes = 50_000, 300
    unknown = set(options.methods) - set(METHODS)
    if unknown:
        parser.error(f"no such method: {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}")
    if options.relion and (len(options.snr) > 1 or len(options.poses) > 1):
        parser.error("--relion holds the classes of one set: give one --snr and one of --poses")
    return options


def listed(kind):
    return lambda text: [kind(item) for item in text.split(",")]


# ---------------------------------------------------------------- methods
def compare(raw, poses, directions, options):
    """Name -> angles between views of one class, and class sizes, ranked."""
    stack, aligner = aligned_to_truth(raw), None
    if poses == "aligned":
        aligner = MAPAligner(
            ALIGNING_CLASSES, mask_diameter=MASK_DIAMETER, max_shift=15.0, n_jobs=options.jobs,
            random_state=options.seed,
        ).fit(raw)  # fmt: skip
        stack = raw.with_poses(aligner.poses_)
    flipped = phase_flipped(stack, options.box) if {"pca", "gmm"} & set(options.methods) else None
    results = {}
    for method in options.methods:
        start = time.perf_counter()
        for note, labels in labels_of(method, stack, flipped, aligner, options):
            name = METHODS[method] + note
            results[name] = tell(name, labels, directions, time.perf_counter() - start)
            start = time.perf_counter()
    if options.relion:
        from sklearn_cryoem import read_particles

        labels = read_particles(options.relion).metadata["rlnClassNumber"].to_numpy()
        results["RELION"] = tell("RELION", labels, directions, float("nan"))
    return results


def labels_of(method, stack, flipped, aligner, options):
    """Yield notes and labels: one, or one for each number of components."""
    n, seed = options.nodes, options.seed
    if method.startswith("sml"):
        init = "random" if method.endswith("r") else "pca"
        model = SMLClusterer(
            n, n_components=int(method[3]), init=init, mask_diameter=MASK_DIAMETER, n_jobs=options.jobs,
            random_state=seed,
        )  # fmt: skip
        yield "", model.fit_predict(stack)
    elif method == "map":
        if aligner is not None:
            yield f", {ALIGNING_CLASSES} classes", aligner.labels_
            return
        search = {"angle_range": 0.1, "max_shift": options.pixel_size}
        model = MAPAligner(
            n, n_references=n, mask_diameter=MASK_DIAMETER, n_jobs=options.jobs, random_state=seed, **search
        )
        yield "", model.fit(stack).labels_
    elif method == "pca":
        for n_axes in (10, 20, 50):
            scores = PCA(n_axes, svd_solver="covariance_eigh").fit_transform(flipped)
            yield f" ({n_axes})", KMeans(n, n_init=3, random_state=seed).fit_predict(scores)
    else:
        scores = PCA(10, svd_solver="covariance_eigh").fit_transform(flipped)
        mixture = GaussianMixture(n, covariance_type="diag", random_state=seed, reg_covar=1e-3)
        yield " (10)", mixture.fit_predict(scores)


def phase_flipped(stack, box):
    """Features of the aligned and masked images with the signs of their CTF."""
    blocks = FeatureBlocks(stack, half_plane(box), MASK_DIAMETER)
    index, flipped = blocks.layout.norm_index, []
    for number in range(len(blocks)):
        block = blocks.load(number, blocks.layout.n_shells)
        flipped.append(block.data / np.sqrt(np.maximum(block.norm[:, index], 1e-12)))  # c y / |c|
    return np.concatenate(flipped)


# ---------------------------------------------------------------- what is told
def tell(name, labels, directions, seconds):
    """Print a line; return the angles, the fraction within 10 degrees, and the ranked sizes."""
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
    """SML in two dimensions against the best of the others, and MAP's effective classes."""
    ours = results.get(METHODS["sml2"])
    others = {name: found["fraction"] for name, found in results.items() if not name.startswith("SML")}
    if ours is None or not others:
        return
    best = max(others, key=others.get)
    sys.stdout.write(f"  SML, 2-D has {ours['fraction'] / others[best]:.2f} times the pairs of {best}")
    for name, found in results.items():
        if name.startswith(METHODS["map"]):
            sys.stdout.write(f" and {ours['effective'] / found['effective']:.2f} times the classes of MAP")
    sys.stdout.write("\n")


def draw(results, stem, folder):
    """Figures 2d and 2f (histograms), 2e and 2g (sizes); supplementary 2 and 3: other dimensions and SNR."""
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    groups = {"figure_2": lambda name: "1-D" not in name and "3-D" not in name,
              "supplementary": lambda name: name.startswith("SML")}  # fmt: skip
    for group, belongs in groups.items():
        figure, (views, sizes) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
        for name, found in results.items():
            if belongs(name):
                share = found["counts"] / max(found["counts"].sum(), 1)
                views.plot(0.5 * (BINS[1:] + BINS[:-1]), share, label=name)
                sizes.plot(np.arange(1, len(found["sizes"]) + 1), found["sizes"])
        chance = np.diff(-np.cos(np.radians(BINS))) / 2
        views.plot(0.5 * (BINS[1:] + BINS[:-1]), chance, "k:", label="chance")
        views.set(xlabel="angle between views of one class (degrees)", ylabel="share of pairs")
        views.legend(fontsize="small")
        sizes.set(xlabel="class, ranked", ylabel="particles", yscale="log")
        figure.savefig(folder / f"{group}_{stem}.png", dpi=150)
        plt.close(figure)


if __name__ == "__main__":
    main()
