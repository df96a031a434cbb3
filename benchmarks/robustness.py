"""Bad particles in a set: whether all are named, and the others are classified as without them.

    python benchmarks/robustness.py VOLUME.mrc [--n 2000] [--shares 0.001,0.01,0.05] [--kinds bright,hot,..]
        [--estimators sml,map] [--seeds 1]

Of simulated images (64 px, 5 A/px, SNR 0.05) a share is spoilt in one of six ways:

    bright  all grey values times 3 to 1,000
    faint   times 0.001 to 0.2
    hot     one pixel 30 to 10,000 standard deviations off, in the middle half of the box
    stripe  a row or column 3 to 30 standard deviations off
    torn    30 to 60 % of the lines are 0
    ramp    a gradient of 10 to 100 standard deviations over the box

SMLClusterer gets all views in their true poses and 100 classes, the measure being the share of pairs in one
class whose views lie within 10 degrees. MAPAligner gets 20 views and 20 classes, the measure being the
normalised mutual information of classes and views. Both are taken over the sound images alone; "clean" is
the fit to the same images before any was spoilt, over the same rows. "named" counts spoilt images that were
found, "others" sound ones that were. CPU seconds are those of this process.
"""

import argparse
import resource
import sys
import time
import warnings

import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from sklearn_cryoem import MAPAligner, ParticleStack, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, load_volume, make_particles
from sklearn_cryoem.metrics import fraction_within

MASK_DIAMETER, PIXEL_SIZE, BOX, SNR = 270.0, 5.0, 64, 0.05
N_VIEWS = 20


def bright(image, rng):
    return image * 10 ** rng.uniform(np.log10(3), 3)


def faint(image, rng):
    return image * 10 ** rng.uniform(-3, np.log10(0.2))


def hot(image, rng):
    y, x = rng.integers(BOX // 4, 3 * BOX // 4, 2)
    image[y, x] += rng.choice([-1, 1]) * image.std() * 10 ** rng.uniform(np.log10(30), 4)
    return image


def stripe(image, rng):
    image[rng.integers(BOX // 4, 3 * BOX // 4)] += image.std() * rng.uniform(3, 30)
    return image if rng.integers(2) else image.T


def torn(image, rng):
    image[: int(BOX * rng.uniform(0.3, 0.6))] = 0.0
    return image if rng.integers(2) else image.T


def ramp(image, rng):
    return image + image.std() * rng.uniform(10, 100) * np.linspace(-0.5, 0.5, BOX, dtype=np.float32)


KINDS = {"bright": bright, "faint": faint, "hot": hot, "stripe": stripe, "torn": torn, "ramp": ramp}


def main() -> None:
    options = parse()
    volume = load_volume(options.volume)
    sys.stdout.write(
        "estimator kind     share  spoilt  named  others  accuracy   clean   ratio  CPU s  peak MB\n"
    )
    for seed in range(options.seeds):
        for name in options.estimators:
            stack, fit, accuracy = ESTIMATORS[name](volume, options.n, seed)
            clean = fit(stack)
            for kind in options.kinds:
                for share in options.shares:
                    rng = np.random.default_rng([seed, round(1e4 * share)])
                    spoilt = np.sort(rng.permutation(len(stack))[: max(1, round(share * len(stack)))])
                    images = stack.read().copy()
                    for row in spoilt:
                        images[row] = KINDS[kind](images[row].copy(), rng)
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")
                        start = time.process_time()
                        fitted = fit(with_images(stack, images))
                    cpu_s = time.process_time() - start
                    sound = np.setdiff1d(np.arange(len(stack)), spoilt)
                    named = np.count_nonzero(fitted.outlier_[spoilt])
                    others = np.count_nonzero(fitted.outlier_[sound])
                    now, before = accuracy(fitted.labels_, sound), accuracy(clean.labels_, sound)
                    sys.stdout.write(
                        f"{name:9s} {kind:7s} {share:6.1%} {len(spoilt):7d} {named:6d} {others:7d} "
                        f"{now:9.4f} {before:7.4f} {now / before:7.3f} {cpu_s:6.1f} {peak_megabytes():8.0f}\n"
                    )
                    sys.stdout.flush()


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("volume", help="map of a 70S ribosome, .mrc")
    parser.add_argument("--n", type=int, default=2000, help="number of images (2000)")
    parser.add_argument("--shares", type=listed(float), default=[0.001, 0.01, 0.05], help="0.001,0.01,0.05")
    parser.add_argument("--kinds", type=listed(str), default=list(KINDS), help=",".join(KINDS))
    parser.add_argument("--estimators", type=listed(str), default=list(ESTIMATORS), help=",".join(ESTIMATORS))
    parser.add_argument("--seeds", type=int, default=1, help="sets of images (1)")
    return parser.parse_args()


def listed(kind):
    return lambda text: [kind(part) for part in text.split(",")]


def with_images(stack, images):
    return ParticleStack(
        images, pixel_size=stack.pixel_size, ctf=stack.ctf, poses=stack.poses, noise_group=stack.noise_group
    )


def sml(volume, n_images, seed):
    """All views in their true poses, a fit to them, and its measure."""
    raw = make_particles(
        volume, n_images, box=BOX, pixel_size=PIXEL_SIZE, snr=SNR, max_shift=10.0, random_state=seed
    )
    stack = aligned_to_truth(raw)
    directions = raw.truth[["view_x", "view_y", "view_z"]].to_numpy()

    def accuracy(labels, rows):
        return fraction_within(labels[rows], directions[rows], 10.0)

    return stack, lambda images: SMLClusterer(100, mask_diameter=MASK_DIAMETER).fit(images), accuracy


def map_aligner(volume, n_images, seed):
    """A few views at any angle, a fit to them, and its measure."""
    stack = make_particles(
        volume, n_images, box=BOX, pixel_size=PIXEL_SIZE, snr=SNR, n_views=N_VIEWS, max_shift=10.0,
        random_state=seed,
    )  # fmt: skip
    view = stack.truth["view"].to_numpy()

    def accuracy(labels, rows):
        return normalized_mutual_info_score(view[rows], labels[rows])

    def fit(images):
        return MAPAligner(N_VIEWS, mask_diameter=MASK_DIAMETER, random_state=seed).fit(images)

    return stack, fit, accuracy


def peak_megabytes():
    """Most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


ESTIMATORS = {"sml": sml, "map": map_aligner}


if __name__ == "__main__":
    main()
