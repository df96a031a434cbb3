"""`sklearn-cryoem select`: the particles of chosen classes, for the next job."""

import argparse
import json
from pathlib import Path

import numpy as np

from sklearn_cryoem.cli._arguments import add_passthrough, new_command
from sklearn_cryoem.cli._classes import SUGGESTED
from sklearn_cryoem.cli._outputs import SUMMARY
from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.convert import named_for

_LABELLED = ("particles.star", "particles.cs")
_EPILOG = """\
Every column and the order of the particles are kept, and the images stay where they are; a STAR file from
where they would not be found by their names gives them new ones. Without --output the particles go to
selected.star (or .cs) in the folder of the results.
"""


def add_parser(commands):
    """Add the command to the parser; return its own parser."""
    parser = new_command(
        commands, "select", run,
        summary="write the particles of chosen classes",
        description="Write the particles of chosen classes of a finished run, or of any .star or .cs file "
        "with class numbers, to a file of their own.",
        epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument(
        "results", metavar="RESULTS", type=Path, help="folder of a run, or a .star or .cs file with classes"
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--classes", metavar="LIST", type=class_numbers, help="class numbers from 1, such as 1,4,7 or 1-5,9"
    )
    which.add_argument(
        "--selection", metavar="FILE", type=Path, help="a selection saved from a report (JSON)"
    )
    which.add_argument(
        "--keep-suggested", action="store_true", help=f"the classes that the run suggests ({SUGGESTED})"
    )
    parser.add_argument("--images-dir", metavar="DIR", type=Path, help="where the image stacks are, if moved")
    add_passthrough(parser)
    parser.add_argument("--exclude", action="store_true", help="write the particles of all other classes")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="a .star or .cs file to write")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
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


def run(options, console):
    """Read the labelled particles, select, write."""
    from sklearn_cryoem.io import write_particles
    from sklearn_cryoem.io.write import check_target
    from sklearn_cryoem.particles import class_labels, select_classes
    from sklearn_cryoem.particles.classes import marked_outliers

    particles = labelled_particles(options.results)
    suffix = ".cs" if particles.suffix.lower() == ".csg" else particles.suffix
    output = options.output or particles.with_name(f"selected{suffix}")
    if output.exists() and not options.force:
        raise CommandError(f"{output} exists. Choose another --output, or pass --force to replace it.")
    check_target(output, overwrite=options.force)
    numbers = chosen_numbers(options, console)
    stack = _read(particles, output, options.passthrough, console)
    labels = class_labels(stack)
    if labels is None:
        raise CommandError(
            f"{particles} has no class numbers (rlnClassNumber, alignments2D/class). Run classify first."
        )
    wanted = _existing(numbers, labels, options, console)
    if options.exclude:
        wanted = np.setdiff1d(labels[labels >= 0], wanted)
    if not len(wanted):
        raise CommandError("that leaves no particle. Choose other classes.")
    n_marked = np.count_nonzero(np.isin(labels, wanted) & marked_outliers(stack))
    if n_marked == np.count_nonzero(np.isin(labels, wanted)):
        raise CommandError(
            "all particles of these classes are marked as far out (smlOutlier), which leaves none. Choose "
            "other classes."
        )
    chosen = named_for(output, select_classes(stack, labels, wanted), _places(particles, options), console)
    write_particles(chosen, output, overwrite=options.force)
    n_classes = len(np.unique(labels[labels >= 0]))
    console.say(
        f"{len(chosen):,} of {len(stack):,} particles, in {len(wanted)} of {n_classes} classes with any, "
        f"written to {output}"
        + (f"; {n_marked:,} that are far out (smlOutlier) were left out" if n_marked else "")
    )


def _read(particles, output, passthrough, console):
    """The particles without their images; the CTF is looked at only where it has to change its format."""
    from sklearn_cryoem._core.exceptions import ParticleDataError
    from sklearn_cryoem.io import read_particles

    def read(**how):
        return read_particles(particles, metadata_only=True, rescale=True, passthrough=passthrough, **how)

    if output.suffix.lower() != particles.suffix.lower():
        try:
            return read()
        except ParticleDataError as error:
            console.warn(f"the CTF is not carried over: {error}")
    return read(ctf=False)


def _places(particles, options):
    """Where images may be: as the file of the particles says, then as the run that wrote it found them."""
    places = [(particles, options.images_dir)]
    summary = _summary(particles.parent)
    run = summary.get("options", {})
    if particles.name in summary.get("files", []) and isinstance(run.get("particles"), str):
        places.append((Path(run["particles"]), run.get("images_dir")))
    return places


def labelled_particles(path):
    """The file with class numbers that a user means: `path`, or the particles of that folder.

    Parameters
    ----------
    path : Path
        A folder of results, or a file.

    Returns
    -------
    Path
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise CommandError(f"there is no {path}. Give the --output of a run, or a file of particles.")
    found = [path / name for name in _LABELLED if (path / name).is_file()]
    if not found:
        raise CommandError(
            f"{path} holds neither {' nor '.join(_LABELLED)}. Give the --output of a run that ended."
        )
    if len(found) > 1:
        raise CommandError(f"{path} holds both {' and '.join(_LABELLED)}. Name the file that you mean.")
    return found[0]


def chosen_numbers(options, console):
    """Class numbers from 1 that the options name."""
    from sklearn_cryoem.io import read_selection

    if options.classes is not None:
        return options.classes
    folder = options.results if options.results.is_dir() else options.results.parent
    path = options.selection
    if path is None:
        path = folder / SUGGESTED
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
    summary = _summary(folder)
    mine, theirs = summary.get("results", {}).get("n_classes"), source.get("n_classes")
    if None not in (mine, theirs) and mine != theirs:
        raise CommandError(
            f"{path} was made of a run with {theirs} classes, {folder} has {mine}. Give the folder that it "
            "was made of, or select again."
        )
    mine, theirs = summary.get("written_at"), source.get("written_at")
    if None not in (mine, theirs) and mine != theirs:
        console.warn(
            f"{path} was made of a run of {theirs}, {folder} is of {mine}: the same numbers may be other "
            "classes. Look at the gallery"
        )


def _summary(folder):
    try:
        content = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _existing(numbers, labels, options, console):
    """Labels from 0 of the classes named that hold particles; refuses numbers beyond the last class."""
    wanted, present = np.array(numbers) - 1, np.unique(labels[labels >= 0])
    folder = options.results if options.results.is_dir() else options.results.parent
    known = _summary(folder).get("results", {}).get("n_classes") if options.results.is_dir() else None
    last = int(max(present.max(initial=-1) + 1, known or 0))
    beyond = [str(number) for number in numbers if number > last]
    if beyond:
        raise CommandError(
            f"there is no class {', '.join(beyond)}: the last one is {last}. Choose among 1 to {last}."
        )
    empty = np.setdiff1d(wanted, present)
    if empty.size and not options.exclude:
        console.warn(f"no particle is in class(es) {', '.join(str(number + 1) for number in empty)}")
    return np.intersect1d(wanted, present)
