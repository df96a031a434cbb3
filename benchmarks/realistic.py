"""What goes wrong on real particles, counted on simulated ones as hard: several seeds, RELION beside.

    python benchmarks/realistic.py VOLUME.mrc [--n 8000] [--classes 100] [--seeds 3] [--relion] [...]

One set of particles by `make_session`; ``sklearn-cryoem classify`` runs on it with the seeds 0, 1, ..., each
time in a process of its own, and what it wrote is measured against the truth. Options that are not this
script's go to the command. With --relion, 25 iterations of RELION's EM run as well (VDAM, where it has that).
"Good" particles are those that are no junk. Printed of each run:

common drift      length of the mean over classes, weighted by size, of where the true centre of their good
                  particles lies in the frame of the class (median over each class), in Angstrom
centred 5 A, 15 A share of good particles whose found centre is at most that far from the true one
information       mutual information, adjusted for chance, of classes and views of good particles; views are
                  as many even cells of the sphere as there are classes
junk purity       share of particles in a class of which most are as they are, good or junk
defocus share     variance of defocus between classes over all of it, of good particles; beside it the same
                  for classes shuffled at random
accuracy          share of good particles whose class is the commonest one among the 15 good particles with
                  the nearest views. Views are continuous and classes have no true outline; but what a
                  particle without noise would be called is what most particles of its view are called. Over
                  the same of as many classes without error, which is below 1 for particles at their borders:
                  those nearest to the mean view of each class
posterior         mean posterior of the label of good particles, which should be as large as the accuracy
precision, recall good particles among those suggested to keep; and the share of good ones there
recall, fifth N   the same by density of the view, rarest first
CPU s, MB         CPU seconds and peak memory of the process

and at last how well the classes of different seeds agree (mutual information adjusted for chance, all
particles): 1 is the same classes.

With --clean it is ``sklearn-cryoem clean``, and what is printed is

good kept         share of the good particles that are left
junk              share of junk among what is left
views             views (of as many even cells of the sphere as there are classes) with 20 good particles or
                  more; beside it how many of them have any left
least of a view   the smallest share of the good particles of one of these views that is left
rounds            how many there were
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
from measured import measured
from relion_run import find_relion, image_numbers, particles_of, refine_options, run_relion
from scipy.spatial import cKDTree
from sklearn.metrics import adjusted_mutual_info_score

from sklearn_cryoem import read_particles, write_particles
from sklearn_cryoem.datasets import load_volume, make_session
from sklearn_cryoem.datasets.draws import uniform_directions
from sklearn_cryoem.datasets.volumes import centred, diameter_angstrom
from sklearn_cryoem.quality import unlike_their_class

N_NEIGHBOURS = 15  # particles that say what a view is called
N_SHUFFLES = 20
VIEW = ["view_x", "view_y", "view_z"]


def main() -> None:
    options, more = parse()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch)
        star, truth, defocus = simulate(folder, options)
        runs, labels = {}, []
        for seed in range(options.seeds):
            if options.clean:
                runs[f"seed {seed}"] = clean(star, truth, folder / f"seed{seed}", seed, options, more)
                continue
            found, keep, costs = classify(star, folder / f"seed{seed}", seed, options, more)
            runs[f"seed {seed}"] = {**measures(found, keep, truth, defocus), **costs}
            labels.append(found["label"].to_numpy())
        if options.relion:
            found, costs = relion(star, folder / "relion", options)
            runs["RELION"] = {**measures(found, None, truth, defocus), **costs}
        sys.stdout.write(f"{pd.DataFrame(runs).to_string(float_format='{:.3f}'.format, na_rep='-')}\n")
        agreement = [adjusted_mutual_info_score(a, b) for a, b in itertools.combinations(labels, 2)]
        if agreement:
            sys.stdout.write(f"agreement between seeds {np.round(agreement, 3).tolist()}\n")
        if options.json:
            options.json.write_text(json.dumps({"runs": runs, "agreement": agreement}, indent=1))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("volume", type=Path, help="map, .mrc")
    parser.add_argument("--n", type=int, default=8000, help="number of images (8000)")
    parser.add_argument("--box", type=int, default=64, help="pixels (64)")
    parser.add_argument("--pixel-size", type=float, help="Angstrom (that of the map)")
    parser.add_argument("--snr", type=float, default=0.1, help="(0.1)")
    parser.add_argument("--junk", type=float, default=0.2, help="share of the images (0.2)")
    parser.add_argument("--set-seed", type=int, default=0, help="of the particles (0)")
    parser.add_argument("--classes", type=int, default=100, help="(100)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (3)")
    parser.add_argument(
        "--mask-diameter", type=float, help="Angstrom (1.15 times the sphere with 98 %% of the map's power)"
    )
    parser.add_argument("--clean", action="store_true", help="run clean, not classify")
    parser.add_argument("--jobs", type=int, default=1, help="workers, and threads of RELION (1)")
    parser.add_argument("--relion", nargs="?", const="relion_refine", help="run RELION too [its path]")
    parser.add_argument("--iter", type=int, default=25, help="iterations of RELION's EM (25)")
    parser.add_argument("--keep", type=Path, help="folder for particles and results (a temporary one)")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options, more = parser.parse_known_args()
    if options.mask_diameter is None:
        options.mask_diameter = round(1.15 * diameter_angstrom(centred(load_volume(options.volume))))
    return options, more


# ---------------------------------------------------------------- the particles and the programs
def simulate(folder, options):
    """Write the particles; (STAR file, truth, mean defocus in Angstrom)."""
    folder.mkdir(parents=True, exist_ok=True)
    stack = make_session(
        load_volume(options.volume), options.n, box=options.box, pixel_size=options.pixel_size,
        snr=options.snr, junk_fraction=options.junk, path=folder / "particles.mrcs", overwrite=True,
        n_jobs=options.jobs, random_state=options.set_seed,
    )  # fmt: skip
    star = folder / "particles.star"
    write_particles(stack, star, overwrite=True)
    defocus = 0.5 * (stack.ctf.defocus_u_angstrom + stack.ctf.defocus_v_angstrom)
    return star, stack.truth, defocus


def run(name, star, out, seed, options, more):
    """Run the command of that name; what it cost."""
    command = [
        sys.executable, "-m", "sklearn_cryoem.cli", name, star, "-o", out, "--force", "--quiet",
        "--seed", seed, "--classes", options.classes, "--mask-diameter", options.mask_diameter,
        "--jobs", options.jobs, *more,
    ]  # fmt: skip
    return measured(command, out.with_suffix(".log"))


def clean(star, truth, out, seed, options, more):
    """Run `clean`; what it left, measured against the truth, and costs."""
    costs = run("clean", star, out, seed, options, more)
    left = read_particles(out / "particles.star", images_dir=star.parent, metadata_only=True)
    kept = np.isin(np.arange(options.n), image_numbers(left))
    is_good = ~truth["is_junk"].to_numpy(dtype=bool)
    of_view = pd.Series(kept[is_good]).groupby(cells(truth.loc[is_good, VIEW], options.classes))
    share = of_view.mean()[of_view.size() >= 20]
    return {
        "good kept": kept[is_good].mean(),
        "junk": 1.0 - is_good[kept].mean(),
        "views": len(share),
        "views left": int(np.count_nonzero(share)),
        "least of a view": share.min(),
        "rounds": len(list(out.glob("round_*"))),
        **costs_of(costs),
    }


def classify(star, out, seed, options, more):
    """Run the command; (what it found of every particle, whether each is in a class to keep, costs)."""
    costs = run("classify", star, out, seed, options, more)
    found = what_was_found(out / "particles.star", star, options.n)
    quality = pd.read_csv(out / "quality.csv")
    kept = quality.loc[quality["keep"].astype(bool), "class"]
    keep = found["label"].isin(kept).to_numpy(copy=True)
    keep[keep] = ~unlike_their_class(found["match"][keep])
    return found, keep, costs_of(costs)


def relion(star, out, options):
    """Run RELION; (what it found of every particle, costs)."""
    program = find_relion(options.relion)
    asked = refine_options(
        method="VDAM" if program.has_vdam else "EM", n_classes=options.classes, iterations=options.iter,
        mask_diameter=options.mask_diameter, seed=1, threads=options.jobs,
    )  # fmt: skip
    costs, last = run_relion(program, star, out, asked)
    return what_was_found(last, star, options.n), costs_of(costs)


def costs_of(costs):
    return {"CPU s": costs["cpu_s"], "MB": costs["memory_mb"]}


def what_was_found(path, star, n_images):
    """Label, posterior, psi and shift of every particle, in the order in which they were made."""
    stack, row = particles_of(path, star, n_images)
    table = pd.DataFrame(
        {
            "label": stack.metadata["rlnClassNumber"].astype(int),
            "posterior": stack.metadata["rlnMaxValueProbDistribution"].astype(float),
            "match": stack.metadata.get("smlMatch"),
            "angle": stack.poses.angle_rad,
            "mirrored": stack.poses.mirrored,
            "x": stack.poses.shift[:, 0],
            "y": stack.poses.shift[:, 1],
        }
    )
    return table.set_axis(row).sort_index()


# ---------------------------------------------------------------- the measures
def measures(found, keep, truth, defocus):
    """All that is printed of a run, by name; `keep` is None where nothing was suggested."""
    is_good = ~truth["is_junk"].to_numpy(dtype=bool)
    label = found["label"].to_numpy()
    good, seen, true = label[is_good], found[is_good], truth[is_good]
    off = seen[["x", "y"]].to_numpy() - true[["shift_x", "shift_y"]].to_numpy()  # (n, 2), image's frame
    distance = np.hypot(*off.T)
    result = {
        "common drift": common_drift(off, seen),
        "centred 5 A": np.mean(distance <= 5.0),
        "centred 15 A": np.mean(distance <= 15.0),
        "information": adjusted_mutual_info_score(cells(true[VIEW], len(np.unique(good))), good),
        "junk purity": pd.crosstab(label, is_good).max(axis=1).sum() / len(label),
        "defocus share": share_between(defocus[is_good], good),
        "defocus share by chance": chance_share(defocus[is_good], good),
        "accuracy": accuracy(good, true[VIEW].to_numpy()),
        "posterior": seen["posterior"].mean(),
    }
    if keep is not None:
        kept = keep[is_good]
        result |= {"precision": is_good[keep].mean() if keep.any() else np.nan, "recall": kept.mean()}
        rarest_first = np.argsort(true["view_density"].to_numpy(), kind="stable")
        for number, rows in enumerate(np.array_split(rarest_first, 5), start=1):
            result[f"recall, fifth {number}"] = kept[rows].mean()
    return {name: float(value) for name, value in result.items()}


def common_drift(off, seen):
    """Length of what all classes are displaced by together, weighted by their good particles."""
    off = off * np.column_stack([np.ones(len(seen)), np.where(seen["mirrored"], -1.0, 1.0)])
    cos, sin = np.cos(seen["angle"].to_numpy()), np.sin(seen["angle"].to_numpy())
    displaced = pd.DataFrame(  # R(psi) off: in the class's frame
        {"x": cos * off[:, 0] - sin * off[:, 1], "y": sin * off[:, 0] + cos * off[:, 1]}
    )
    by_class = displaced.groupby(seen["label"].to_numpy())
    return np.hypot(*np.average(by_class.median(), axis=0, weights=by_class.size()))


def cells(views, n_cells):
    """Number of the even cell of the sphere that each view lies in."""
    return cKDTree(uniform_directions(n_cells, np.random.default_rng(0))).query(views.to_numpy())[1]


def share_between(values, label):
    """Share of the variance of `values` that lies between classes."""
    mean = pd.Series(values).groupby(label).transform("mean")
    return np.var(mean) / np.var(values)


def chance_share(values, label):
    """The same for classes of the same sizes at random: about (K - 1) / (N - 1)."""
    rng = np.random.default_rng(0)
    return np.mean([share_between(values, rng.permutation(label)) for _ in range(N_SHUFFLES)])


def accuracy(label, views):
    """Share of labels that are those of their views, over that of classes without error."""
    means = pd.DataFrame(views).groupby(label).mean().to_numpy()
    means = means / np.linalg.norm(means, axis=1, keepdims=True)
    return agreement_with_views(label, views) / agreement_with_views(cKDTree(means).query(views)[1], views)


def agreement_with_views(label, views):
    """Share of labels that are the commonest, or tie, among the nearest views but the particle's own."""
    near = label[cKDTree(views).query(views, N_NEIGHBOURS + 1)[1][:, 1:]]  # (n, N_NEIGHBOURS)
    votes = (near[:, :, None] == near[:, None, :]).sum(axis=2).max(axis=1)
    return np.mean((near == label[:, None]).sum(axis=1) == votes)


if __name__ == "__main__":
    main()
