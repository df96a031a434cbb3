"""MAPAligner on simulated particles: time, memory, and agreement with the true views and poses.

    python benchmarks/align_simulated.py VOLUME.mrc [--classes 20] [--seeds 0,1,2] [--n 2000] [--snr 0.05]

A 70S ribosome in 50 fixed views, 64 px, 4 A/px, off centre by up to 4 px, CTF with astigmatism. Printed for
every seed of the aligner: normalised mutual information of classes and views, purity (share of particles in
the commonest view of their class), effective classes, pose errors within class and view, CPU seconds.
"""

import argparse
import resource
import sys
import time

import numpy as np
from sklearn.metrics import normalized_mutual_info_score

from sklearn_cryoem import MAPAligner
from sklearn_cryoem.datasets import load_volume, make_particles
from sklearn_cryoem.metrics import pose_errors

BOX, PIXEL_SIZE = 64, 4.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volume", help="map of a 70S ribosome, .mrc")
    parser.add_argument("--n", type=int, default=2000, help="number of images")
    parser.add_argument("--views", type=int, default=50, help="number of views")
    parser.add_argument("--snr", type=float, default=0.05, help="per pixel, after the CTF")
    parser.add_argument("--classes", type=int, default=20, help="number of classes")
    parser.add_argument("--jobs", type=int, default=1, help="number of workers")
    parser.add_argument("--seeds", default="0,1,2", help="seeds of the aligner, separated by commas")
    options = parser.parse_args()
    stack = make_particles(
        load_volume(options.volume), options.n, box=BOX, pixel_size=PIXEL_SIZE, snr=options.snr,
        n_views=options.views, max_shift=4 * PIXEL_SIZE, random_state=0,
    )  # fmt: skip
    sys.stdout.write(f"{stack!r}, SNR {options.snr:g}, {options.classes} classes\n")
    found = [report(stack, options, int(seed)) for seed in options.seeds.split(",")]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    sys.stdout.write(
        f"mean mutual information {np.mean(found):.3f}, spread {np.ptp(found):.3f}, "
        f"peak memory {memory:.0f} MB\n"
    )


def report(stack, options, seed):
    """Fit once, print one line, return the mutual information."""
    wall, cpu = time.perf_counter(), time.process_time()
    aligner = MAPAligner(options.classes, n_jobs=options.jobs, random_state=seed).fit(stack)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    views, labels = stack.truth["view"].to_numpy(), aligner.labels_
    information = normalized_mutual_info_score(views, labels)
    table = np.zeros((options.classes, options.views), dtype=int)
    np.add.at(table, (labels, views), 1)
    purity = table.max(axis=1).sum() / len(stack)
    # a pose is defined only up to the frame of its class: compare where class and view agree
    main_view = table.argmax(axis=1)[labels] == views
    errors = pose_errors(aligner.poses_[main_view], stack.truth[main_view], labels[main_view])
    sys.stdout.write(
        f"seed {seed}: mutual information {information:.3f}, purity {purity:.3f}, "
        f"effective classes {aligner.n_effective_clusters_:.1f}, "
        f"angle {np.degrees(errors.median_angle_rad):.2f} degrees, "
        f"shift {errors.median_shift / PIXEL_SIZE:.2f} px, {aligner.resolution_:.1f} A, "
        f"{aligner.n_iter_} passes, CPU {cpu:.1f} s, wall {wall:.1f} s\n"
    )
    return information


if __name__ == "__main__":
    main()
