"""`sklearn-cryoem select` and `convert`: tables of particles, for the next job or another program."""

import argparse
from pathlib import Path

import numpy as np

from sklearn_cryoem.cli.classify import folder_of_names
from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.options import add_images_dir, add_passthrough, new_command, positive
from sklearn_cryoem.cli.results import SUGGESTED
from sklearn_cryoem.cli.run_folder import read_summary

_LABELLED = ("particles.star", "particles.cs")
_SELECT_EPILOG = """\
Every column and the order of the particles are kept, and the images stay where they are; a STAR file from
where they would not be found by their names gives them new ones. Without --output the particles go to
selected.star (or .cs) in the folder of the results.
"""
_CONVERT_EPILOG = """\
Images are not copied: the new file names them where they are. Names are kept, unless the images would not be
found by them from the new file; then a STAR file names them from the folder in which the command runs, the
project's for RELION, or absolutely. With --float32, and in a .mrcs file, the images themselves are written.
What the new format has no place for is named in a warning.
"""


# ---------------------------------------------------------------- select
def add_select(commands):
    """Add `select` to the parser; return its own parser."""
    parser = new_command(
        commands, "select", select,
        summary="write the particles of chosen classes",
        description="Write the particles of chosen classes of a finished run, or of any .star or .cs file "
        "with class numbers, to a file of their own.",
        epilog=_SELECT_EPILOG,
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
    add_images_dir(parser)
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
    if output.exists() and not options.force:
        raise CommandError(f"{output} exists. Choose another --output, or pass --force to replace it.")
    check_target(output, overwrite=options.force)
    numbers = chosen_numbers(options, console)
    stack = _read_table(particles, output, options.passthrough, console)
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
            "all particles of these classes are marked as outliers (smlOutlier), which leaves none. Choose "
            "other classes."
        )
    chosen = named_for(output, select_classes(stack, labels, wanted), _places(particles, options), console)
    write_particles(chosen, output, overwrite=options.force)
    n_classes = len(np.unique(labels[labels >= 0]))
    console.say(
        f"{len(chosen):,} of {len(stack):,} particles, in {len(wanted)} of {n_classes} classes with any, "
        f"written to {output}" + (f"; {n_marked:,} outliers (smlOutlier) were left out" if n_marked else "")
    )


def _read_table(particles, output, passthrough, console):
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


def _places(particles, options):
    """Where images may be: as the file of the particles says, then as the run that wrote it found them."""
    places = [(particles, options.images_dir)]
    summary = read_summary(particles.parent)
    run = summary.get("options", {})
    if particles.name in summary.get("files", []) and isinstance(run.get("particles"), str):
        places.append((Path(run["particles"]), run.get("images_dir")))
    return places


def labelled_particles(path):
    """The file with class numbers that a user means: `path`, or the particles of that folder."""
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


# ---------------------------------------------------------------- convert
def add_convert(commands):
    """Add `convert` to the parser; return its own parser."""
    parser = new_command(
        commands, "convert", convert,
        summary="convert particles between RELION and cryoSPARC",
        description="Convert a table of particles: .star (RELION 1.x to 5) to .cs (cryoSPARC) and back, or "
        "from one style of STAR file to another.",
        epilog=_CONVERT_EPILOG,
    )  # fmt: skip
    parser.add_argument("input", metavar="INPUT", type=Path, help="a .star, .cs, .csg or .mrcs file")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="a .star, .cs or .mrcs file to write")
    parser.add_argument(
        "--star-version", choices=("3.0", "3.1"),
        help="style of the STAR file: one table (RELION up to 3.0), or optics groups and particles (3.1 to "
        "5); by default that of the input, 3.1 for others",
    )  # fmt: skip
    add_images_dir(parser)
    parser.add_argument(
        "--float32", action="store_true",
        help="write the images too, as 32-bit numbers, to one .mrcs file beside the STAR file: for programs "
        "that do not read half precision, as RELION up to 3.1",
    )  # fmt: skip
    add_passthrough(parser)
    parser.add_argument(
        "--pixel-size", metavar="A", type=positive, help="Angstrom per pixel (default: what the file says)"
    )
    parser.add_argument("--no-ctf", action="store_true", help="do without CTF parameters")
    parser.add_argument("--force", action="store_true", help="replace the output if it is there")
    return parser


