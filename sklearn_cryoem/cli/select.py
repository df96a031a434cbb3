"""`sklearn-cryoem select` and `learn-selection`: particles of chosen classes, the best of them, each once."""

import argparse
from pathlib import Path

import numpy as np

import sklearn_cryoem as lib
from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.cli import options as opts
from sklearn_cryoem.cli import run_folder
from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.convert import named_for
from sklearn_cryoem.cli.results import SUGGESTED


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


def add_select(commands):
    """Add `select` to the parser."""
    parser = opts.new_command(commands, "select", select)
    parser.add_argument(
        "results", metavar="RESULTS", type=Path, help="folder of a run, or a .star or .cs file with classes"
    )
    opts.add_options(parser.add_argument_group("classes").add_mutually_exclusive_group(), [
        ("--classes", "LIST", class_numbers, None, "class numbers from 1, such as 1,4,7 or 1-5,9"),
        ("--selection", "FILE", Path, None, "a selection saved from a report (JSON)"),
        ("--keep-suggested", None, bool, False, f"the classes that the run suggests ({SUGGESTED})"),
        ("--like", "FILE", Path, None, "the classes that you would keep (from learn-selection)"),
    ])  # fmt: skip
    opts.add_options(parser, [
        ("--min-map-correlation", "X", opts.fraction, None,
         "of these, classes that correlate with a known map by at least this (see report --map)"),
        ("--exclude", None, bool, False, "write the particles of all other classes"),
    ])  # fmt: skip
    opts.add_options(parser.add_argument_group("particles"), [
        ("--min-posterior", "P", opts.fraction, None,
         "leave out particles whose class has a smaller posterior"),
        ("--drop-worst", "PERCENT", opts.percent, None,
         "leave out so many of each class, those that match it worst"),
        ("--min-distance", "A", opts.positive, None,
         "keep one of particles that lie closer on a micrograph, by the centres found: that of the larger "
         "posterior"),
        ("--max-per-class", "N", opts.count, None,
         "keep the N that match best of larger classes, to balance views"),
        ("--recenter", None, bool, False,
         "move the coordinates to the centres found, by whole pixels, to extract the particles again"),
        ("--micrograph-pixel-size", "A", opts.positive, None,
         "Angstrom per pixel of the coordinates (default: what the file says)"),
    ])  # fmt: skip
    opts.add_files(parser)
    opts.add_output(parser, "FILE", "a .star or .cs file to write", required=False)
    opts.add_options(parser, [
        ("--averages", "FILE", Path, None,
         "write the averages of the classes that are left, in the order of their numbers (.mrcs)"),
    ])  # fmt: skip


