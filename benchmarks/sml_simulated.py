"""SMLClusterer on simulated particles with known poses, against PCA + k-means on phase-flipped images.

    python benchmarks/sml_simulated.py VOLUME.mrc [--n 5000] [--snr 0.01] [--nodes 225] [--jobs 2]

Random views of one structure at 64 px and 5 A/px, defocus 1 to 2.5 um with astigmatism. The measure is the
fraction of same-class pairs of particles whose view directions lie within 10 degrees. Both methods see the
same aligned and masked images; PCA + k-means is run with several numbers of components, and its best counts.
"""

import argparse
import resource
import sys
import time

import numpy as np
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from sklearn_cryoem import SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, load_volume, make_particles
from sklearn_cryoem.metrics import effective_classes, fraction_within, view_distances
from sklearn_cryoem.particles.features import FeatureBlocks
from sklearn_cryoem.physics.fourier import half_plane

BOX, PIXEL_SIZE, MASK_DIAMETER = 64, 5.0, 270.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volume", help="map of a 70S ribosome, .mrc")
    parser.add_argument("--n", type=int, default=5000, help="number of images")
    parser.add_argument("--snr", type=float, default=0.01, help="per pixel, after the CTF")
    parser.add_argument("--nodes", type=int, default=225, help="number of classes")
    parser.add_argument("--jobs", type=int, default=None, help="number of workers")
    parser.add_argument("--seed", type=int, default=0, help="of images and random starts")
    options = parser.parse_args()
    stack = aligned_to_truth(
        make_particles(
            load_volume(options.volume), options.n, box=BOX, pixel_size=PIXEL_SIZE, snr=options.snr,
            defocus=(10000.0, 25000.0), astigmatism=500.0, max_shift=10.0, random_state=options.seed,
        )
    )  # fmt: skip
    directions = stack.truth[["view_x", "view_y", "view_z"]].to_numpy()
    sys.stdout.write(f"{stack!r}, SNR {options.snr:g}\n")
    best = max(compare_pca(stack, directions, options))
    for case, parameters in {
        "SML": {},
        "SML, random start": {"init": "random"},
        "SML, to 20 A": {"max_resolution": 20.0},
        "SML, 1-D": {"n_components": 1},
        "SML, 3-D": {"n_components": 3},
        "SML, alpha = 0.1": {"alpha": 0.1},
    }.items():
        start = time.perf_counter()
        model = SMLClusterer(
            options.nodes, mask_diameter=MASK_DIAMETER, n_jobs=options.jobs, random_state=options.seed,
            **parameters,
        ).fit(stack)  # fmt: skip
        fraction = tell(case, model.labels_, directions, time.perf_counter() - start)
        sys.stdout.write(
            f"    {fraction / best:.1f} times the best PCA + k-means; grid {model.grid_shape_}, "
            f"{model.n_iter_} iterations, converged: {model.converged_}\n"
        )


def compare_pca(stack, directions, options):
    """Fractions that PCA + k-means reaches with 10, 20 and 50 components, all frequencies."""
    blocks = FeatureBlocks(stack, half_plane(BOX), MASK_DIAMETER)
    index, flipped = blocks.layout.norm_index, []
    for number in range(len(blocks)):
        block = blocks.load(number, blocks.layout.n_shells)
        flipped.append(block.data / np.sqrt(np.maximum(block.norm[:, index], 1e-12)))  # c y / |c|
    flipped = np.concatenate(flipped)
    for n_axes in (10, 20, 50):
        start = time.perf_counter()
        scores = PCA(n_axes, svd_solver="covariance_eigh").fit_transform(flipped)
        labels = KMeans(options.nodes, n_init=3, random_state=options.seed).fit_predict(scores)
        yield tell(f"PCA({n_axes}) + k-means", labels, directions, time.perf_counter() - start)


def tell(case, labels, directions, seconds):
    """Print a line; return the fraction of same-class pairs within 10 degrees."""
    fraction = fraction_within(labels, directions)
    median = np.median(view_distances(labels, directions, random_state=0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sys.stdout.write(
        f"{case:20s} within 10 degrees {fraction:.4f}, median {median:3.0f} degrees, "
        f"{effective_classes(labels).perplexity:.0f} effective classes, {seconds:.1f} s, peak {peak:.2f} GB\n"
    )
    sys.stdout.flush()
    return fraction


if __name__ == "__main__":
    main()