def convert(options, console):
    """Read, write, and say what it is now."""
    from sklearn_cryoem.io import read_particles, write_particles

    _check_paths(options)
    writes_images = options.float32 or options.output.suffix.lower() == ".mrcs"
    stack = read_particles(
        options.input,
        images_dir=options.images_dir,
        pixel_size=options.pixel_size,
        ctf=not options.no_ctf,
        passthrough=options.passthrough,
        metadata_only=not writes_images and options.images_dir is None,
    )
    if options.float32:
        _keep_own_images(stack, options.output)
    elif not writes_images:
        stack = named_for(options.output, stack, [(options.input, options.images_dir)], console)
    write_particles(
        stack,
        options.output,
        write_images=True if options.float32 else None,
        star_version=options.star_version,
        project=Path.cwd(),
        overwrite=options.force,
        verbose=0 if options.quiet else 1,
    )
    console.say(f"{len(stack):,} particles from {options.input} written to {options.output}")
    if options.float32:
        console.say(f"their images, as 32-bit numbers, are in {options.output.with_suffix('.mrcs')}")


def _check_paths(options):
    """Refuse what cannot be read, or not be written, before anything is."""
    from sklearn_cryoem.io.write import check_target

    if not options.input.exists():
        raise CommandError(f"there is no {options.input}. Check the path.")
    if options.float32 and options.output.suffix.lower() != ".star":
        raise CommandError(
            f"--float32 writes a STAR file and its images, and {options.output} is none. Give a .star file."
        )
    targets = [options.output] + ([options.output.with_suffix(".mrcs")] if options.float32 else [])
    for path in targets:
        if path.exists() and path.samefile(options.input):
            raise CommandError(f"{path} is the input itself. Choose another name.")
        if path.exists() and not options.force:
            raise CommandError(f"{path} exists. Choose another name, or pass --force to replace it.")
        check_target(path, overwrite=options.force)


def _keep_own_images(stack, output):
    """Refuse to replace images that are being read, and that the input names."""
    from sklearn_cryoem.io.image_files import image_files

    path = output.with_suffix(".mrcs")
    if path.exists() and any(path.samefile(file) for file in image_files(stack)):
        raise CommandError(f"{path} holds the images that are read. Choose another name.")


def named_for(output, stack, places, console):
    """The stack with names by which its images are found from the table `output`; says where names change.

    `places` are from where its images are looked for, one after the other: a table that names them, and the
    folder of the images if they were moved.
    """
    from sklearn_cryoem.io import rename_images

    for_cryosparc = output.suffix.lower() == ".cs"  # there names count from the project, wherever that is
    renamed_stack, renamed = stack, {}
    for source, images_dir in places:
        renamed_stack, more = rename_images(renamed_stack, source, output, images_dir=images_dir)
        if more and for_cryosparc:
            old = next(iter(more))
            folder = images_dir or folder_of_names(more)
            console.say(
                f"images are named as before, for cryoSPARC: commands here find {old} with --images-dir "
                f"{folder}"
            )
            return stack
        renamed |= more
    if renamed:
        old, new = next(iter(renamed.items()))
        more = f" ({len(renamed) - 1:,} more like it)" if len(renamed) > 1 else ""
        console.say(f"so that images are found from {output}, {old} is named {new}{more}")
    if not for_cryosparc:
        _tell_what_is_missing(renamed_stack, output, console)
    return renamed_stack


def _tell_what_is_missing(stack, output, console):
    """Warn of images that are not found by their names from the new table."""
    from sklearn_cryoem.io.image_files import missing_files

    missing = missing_files(stack, output)
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        console.warn(
            f"{missing[0]}{more} will not be found from {output}, as it was not from where it was named "
            "before. Pass --images-dir, the folder of the images, or write where they are."
        )
