"""`sklearn-cryoem merge` and `compare`: runs joined, and runs of the same particles side by side."""

from pathlib import Path

import numpy as np

import sklearn_cryoem as lib
from sklearn_cryoem._core.files import atomic_path, try_to_write
from sklearn_cryoem.cli import options as opts
from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.convert import named_for
from sklearn_cryoem.cli.run_folder import AVERAGES, averages_of_run, labelled_particles
from sklearn_cryoem.cli.select import column_of, places_of, read_table

TABLE, MOVED, CONTINGENCY, PAIRS = "compare.csv", "moved.csv", "contingency.csv", "pairs.png"


# ---------------------------------------------------------------- merge
def add_merge(commands):
    """Add `merge` to the parser."""
    parser = opts.new_command(commands, "merge", merge)
    _add_results(parser)
    opts.add_output(parser, "FILE", "a .star or .cs file")


def _add_results(parser):
    parser.add_argument(
        "results", metavar="RESULTS", type=Path, nargs="+", help="folders of runs, or tables with classes"
    )


def merge(options, console):
    """Join the particles of several runs, each particle once.

    Join the particles of several finished runs, or of tables with class numbers.

    Classes are numbered through, run by run; runs with the same averages, as those of assign have, share
    their numbers. The averages stand in that order in OUTPUT_averages.mrcs, beside the output. A particle
    that is in several runs, by the name of its image, is kept with its larger posterior. Another format than
    that of the results takes the CTF along.
    """
    import pandas as pd

    lib.io.write.check_target(options.output, overwrite=options.force)
    _check_one_format(options.results)
    stacks, averages, first, starts = [], [], 0, {}
    for results in options.results:
        stack, labels = read_labelled(results, options.output, console)
        sound = labels >= 0
        own = averages_of_run(results) if (results / AVERAGES).is_file() else None
        start = starts.setdefault(results if own is None else own[0].tobytes(), first)
        if start == first:
            averages.append(own)
            first += max(0 if own is None else len(own[0]), int(labels.max(initial=-1)) + 1)
        stacks.append(lib.particles.with_classes(stack[sound], labels[sound] + start))
        console.say(f"{results}: {np.count_nonzero(sound):,} particles, classes from {start + 1}")
    if any((stack.ctf is None) != (stacks[0].ctf is None) for stack in stacks):
        console.warn("the CTF is not carried over: some of the results have none")
        stacks = [stack.with_ctf(None) for stack in stacks]
    size = stacks[0].pixel_size
    is_alike = len({stack.pixel_size and round(stack.pixel_size, 4) for stack in stacks}) == 1
    if is_alike and not all(stack.box for stack in stacks):  # no box in the table: nothing to rescale by
        absent = lib.particles.sources.AbsentSource
        stacks = [stack._replace(images=absent(len(stack), 0), pixel_size=size) for stack in stacks]
    joined = lib.particles.concatenate(stacks, rescale=True)
    posterior = column_of(joined, lib.particles.classes.POSTERIOR)
    order = np.argsort(-(np.zeros(len(joined)) if posterior is None else posterior), kind="stable")
    once = np.sort(order[~pd.Series(names_of(joined))[order].duplicated().to_numpy()])
    frames = {None if own is None else (own[0].shape[1:], own[1]) for own in averages}
    has_averages = len(frames) == 1 and None not in frames
    path = options.output.with_name(f"{options.output.stem}_averages.mrcs")  # x.mrcs may hold the particles
    if has_averages:
        for target in (path, lib.io.classes.class_star_path(path)):
            try_to_write(target, overwrite=options.force)
    lib.io.write_particles(joined[once], options.output, overwrite=options.force)
    console.say(
        f"{len(once):,} particles in {first} classes written to {options.output}"
        + (f"; {len(joined) - len(once):,} were in several runs" if len(once) < len(joined) else "")
    )
    if not has_averages:
        console.say("no averages are written: not all results are folders of runs with averages of one size")
        return
    sizes = np.bincount(lib.particles.class_labels(joined[once]), minlength=first)
    images = np.concatenate([images for images, _ in averages])
    lib.io.write_class_averages(path, images, averages[0][1], sizes=sizes, overwrite=options.force)
    console.say(f"their averages written to {path}")


def _check_one_format(results):
    """Refuse STAR and cryoSPARC files together: they tell particles apart by other names."""
    paths = [labelled_particles(path) for path in results]
    if len({path.suffix.lower().replace(".csg", ".cs") for path in paths}) > 1:
        raise CommandError(
            f"{', '.join(map(str, paths))} are STAR and cryoSPARC files, expected files of one format. Bring "
            "them to one with sklearn-cryoem convert first."
        )


def read_labelled(results, target, console):
    """Particles of a run or table with their images named for the table `target`, and their classes from 0.

    Without a console nothing is said of names.
    """
    path = labelled_particles(results)
    stack = read_table(path, path if console is None else target, [], console)
    labels = lib.particles.class_labels(stack)
    if labels is None:
        raise CommandError(f"{path} has no class numbers (rlnClassNumber). Give the folder of a run.")
    if console is not None:
        return named_for(target, stack, places_of(path, None), console), labels
    for source, images_dir in places_of(path, None):
        stack = lib.io.rename_images(stack, source, target, images_dir=images_dir)[0]
    return stack, labels


def names_of(stack):
    """What tells particles apart: cryoSPARC's number of each, or the name of its image in one spelling."""
    table = stack.metadata
    if "uid" in table:
        return table["uid"].astype(str).to_numpy()
    files = lib.io.image_files
    parts = [files.split_image_name(str(name)) for name in table["rlnImageName"]]
    names = [f"{number or ''}@{files.plain_name(file)}".lstrip("@") for number, file in parts]
    return np.array(names, dtype=object)


