"""`sklearn-cryoem select`: particles of chosen classes, the best of them, each once, for the next job."""

import argparse
from pathlib import Path

import numpy as np

from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.convert import named_for
from sklearn_cryoem.cli.options import (
    add_images_dir,
    add_options,
    add_passthrough,
    count,
    fraction,
    new_command,
    percent,
    positive,
)
from sklearn_cryoem.cli.results import AVERAGES, QUALITY, SUGGESTED
from sklearn_cryoem.cli.run_folder import folder_of_run, labelled_particles, read_summary

_RULES = [
    ("min_posterior", "--min-posterior", "P", fraction, None,
     "leave out particles whose class has a smaller posterior"),
    ("drop_worst", "--drop-worst", "PERCENT", percent, None,
     "leave out so many of each class, those that match it worst"),
    ("min_distance", "--min-distance", "A", positive, None,
     "keep one of particles that lie closer on a micrograph, by the centres found: that of the larger "
     "posterior"),
    ("max_per_class", "--max-per-class", "N", count, None,
     "keep the N that match best of larger classes, to balance views"),
]  # fmt: skip
_EPILOG = """\
Rules on particles apply to the classes chosen, or to all, in the order of this list. Every column and the
order of the particles are kept, and the images stay where they are; a STAR file from where they would not be
found by their names gives them new ones. Without --output the particles go to selected.star (or .cs) in the
folder of the results.
"""