def number_list(numbers):
    """Rising class numbers as `--classes` takes them, such as 1-5,9."""
    runs = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1)
    return ",".join(f"{run[0]}" if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def select(options, console):
    """Write the particles of chosen classes, and the best of them.

    Write the particles of chosen classes of a finished run, or of any .star or .cs file with class numbers,
    to a file of their own.

    Rules on particles apply to the classes chosen, or to all, in the order of this list. Every column and the
    order of the particles are kept, and the images stay where they are; a STAR file from where they would not
    be found by their names gives them new ones. Without --output the particles go to selected.star (or .cs)
    in the folder of the results.
    """
    particles = run_folder.labelled_particles(options.results)
    suffix = ".cs" if particles.suffix.lower() == ".csg" else particles.suffix
    output = options.output or particles.with_name(f"selected{suffix}")
    lib.io.write.check_target(output, overwrite=options.force)
    numbers = chosen_numbers(options, console)
    stack = read_table(particles, output, options.passthrough, console)
    labels = lib.particles.class_labels(stack)
    if labels is None:
        raise CommandError(
            f"{particles} has no class numbers (rlnClassNumber, alignments2D/class). Run classify first."
        )
    wanted = np.unique(labels[labels >= 0])
    if numbers is not None:
        wanted = _existing(numbers, labels, options, console)
    if options.min_map_correlation is not None:
        quality = run_folder.quality_of_run(run_folder.folder_of_run(options.results))
        if "map_correlation" not in quality:
            raise CommandError(
                f"{run_folder.QUALITY} has no map_correlation. Run sklearn-cryoem report with --map first."
            )
        wanted = wanted[quality["map_correlation"].to_numpy()[wanted] >= options.min_map_correlation]
    if options.exclude:
        wanted = np.setdiff1d(labels[labels >= 0], wanted)
    if not len(wanted):
        raise CommandError("that leaves no particle. Choose other classes.")
    is_wanted = np.isin(labels, wanted)
    n_marked = np.count_nonzero(is_wanted & lib.particles.classes.marked_outliers(stack))
    if n_marked == np.count_nonzero(is_wanted):
        raise CommandError(
            "all particles of these classes are marked as outliers (smlOutlier), which leaves none. Choose "
            "other classes."
        )
    left_out = [f"{n_marked:,} outliers (smlOutlier)"] if n_marked else []
    chosen = apply_rules(lib.particles.select_classes(stack, labels, wanted), options, left_out)
    if options.averages is not None:
        _write_averages(chosen, options, console)
    chosen = named_for(output, chosen, places_of(particles, options.images_dir), console)
    lib.io.write_particles(chosen, output, overwrite=options.force)
    left = lib.particles.class_labels(chosen)
    n_left, n_classes = (len(np.unique(some[some >= 0])) for some in (left, labels))
    console.say(
        f"{len(chosen):,} of {len(stack):,} particles, in {n_left} of {n_classes} classes with any, written "
        f"to {output}" + (f"; {', '.join(left_out)} were left out" if left_out else "")
    )
    if options.recenter:
        console.say("coordinates are at the centres found: extract the particles again before they are used")


def apply_rules(stack, options, left_out):
    """The particles that the rules on particles leave; what each takes is added to `left_out` in words."""

    def keep(mask, why):
        if not mask.any():
            raise CommandError(f"all particles are {why}, which leaves none. Choose a milder rule.")
        if not mask.all():
            left_out.append(f"{np.count_nonzero(~mask):,} {why}")
        return stack[mask]

    def best(**limits):
        match = column_of(stack, columns.MATCH, "Run classify again")
        return lib.particles.best_of_classes(lib.particles.class_labels(stack), match, **limits)

    columns, where = lib.particles.classes, {"micrograph_pixel_size": options.micrograph_pixel_size}
    match = column_of(stack, columns.MATCH)
    if options.keep_suggested and match is not None:
        unlike = lib.quality.unlike_their_class(match)
        stack = keep(~unlike, "no more like their class than aligned noise is")
    if options.min_posterior is not None:
        sure = column_of(stack, columns.POSTERIOR, "Run classify or assign") >= options.min_posterior
        stack = keep(sure, f"with a posterior below {options.min_posterior:g}")
    if options.drop_worst is not None:
        kept = best(drop_worst=options.drop_worst / 100.0)
        stack = keep(kept, f"among the worst {options.drop_worst:g} % of their classes")
    if options.min_distance is not None:
        posterior = column_of(stack, columns.POSTERIOR)
        twice = lib.io.duplicates(stack, options.min_distance, posterior, **where)
        stack = keep(~twice, f"closer than {options.min_distance:g} A to another one")
    if options.max_per_class is not None:
        kept = best(max_per_class=options.max_per_class)
        stack = keep(kept, f"beyond {options.max_per_class:,} of a class")
    return lib.io.recentred(stack, **where) if options.recenter else stack


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
    averages, pixel_size = run_folder.averages_of_run(run_folder.folder_of_run(options.results))
    labels, sizes = np.unique(lib.particles.class_labels(stack), return_counts=True)
    star = lib.io.write_class_averages(
        options.averages, averages[labels], pixel_size, sizes=sizes,
        columns={"rlnClassNumber": labels + 1}, overwrite=options.force,
    )  # fmt: skip
    console.say(f"their {len(labels)} averages written to {options.averages}, numbers and sizes to {star}")


def read_table(particles, output, passthrough, console):
    """The particles without their images; the CTF is looked at only where it has to change its format."""
    how = {"metadata_only": True, "rescale": True, "passthrough": passthrough}
    if output.suffix.lower() != particles.suffix.lower():
        try:
            return lib.io.read_particles(particles, **how)
        except ParticleDataError as error:
            console.warn(f"the CTF is not carried over: {error}")
    return lib.io.read_particles(particles, ctf=False, **how)


def places_of(particles, images_dir):
    """Where images may be: as the file of the particles says, then as the run that wrote it found them."""
    places = [(particles, images_dir)]
    summary = run_folder.read_summary(particles.parent)
    run = summary.get("options", {})
    if particles.name in summary.get("files", []) and isinstance(run.get("particles"), str):
        places.append((Path(run["particles"]), run.get("images_dir")))
    return places


def chosen_numbers(options, console):
    """Class numbers from 1 that the options name; None for all."""
    if options.classes is not None:
        return options.classes
    if options.like is not None:
        table = run_folder.quality_of_run(run_folder.folder_of_run(options.results))
        probability = lib.quality.LearnedSelection.load(options.like).probability(table)
        return table.loc[probability >= 0.5, "class"].tolist()
    if options.selection is not None:
        path = options.selection
    elif options.keep_suggested:
        path = run_folder.file_of_run(
            run_folder.folder_of_run(options.results), SUGGESTED, "Name the classes with --classes"
        )
    elif options.exclude:
        raise CommandError("--exclude needs classes. Name them with --classes.")
    else:
        return None
    selection = lib.io.read_selection(path)
    if not selection.classes:
        raise CommandError(f"{path} selects no class. Select some, or name them with --classes.")
    _check_source(selection, path, options.results, console)
    return list(selection.classes)


def _check_source(selection, path, results, console):
    """Refuse a selection of another number of classes; warn of one that belongs to another run."""
    source = selection.source if isinstance(selection.source, dict) else {}
    folder = results if results.is_dir() else results.parent
    summary = run_folder.read_summary(folder)
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


def _existing(numbers, labels, options, console):
    """Labels from 0 of the classes named that hold particles; refuses numbers beyond the last class."""
    wanted, present = np.array(numbers) - 1, np.unique(labels[labels >= 0])
    # read_summary finds none beside a table, whose classes may be others than those of the run there
    known = run_folder.read_summary(options.results).get("results", {}).get("n_classes", 0)
    last = int(max(present.max(initial=-1) + 1, known))
    beyond = [number for number in numbers if number > last]
    if beyond:
        raise CommandError(
            f"there is no class {number_list(beyond)}: the last one is {last}. Choose among 1 to {last}."
        )
    empty = np.setdiff1d(wanted, present)
    if empty.size and not options.exclude:
        console.warn(f"no particle is in class(es) {number_list(empty + 1)}")
    return np.intersect1d(wanted, present)


# ---------------------------------------------------------------- learn-selection
def add_learn_selection(commands):
    """Add `learn-selection` to the parser."""
    parser = opts.new_command(commands, "learn-selection", learn)
    parser.add_argument(
        "selections", metavar="SELECTION", type=Path, nargs="+",
        help="selections saved from reports (JSON), each in the folder of its run",
    )  # fmt: skip
    opts.add_output(parser, "FILE", "what is learned (.json)")


def learn(options, console):
    """Learn from selections which classes you keep.

    Learn from saved selections which classes you keep, by the measures of their quality.

    Each selection lies in the folder of its run, beside quality.csv. What is learned is a few numbers for
    each measure of that table, and sklearn-cryoem select --like FILE applies it to other runs.
    """
    chosen = [lib.io.read_selection(path).classes for path in options.selections]
    tables = [run_folder.quality_of_run(path.parent) for path in options.selections]
    learned = lib.quality.learn_selection(tables, chosen)
    learned.save(options.output, overwrite=options.force)
    seen = "runs" if learned.n_runs > 1 else "classes"
    console.say(
        f"learned from {learned.n_classes} classes of {learned.n_runs} run(s), of which {learned.n_chosen} "
        f"were kept; of {seen} that it had not seen it told {learned.accuracy:.0%} of the classes as you did"
    )
    most = sorted(zip(learned.weight, learned.columns, strict=True), key=lambda pair: -abs(pair[0]))[:5]
    console.say("what counts most: " + ", ".join(f"{name} ({weight:+.2g})" for weight, name in most))
    console.say(f"written to {options.output}, for sklearn-cryoem select --like")
