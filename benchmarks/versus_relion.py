"""MAPAligner and RELION on the same simulated particles: time, memory, and agreement with the truth.

    python benchmarks/versus_relion.py VOLUME.mrc [VOLUME.mrc ...] [--snr 0.1,0.05] [--classes 20,50] ...

Both programs read the same STAR file and stack, and write their labels and poses to another STAR file. Each
runs in a process of its own, whose time from start to end (reading, writing and all threads included) and
peak memory are measured. Number of classes, mask and range of shifts (5 px) are the same. RELION searches
angles in steps of 12 degrees, oversampled to 6, and shifts of 2 px, oversampled to 1, all moved a little at
random in each iteration; the aligner chooses its steps by itself. One volume gives particles of one
structure, several an equal mixture.

Printed for each: normalised mutual information of the classes with the true views (of a mixture: with pairs
of structure and view), and the same adjusted for chance, for which the first is high where classes are small
and many; purity, the share of particles in the commonest view of their class; of all pairs of particles in
one class the median angle between their views, and the fraction within 10 degrees; the median errors of
in-plane angle and shift of the particles in the commonest view of their class, less the frame of the class;
effective classes, exp(entropy of their sizes). With --views all, information and purity are those of the
structures, and the errors of the poses contain the spread of views within a class.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measured import measured
from relion_run import find_relion, particles_of, refine_options, run_relion
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from sklearn_cryoem import MAPAligner, read_particles, write_particles
from sklearn_cryoem.datasets import load_volume, make_particles
from sklearn_cryoem.metrics import effective_classes, fraction_within, pose_errors, view_distances

SHIFT_RANGE_PX, MAX_SHIFT_PX = 5, 4  # searched, true
MASK_EDGE_PX = 5  # RELION's; its default mask leaves room for it

COLUMNS = {  # key of a result: (heading, format)
    "wall_s": ("wall s", "{:.0f}"),
    "cpu_s": ("CPU s", "{:.1f}"),
    "memory_mb": ("MB", "{:.0f}"),
    "information": ("information", "{:.3f}"),
    "adjusted_information": ("adjusted", "{:.3f}"),
    "purity": ("purity", "{:.3f}"),
    "median_view_distance": ("views apart", "{:.1f}°"),
    "within_10_degrees": ("within 10°", "{:.3f}"),
    "angle_error_degrees": ("angle", "{:.2f}°"),
    "shift_error_px": ("shift px", "{:.2f}"),
    "effective_classes": ("classes", "{:.1f}"),
}


def main() -> None:
    options = parse()
    if options.align:  # this is the child that is measured
        align(*options.align, options)
        return
    sys.stdout.write(f"{'':32}" + "".join(f"{heading:>13}" for heading, _ in COLUMNS.values()) + "\n")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.reuse or options.keep or scratch)
        for snr in options.snr:
            star, truth = simulated_set(folder, options, snr)
            for n_classes in options.classes:
                compare(star, truth, n_classes, options)


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("volumes", nargs="*", help="maps, .mrc")
    parser.add_argument("--n", type=int, default=2000, help="number of images (2000)")
    parser.add_argument("--views", default="50", help="number of views, or all (50)")
    parser.add_argument("--box", type=int, default=64, help="pixels (64)")
    parser.add_argument("--pixel-size", type=float, default=4.0, help="Angstrom (4)")
    parser.add_argument(
        "--snr", type=numbers(float), default=[0.05], help="0.1,0.05,...; over the box, after the CTF"
    )
    parser.add_argument("--set-seed", type=int, default=0, help="seed of the particles (0)")
    parser.add_argument("--classes", type=numbers(int), default=[20], help="20,50,...")
    parser.add_argument("--mask-diameter", type=float, help="Angstrom (RELION's default: the box less 5 px)")
    parser.add_argument("--programs", default="ours,relion", help="ours,relion")
    parser.add_argument("--seeds", type=numbers(int), default=[0], help="of the aligner: 0,1,2,...")
    parser.add_argument("--jobs", type=int, default=1, help="workers of the aligner, threads of RELION (1)")
    parser.add_argument("--relion", help="path of relion_refine")
    parser.add_argument("--relion-options", default="", help="more of its options, as in '--cpu'")
    parser.add_argument("--relion-seed", type=int, default=1)
    parser.add_argument(
        "--iter", type=int, default=25, help="iterations of RELION's EM (25, its own default)"
    )
    parser.add_argument(
        "--vdam-iter", type=int, default=100, help="mini-batches of VDAM, RELION 4 or later (100)"
    )
    parser.add_argument("--json", type=Path, help="file to append results to, a line of JSON each")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--keep", help="folder for particles and results (default: a temporary one)")
    where.add_argument("--reuse", help="such a folder, where finished runs of RELION are not run again")
    parser.add_argument("--align", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.volumes and not options.align:
        parser.error("give one map, or several for a mixture")
    if options.mask_diameter is None:
        options.mask_diameter = (options.box - MASK_EDGE_PX) * options.pixel_size
    return options


def numbers(kind):
    return lambda text: [kind(item) for item in text.split(",")]


# ---------------------------------------------------------------- the particles
def simulated_set(folder, options, snr):
    """Write particles and truth, unless they are there; (path of the STAR file, truth)."""
    names = "+".join(Path(volume).stem for volume in options.volumes)
    grid = f"{options.box}px_{options.pixel_size:g}A"
    name = f"{names}_{options.n}_{options.views}views_{grid}_snr{snr:g}_{options.set_seed}"
    star, table = folder / name / "particles.star", folder / name / "truth.csv"
    if not table.exists():
        star.parent.mkdir(parents=True, exist_ok=True)
        stack = make_particles(
            [load_volume(volume) for volume in options.volumes], options.n, box=options.box,
            pixel_size=options.pixel_size, snr=snr, random_state=options.set_seed,
            n_views=None if options.views == "all" else int(options.views),
            max_shift=MAX_SHIFT_PX * options.pixel_size,
        )  # fmt: skip
        write_particles(stack, star, overwrite=True)
        stack.truth.to_csv(table, index=False)
    return star, pd.read_csv(table)


# ---------------------------------------------------------------- the two programs
def compare(star, truth, n_classes, options):
    """Run what was asked for, print a line each and the ratios."""
    sys.stdout.write(f"{star.parent.name}, K = {n_classes}\n")
    results = []
    programs = options.programs.split(",")
    if "ours" in programs:
        results += [run_ours(star, truth, n_classes, seed, options) for seed in options.seeds]
    if "relion" in programs:
        relion = find_relion(options.relion)
        for method in ("EM", "VDAM") if relion.has_vdam else ("EM",):
            results.append(run_theirs(relion, method, star, truth, n_classes, options))
    print_ratios(results)


def run_ours(star, truth, n_classes, seed, options):
    """Run the aligner in a child process on the STAR file."""
    out = star.parent / f"aligner_K{n_classes}_seed{seed}.star"
    command = [
        sys.executable, __file__, "--align", star, out, "--classes", n_classes, "--seeds", seed,
        "--mask-diameter", options.mask_diameter, "--pixel-size", options.pixel_size, "--jobs", options.jobs,
    ]  # fmt: skip
    costs = measured(command, out.with_suffix(".log"))
    return report("MAPAligner", f"seed {seed}", costs, out, star, truth, n_classes, options)


def align(star, out, options):
    """Read particles, align them, write labels and poses: all that the child process does."""
    max_shift = SHIFT_RANGE_PX * options.pixel_size
    aligner = MAPAligner(
        options.classes[0], mask_diameter=options.mask_diameter, max_shift=max_shift, n_jobs=options.jobs,
        random_state=options.seeds[0],
    )  # fmt: skip
    aligned = aligner.fit_transform(read_particles(star))
    write_particles(aligned, out, labels=aligner.labels_, overwrite=True)


def run_theirs(relion, method, star, truth, n_classes, options):
    """Run RELION on the STAR file, or take the run that is there."""
    iterations = options.iter if method == "EM" else options.vdam_iter
    more = refine_options(
        method=method, n_classes=n_classes, iterations=iterations, mask_diameter=options.mask_diameter,
        seed=options.relion_seed, threads=options.jobs,
    )  # fmt: skip
    more += options.relion_options.split()
    out = star.parent / f"relion{relion.version}_{method}{iterations}_K{n_classes}_seed{options.relion_seed}"
    costs, found = run_relion(relion, star, out, more, reuse=bool(options.reuse))
    note = f"{method} {iterations}" + (", stored" if costs["stored"] else "")
    return report(f"RELION {relion.version}", note, costs, found, star, truth, n_classes, options)


# ---------------------------------------------------------------- the scores
def report(program, note, costs, found, star, truth, n_classes, options):
    """Score a STAR file with labels and poses, print its line, append it to the JSON file, return it."""
    stack, frame = particles_of(found, star, len(truth))
    labels = stack.metadata["rlnClassNumber"].to_numpy() - 1
    figures = scores(labels, stack.poses, truth.iloc[frame].reset_index(drop=True), options.pixel_size)
    case = {"set": star.parent.name, "n_classes": n_classes, "program": program, "note": note}
    result = {**case, **costs, **figures}
    line = "".join(f"{shape.format(result[key]):>13}" for key, (_, shape) in COLUMNS.items())
    sys.stdout.write(f"  {program + ', ' + note:30}{line}\n")
    sys.stdout.flush()
    if options.json:
        with options.json.open("a") as lines:
            lines.write(json.dumps(result) + "\n")
    return result


def scores(labels, poses, truth, pixel_size):
    """Agreement of classes and poses with the truth."""
    n_views = truth["view"].max() + 1  # 0 if every particle has a view of its own
    group = truth["structure"] * n_views + truth["view"] if n_views else truth["structure"]
    table = pd.crosstab(labels, group)  # (n_classes, n_groups)
    in_main = np.flatnonzero(table.idxmax(axis=1).loc[labels].to_numpy() == group)
    errors = pose_errors(poses[in_main], truth.assign(view=group).iloc[in_main], labels[in_main])
    directions = truth[["view_x", "view_y", "view_z"]].to_numpy()
    several = group.nunique() > 1
    return {
        "information": normalized_mutual_info_score(group, labels) if several else float("nan"),
        "adjusted_information": adjusted_mutual_info_score(group, labels) if several else float("nan"),
        "purity": len(in_main) / len(truth) if several else float("nan"),
        "median_view_distance": float(np.median(view_distances(labels, directions, random_state=0))),
        "within_10_degrees": fraction_within(labels, directions),
        "angle_error_degrees": float(np.degrees(errors.median_angle_rad)),
        "shift_error_px": errors.median_shift / pixel_size,
        "effective_classes": effective_classes(labels).perplexity,
    }


def print_ratios(results):
    """Compare the mean over our seeds with each run of RELION."""
    ours = [result for result in results if result["program"] == "MAPAligner"]
    if not ours:
        return
    cpu, information = (np.mean([result[key] for result in ours]) for key in ("cpu_s", "information"))
    if len(ours) > 1:
        spread = np.ptp([result["information"] for result in ours])
        sys.stdout.write(
            f"  MAPAligner, mean of {len(ours)} seeds: CPU {cpu:.1f} s, information {information:.3f} "
            f"(spread {spread:.3f})\n"
        )
    for theirs in results:
        if theirs["program"] != "MAPAligner":
            sys.stdout.write(
                f"  ratio to {theirs['program']}, {theirs['note']}: CPU time 1/{theirs['cpu_s'] / cpu:.1f}, "
                f"mutual information {information / theirs['information']:.2f}\n"
            )


if __name__ == "__main__":
    main()