# ---------------------------------------------------------------- compare
def add_compare(commands):
    """Add `compare` to the parser."""
    parser = opts.new_command(commands, "compare", compare)
    _add_results(parser)
    opts.add_output(parser, "DIR", "folder for the tables")


def compare(options, console):
    """Set runs of the same particles side by side.

    Compare the classes of several runs of the same particles, such as of several seeds.

    compare.csv has one row for each class of the first run: its partner in each other run, how many particles
    they share, how many moved out and in, the correlation of their averages with the turn (degrees) and
    mirror that bring the partner onto it, and its stability over all runs (0 by chance, 1 if it comes out
    whole each time). moved.csv lists the particles whose classes are no partners, contingency.csv counts them
    by both classes, and pairs.png shows each average and, next to it, its partner turned onto it; the last
    two are of the second run.
    """
    import pandas as pd
    from sklearn.metrics import adjusted_mutual_info_score

    if len(options.results) < 2:
        raise CommandError("there is nothing to compare with. Give two runs or more.")
    _check_one_format(options.results)
    options.output.mkdir(parents=True, exist_ok=True)
    for name in (TABLE, MOVED, CONTINGENCY, PAIRS):
        try_to_write(options.output / name, overwrite=options.force)
    stacks, labels = zip(
        *(read_labelled(path, options.output / "x.star", None) for path in options.results),
        strict=True,
    )
    names = names_of(stacks[0])
    one, others = labels[0], []
    for path, stack, other in zip(options.results[1:], stacks[1:], labels[1:], strict=True):
        known = pd.Series(other, index=names_of(stack))
        known = known[~known.index.duplicated()]  # of an image that is named twice, the first
        if not known.index.isin(names).any():
            raise CommandError(f"{path} and {options.results[0]} have no particle in common. Use merge.")
        others.append(known.reindex(names, fill_value=-1).to_numpy())
    table = None
    for path, other in zip(options.results[1:], others, strict=True):
        pairs = lib.quality.compare_classes(one, other)
        picture = _add_averages(pairs, options.results[0], path, draw=table is None)
        if picture is not None:
            with atomic_path(options.output / PAIRS, overwrite=options.force) as file:
                picture.savefig(file, dpi=120)
        prefix = "" if table is None else f"{path.name}_"
        more = pairs.drop(columns=["class", "size"]).add_prefix(prefix)
        table = pairs if table is None else pd.concat([table, more], axis=1)
        both = (one >= 0) & (other >= 0)
        alike = adjusted_mutual_info_score(one[both], other[both])
        n_moved = int(pairs["moved_out"].sum())
        console.say(
            f"{path}: {both.sum():,} particles in common, {n_moved:,} moved; adjusted mutual information "
            f"{alike:.3f} (1 for the same classes, 0 by chance)"
        )
    rows = [np.flatnonzero(one == number) for number in range(len(table))]
    table["stability"] = lib.quality.table.stability(others, rows)
    both = (one >= 0) & (others[0] >= 0)
    moved = both & (table["partner"].to_numpy()[one] != others[0] + 1)
    written = {
        TABLE: table,
        MOVED: pd.DataFrame({"particle": names, "class": one + 1, "other_class": others[0] + 1})[moved],
        CONTINGENCY: pd.crosstab(one[both] + 1, others[0][both] + 1, rownames=["class"], colnames=["other"]),
    }
    for name, content in written.items():
        with atomic_path(options.output / name, overwrite=options.force) as path:
            content.to_csv(path, index=name == CONTINGENCY, float_format="%.6g")
    console.say(f"tables written to {options.output}; {TABLE} has a row for each class")


def _add_averages(pairs, first, second, *, draw):
    """Add how alike the averages of paired classes are; return a figure of them side by side, or None."""
    from sklearn_cryoem.physics.masks import mask_background, mask_disc
    from sklearn_cryoem.physics.rotation import aligned_images

    if not all((path / AVERAGES).is_file() for path in (first, second)):
        return None
    one, other = (averages_of_run(path)[0] for path in (first, second))
    if one.shape[1:] != other.shape[1:]:
        return None
    there = pairs.index[pairs["partner"] > 0].to_numpy()
    found = [lib.quality.similarity(one[[i]], other[[pairs["partner"][i] - 1]]) for i in there]
    for name in ("correlation", "angle_rad", "mirrored"):
        pairs.loc[there, name.replace("rad", "degrees")] = [getattr(some, name)[0, 0] for some in found]
    pairs["angle_degrees"] = np.degrees(pairs["angle_degrees"])
    if not draw:
        return None
    turned = [
        aligned_images(
            other[[pairs["partner"][i] - 1]], some.angle_rad[0], some.shift_px[0], some.mirrored[0]
        )
        for i, some in zip(there, found, strict=True)
    ]
    order = np.argsort(-pairs["size"].to_numpy()[there], kind="stable")
    tiles = np.stack([image for i in order for image in (one[there[i]], turned[i][0])])
    tiles = mask_background(tiles, *mask_disc(None, tiles.shape[-1], None))  # corners turn out of the picture
    counts = pairs[["size", "partner_size"]].to_numpy()[there[order]].ravel()
    title = f"{first.name} and, next to each class, its partner of {second.name}"
    return lib.plotting.plot_class_averages(tiles, counts=counts, order="index", n_columns=8, title=title)
