"""What realignment makes of poses that are true, off by a known amount, or found by MAPAligner.

    python benchmarks/realign.py VOLUME.mrc [--snr 0.2,0.02] [--n 2000] [--nodes 100]
        [--poses true,5/1,10/2,aligned] [--rounds 3] [--jobs 1] [--seed 0]

All views, CTF with astigmatism, 64 pixels of 5 Angstrom. "5/1" are true poses with normal errors of 5 degrees
and of 1 pixel along each axis. Errors are medians about the mean of each class, whose turn and shift are no
errors; both are measured in the classes of the first fit, before and after. "Pairs" is the fraction of
same-class pairs whose views are within 10 degrees, of an SMLClusterer in the poses before and after.
"""

import argparse
import sys
import time
import warnings

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from sklearn_cryoem import MAPAligner, Poses, RealigningClusterer, SMLClusterer
from sklearn_cryoem.datasets import aligned_to_truth, load_volume, make_particles
from sklearn_cryoem.metrics import fraction_within, pose_errors

MASK_DIAMETER, PIXEL_SIZE = 270.0, 5.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("volume", help="map of a 70S ribosome, .mrc")
    parser.add_argument("--snr", default="0.2,0.02", help="per pixel, after the CTF (0.2,0.02)")
    parser.add_argument("--n", type=int, default=2000, help="number of images (2000)")
    parser.add_argument("--nodes", type=int, default=100, help="number of classes (100)")
    parser.add_argument("--poses", default="true,5/1,10/2,aligned", help="starts (true,5/1,10/2,aligned)")
    parser.add_argument("--rounds", type=int, default=3, help="realignments at most (3)")
    parser.add_argument("--jobs", type=int, help="number of workers")
    parser.add_argument("--seed", type=int, default=0, help="of images and starts (0)")
    options = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)
    volume = load_volume(options.volume)
    for snr in map(float, options.snr.split(",")):
        raw = make_particles(
            volume, options.n, pixel_size=PIXEL_SIZE, snr=snr, max_shift=10.0, random_state=options.seed
        )
        for start in options.poses.split(","):
            compare(snr, start, with_start(raw, start, options), options)


def with_start(raw, start, options):
    """The particles in the poses that `start` names."""
    if start == "aligned":
        aligner = MAPAligner(
            50, mask_diameter=MASK_DIAMETER, max_shift=15.0, n_jobs=options.jobs, random_state=options.seed
        )
        return aligner.fit_transform(raw)
    stack = aligned_to_truth(raw)
    degrees, pixels = (0.0, 0.0) if start == "true" else map(float, start.split("/"))
    rng, poses = np.random.default_rng(options.seed + 1), stack.poses
    angle = poses.angle_rad + rng.normal(0.0, np.radians(degrees), len(raw))
    shift = poses.shift + rng.normal(0.0, pixels * PIXEL_SIZE, (len(raw), 2))
    return stack.with_poses(Poses(angle, shift))


def compare(snr, start, stack, options):
    """Print a line."""
    began = time.process_time()
    clusterer = SMLClusterer(options.nodes, mask_diameter=MASK_DIAMETER, n_jobs=options.jobs)
    first = clusterer.fit_predict(stack)
    fitted = time.process_time() - began
    model = RealigningClusterer(clusterer, n_rounds=options.rounds, n_jobs=options.jobs).fit(stack)
    views = stack.truth[["view_x", "view_y", "view_z"]].to_numpy()
    before, after = (pose_errors(poses, stack.truth, first) for poses in (stack.poses, model.poses_))
    angle, shift = (np.degrees(model.angle_sigma_), model.shift_sigma_ / PIXEL_SIZE)
    sys.stdout.write(
        f"SNR {snr:<5g} {start:8s} {tell(before)} -> {tell(after)}, "
        f"pairs {fraction_within(first, views):.4f} -> {fraction_within(model.labels_, views):.4f}; "
        f"{len(model.angle_change_)} rounds, widths {angle:.2f} degrees, {shift:.2f} px; "
        f"{fitted:.0f} + {time.process_time() - began - fitted:.0f} CPU s\n"
    )
    sys.stdout.flush()


def tell(errors):
    return f"{np.degrees(errors.median_angle_rad):5.2f} degrees {errors.median_shift / PIXEL_SIZE:.2f} px"


if __name__ == "__main__":
    main()
