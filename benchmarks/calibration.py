"""Whether posteriors of SMLClusterer are as sure as they are right: accuracy against confidence.

    python benchmarks/calibration.py VOLUME.mrc [--n 4000] [--seeds 2] [--figure FILE.png]

Simulated particles of a few views with true poses, 64 pixels of 5 Angstrom; half of each set is fitted, the
other half is new. Cases: 64 nodes for 16 views, as many nodes as views (16), and images of nothing but noise
with 4 nodes, whose "views" are drawn by lot.

A class is called after a view: with no more classes than views by the one-to-one matching under which most
training images are right, else after the commonest view of its training images. The posterior of a view is
the sum over its classes. "Right" is the share of images whose most probable view is the true one, "believed"
the mean posterior of that view. "Worst bin" is the largest gap in a bin of a tenth of confidence that holds
at least 5 % of the images. Matching alone makes 0.01 to 0.02 of noise that was fitted look right.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from sklearn_cryoem import ParticleStack, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, load_volume, make_particles

BOX, PIXEL_SIZE, MASK_DIAMETER = 64, 5.0, 270.0
CASES = {  # nodes, views, SNR
    "64 nodes, 16 views, SNR 0.01": (64, 16, 0.01),
    "16 nodes, 16 views, SNR 0.02": (16, 16, 0.02),
    "16 nodes, 16 views, SNR 0.01": (16, 16, 0.01),
    "4 nodes, noise": (4, 4, None),
}
BINS, LEAST_SHARE = np.linspace(0.0, 1.0, 11), 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("volume", type=Path, help="map, .mrc")
    parser.add_argument("--n", type=int, default=4000, help="images fitted, and as many new ones (4000)")
    parser.add_argument("--seeds", type=int, default=2, help="sets of images (2)")
    parser.add_argument("--figure", type=Path, help="file for the reliability diagram")
    options = parser.parse_args()
    volume = load_volume(options.volume)
    found = {
        (case, of): np.concatenate(parts, axis=1)
        for case in CASES
        for of, *parts in zip(("fitted", "new"), *runs(volume, *CASES[case], options), strict=True)
    }
    rows = {key: measures(*values) for key, values in found.items()}
    sys.stdout.write(f"{pd.DataFrame(rows).T.to_string(float_format='{:.3f}'.format)}\n")
    if options.figure:
        draw(found, options.figure)


def runs(volume, n_nodes, n_views, snr, options):
    """Yield of each seed confidence and correctness (2, n), of images fitted and of new ones."""
    for seed in range(options.seeds):
        stack, view = particles(volume, n_views, snr, 2 * options.n, seed)
        fitted, new = slice(options.n), slice(options.n, None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = SMLClusterer(n_nodes, mask_diameter=MASK_DIAMETER, random_state=seed).fit(stack[fitted])
        named = names_of_classes(model.labels_, view[fitted], n_nodes, n_views)
        yield [believed(model.predict_proba(stack[rows]), named, view[rows]) for rows in (fitted, new)]


def particles(volume, n_views, snr, n_images, seed):
    """Particles in their true poses, and the view of each; without `snr` noise alone."""
    stack = aligned_to_truth(
        make_particles(
            volume,
            n_images,
            box=BOX,
            pixel_size=PIXEL_SIZE,
            snr=snr or 1.0,
            n_views=n_views,
            random_state=seed,
        )
    )
    if snr is not None:
        return stack, stack.truth["view"].to_numpy()
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n_images, BOX, BOX)).astype(np.float32)
    noise = ParticleStack(images, ctf=stack.ctf, poses=stack.poses, pixel_size=stack.pixel_size)
    return noise, rng.integers(n_views, size=n_images)


def names_of_classes(labels, view, n_nodes, n_views):
    """View that each class is called after; (n_nodes,)."""
    counts = np.zeros((n_nodes, n_views))
    np.add.at(counts, (labels, view), 1)
    if n_nodes > n_views:
        return counts.argmax(axis=1)
    return linear_sum_assignment(-counts)[1]


def believed(posterior, named, view):
    """Posterior of the most probable view of each image, and whether it is right; (2, n_images)."""
    of_view = np.zeros((len(posterior), view.max() + 1))
    np.add.at(of_view.T, named, posterior.T)
    return np.stack([of_view.max(axis=1), of_view.argmax(axis=1) == view])


def reliability(confidence, is_right):
    """Mean confidence, share of right ones and share of all images in each bin that holds enough."""
    table = pd.DataFrame({"believed": confidence, "right": is_right})
    bins = table.groupby(np.digitize(confidence, BINS[1:-1]))
    return bins.mean().assign(share=bins.size() / len(table)).query("share >= @LEAST_SHARE")


def measures(confidence, is_right):
    bins = reliability(confidence, is_right)
    return {
        "right": is_right.mean(),
        "believed": confidence.mean(),
        "gap": confidence.mean() - is_right.mean(),
        "worst bin": (bins["believed"] - bins["right"]).abs().max(),
    }


def draw(found, path):
    """Share of right labels against confidence, of images fitted and of new ones."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.0), layout="constrained")
    for of, ax in zip(("fitted", "new"), figure.subplots(1, 2, sharey=True), strict=True):
        ax.plot([0, 1], [0, 1], color="0.7", linewidth=1)
        for case in CASES:
            bins = reliability(*found[case, of])
            ax.plot(bins["believed"], bins["right"], marker="o", markersize=4, label=case)
        ax.set(xlabel="posterior of the label", title=f"images {of}", xlim=(0, 1.02), ylim=(0, 1.02))
    figure.axes[0].set_ylabel("share of labels that are right")
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