def add_select(commands):
    """Add `select` to the parser; return its own parser."""
    parser = new_command(
        commands, "select", select,
        summary="write the particles of chosen classes, and the best of them",
        description="Write the particles of chosen classes of a finished run, or of any .star or .cs file "
        "with class numbers, to a file of their own.",
        epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument(
        "results", metavar="RESULTS", type=Path, help="folder of a run, or a .star or .cs file with classes"
    )
    which = parser.add_argument_group("classes").add_mutually_exclusive_group()
    which.add_argument(
        "--classes", metavar="LIST", type=class_numbers, help="class numbers from 1, such as 1,4,7 or 1-5,9"
    )
    which.add_argument(
        "--selection", metavar="FILE", type=Path, help="a selection saved from a report (JSON)"
    )
    which.add_argument(
        "--keep-suggested", action="store_true", help=f"the classes that the run suggests ({SUGGESTED})"
    )
    which.add_argument(
        "--like", metavar="FILE", type=Path, help="the classes that you would keep (from learn-selection)"
    )
    parser.add_argument(
        "--min-map-correlation", metavar="X", type=fraction,
        help="of these, classes that correlate with a known map by at least this (see report --map)",
    )  # fmt: skip
    parser.add_argument("--exclude", action="store_true", help="write the particles of all other classes")
    rules = parser.add_argument_group("particles")
    add_options(rules, _RULES)
    rules.add_argument(
        "--recenter", action="store_true",
        help="move the coordinates to the centres found, by whole pixels, to extract the particles again",
    )  # fmt: skip
    rules.add_argument(
        "--micrograph-pixel-size", metavar="A", type=positive,
        help="Angstrom per pixel of the coordinates (default: what the file says)",
    )  # fmt: skip
    add_images_dir(parser)
    add_passthrough(parser)
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="a .star or .cs file to write")
    parser.add_argument(
        "--averages", metavar="FILE", type=Path,
        help="write the averages of the classes that are left, in the order of their numbers (.mrcs)",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace files that are there")
    return parser


def class_numbers(text):
    """Class numbers of a list such as 1,4,7 or 1-5,9."""
    numbers = set()
    for part in text.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        try:
            low, high = int(first), int(last if dash else first)
        except ValueError:
            low, high = 0, 0
        if not 1 <= low <= high:
            raise argparse.ArgumentTypeError(
                f"{text!r} is no list of class numbers from 1, such as 1,4,7 or 1-5,9"
            )
        numbers.update(range(low, high + 1))
    return sorted(numbers)


def number_list(numbers):
    """Rising class numbers as `--classes` takes them, such as 1-5,9."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ",".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def select(options, console):
    """Read the labelled particles, select, write."""
    from sklearn_cryoem.io import write_particles
    from sklearn_cryoem.io.write import check_target
    from sklearn_cryoem.particles import class_labels, select_classes
    from sklearn_cryoem.particles.classes import marked_outliers

    particles = labelled_particles(options.results)
    suffix = ".cs" if particles.suffix.lower() == ".csg" else particles.suffix
    output = options.output or particles.with_name(f"selected{suffix}")
    check_target(output, overwrite=options.force)
    numbers = chosen_numbers(options, console)
    stack = read_table(particles, output, options.passthrough, console)
    labels = class_labels(stack)
    if labels is None:
        raise CommandError(
            f"{particles} has no class numbers (rlnClassNumber, alignments2D/class). Run classify first."
        )
    wanted = np.unique(labels[labels >= 0])
    if numbers is not None:
        wanted = _existing(numbers, labels, options, console)
    if options.min_map_correlation is not None:
        wanted = wanted[
            _quality_of(options, "map_correlation")["map_correlation"].to_numpy()[wanted]
            >= options.min_map_correlation
        ]
    if options.exclude:
        wanted = np.setdiff1d(labels[labels >= 0], wanted)
    if not len(wanted):
        raise CommandError("that leaves no particle. Choose other classes.")
    n_marked = np.count_nonzero(np.isin(labels, wanted) & marked_outliers(stack))
    if n_marked == np.count_nonzero(np.isin(labels, wanted)):
        raise CommandError(
            "all particles of these classes are marked as outliers (smlOutlier), which leaves none. Choose "
            "other classes."
        )
    left_out = [f"{n_marked:,} outliers (smlOutlier)"] if n_marked else []
    chosen = apply_rules(select_classes(stack, labels, wanted), options, left_out)
    if options.averages is not None:
        _write_averages(chosen, options, console)
    chosen = named_for(output, chosen, places_of(particles, options.images_dir), console)
    write_particles(chosen, output, overwrite=options.force)
    n_left, n_classes = (len(np.unique(some[some >= 0])) for some in (class_labels(chosen), labels))
    console.say(
        f"{len(chosen):,} of {len(stack):,} particles, in {n_left} of {n_classes} classes with any, written "
        f"to {output}" + (f"; {', '.join(left_out)} were left out" if left_out else "")
    )
    if options.recenter:
        console.say("coordinates are at the centres found: extract the particles again before they are used")


def apply_rules(stack, options, left_out):
    """The particles that the rules on particles leave; what each takes is added to `left_out` in words."""
    from sklearn_cryoem.io import duplicates, recentred
    from sklearn_cryoem.particles import best_of_classes, class_labels
    from sklearn_cryoem.particles.classes import MATCH, POSTERIOR
    from sklearn_cryoem.quality import unlike_their_class

    def keep(mask, why):
        if not mask.any():
            raise CommandError(f"all particles are {why}, which leaves none. Choose a milder rule.")
        if not mask.all():
            left_out.append(f"{np.count_nonzero(~mask):,} {why}")
        return stack[mask]

    def best(**limits):
        return best_of_classes(class_labels(stack), column_of(stack, MATCH, "Run classify again"), **limits)

    where = {"micrograph_pixel_size": options.micrograph_pixel_size}
    match = column_of(stack, MATCH)
    if options.keep_suggested and match is not None:
        stack = keep(~unlike_their_class(match), "no more like their class than aligned noise is")
    if options.min_posterior is not None:
        sure = column_of(stack, POSTERIOR, "Run classify or assign") >= options.min_posterior
        stack = keep(sure, f"with a posterior below {options.min_posterior:g}")
    if options.drop_worst is not None:
        kept = best(drop_worst=options.drop_worst / 100.0)
        stack = keep(kept, f"among the worst {options.drop_worst:g} % of their classes")
    if options.min_distance is not None:
        posterior = column_of(stack, POSTERIOR)
        twice = duplicates(stack, options.min_distance, posterior, **where)
        stack = keep(~twice, f"closer than {options.min_distance:g} A to another one")
    if options.max_per_class is not None:
        kept = best(max_per_class=options.max_per_class)
        stack = keep(kept, f"beyond {options.max_per_class:,} of a class")
    return recentred(stack, **where) if options.recenter else stack


def column_of(stack, names, remedy=None):
    """The first of some columns that the particles have, as numbers; None, or the remedy, without any."""
    from pandas import to_numeric

    table = stack.metadata
    for name in names:
        if name in table:
            return to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
    if remedy is None:
        return None
    raise CommandError(f"the particles have no column {names[0]}. {remedy}, which writes it.")


def _write_averages(stack, options, console):
    """Write the averages of the classes that the particles are in, with their numbers in the STAR file."""
    from sklearn_cryoem.io import read_mrc, write_class_averages
    from sklearn_cryoem.particles import class_labels

    folder = folder_of_run(options.results)
    if not (folder / AVERAGES).is_file():
        raise CommandError(f"{folder} holds no {AVERAGES} to take averages from. Give the folder of a run.")
    averages, pixel_size = read_mrc(folder / AVERAGES)
    labels, sizes = np.unique(class_labels(stack), return_counts=True)
    star = write_class_averages(
        options.averages, averages[labels], pixel_size, sizes=sizes,
        columns={"rlnClassNumber": labels + 1}, overwrite=options.force,
    )  # fmt: skip
    console.say(f"their {len(labels)} averages written to {options.averages}, numbers and sizes to {star}")


def read_table(particles, output, passthrough, console):
    """The particles without their images; the CTF is looked at only where it has to change its format."""
    from sklearn_cryoem._core.validation import ParticleDataError
    from sklearn_cryoem.io import read_particles

    def read(**how):
        return read_particles(particles, metadata_only=True, rescale=True, passthrough=passthrough, **how)

    if output.suffix.lower() != particles.suffix.lower():
        try:
            return read()
        except ParticleDataError as error:
            console.warn(f"the CTF is not carried over: {error}")
    return read(ctf=False)


def places_of(particles, images_dir):
    """Where images may be: as the file of the particles says, then as the run that wrote it found them."""
    places = [(particles, images_dir)]
    summary = read_summary(particles.parent)
    run = summary.get("options", {})
    if particles.name in summary.get("files", []) and isinstance(run.get("particles"), str):
        places.append((Path(run["particles"]), run.get("images_dir")))
    return places


def chosen_numbers(options, console):
    """Class numbers from 1 that the options name; None for all."""
    from sklearn_cryoem.io import read_selection

    if options.classes is not None:
        return options.classes
    if options.like is not None:
        from sklearn_cryoem.quality import LearnedSelection

        table = _quality_of(options)
        return table.loc[LearnedSelection.load(options.like).probability(table) >= 0.5, "class"].tolist()
    if options.selection is None and not options.keep_suggested:
        if options.exclude:
            raise CommandError("--exclude needs classes. Name them with --classes.")
        return None
    folder = options.results if options.results.is_dir() else options.results.parent
    path = options.selection
    if path is None:
        path = folder_of_run(options.results) / SUGGESTED
        if not path.is_file():
            raise CommandError(f"{folder} holds no {SUGGESTED}. Name the classes with --classes.")
    selection = read_selection(path)
    if not selection.classes:
        raise CommandError(f"{path} selects no class. Select some, or name them with --classes.")
    _check_source(selection, path, folder, console)
    return list(selection.classes)


def _check_source(selection, path, folder, console):
    """Refuse a selection of another number of classes; warn of one that belongs to another run."""
    source = selection.source if isinstance(selection.source, dict) else {}
    summary = read_summary(folder)
    mine, theirs = summary.get("results", {}).get("n_classes"), source.get("n_classes")
    if None not in (mine, theirs) and mine != theirs:
        raise CommandError(
            f"{path} was made of a run with {theirs} classes, {folder} has {mine}. Give the folder that it "
            "was made of, or select again."
        )
    mine, theirs = summary.get("started_at"), source.get("started_at")
    if None not in (mine, theirs) and mine != theirs:
        console.warn(
            f"{path} was made of a run of {theirs}, {folder} is of {mine}: the same numbers may be other "
            "classes. Look at the gallery"
        )


def _quality_of(options, column="class"):
    """The table of quality of the run, which has the column."""
    import pandas as pd

    path = folder_of_run(options.results) / QUALITY
    table = pd.read_csv(path) if path.is_file() else pd.DataFrame()
    if column not in table:
        remedy = "Run sklearn-cryoem report with --map first" if column != "class" else "Give a run's folder"
        raise CommandError(f"{path} has no {column}. {remedy}.")
    return table


def _existing(numbers, labels, options, console):
    """Labels from 0 of the classes named that hold particles; refuses numbers beyond the last class."""
    wanted, present = np.array(numbers) - 1, np.unique(labels[labels >= 0])
    folder = options.results if options.results.is_dir() else options.results.parent
    known = read_summary(folder).get("results", {}).get("n_classes") if options.results.is_dir() else None
    last = int(max(present.max(initial=-1) + 1, known or 0))
    beyond = [number for number in numbers if number > last]
    if beyond:
        raise CommandError(
            f"there is no class {number_list(beyond)}: the last one is {last}. Choose among 1 to {last}."
        )
    empty = np.setdiff1d(wanted, present)
    if empty.size and not options.exclude:
        console.warn(f"no particle is in class(es) {number_list(empty + 1)}")
    return np.intersect1d(wanted, present)
