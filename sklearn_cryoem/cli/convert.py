"""`sklearn-cryoem convert`: particles from one program's files to another's."""

from pathlib import Path

from sklearn_cryoem.cli._arguments import new_command, positive
from sklearn_cryoem.cli.console import CommandError

_EPILOG = """\
Images are not copied: the new file names them where they are. A .mrcs file gets the images themselves. What
the new format has no place for is named in a warning.
"""


def add_parser(commands):
    """Add the command to the parser; return its own parser."""
    parser = new_command(
        commands, "convert", run,
        summary="convert particles between RELION and cryoSPARC",
        description="Convert a table of particles: .star (RELION 1.x to 5) to .cs (cryoSPARC) and back, or "
        "from one style of STAR file to another.",
        epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument("input", metavar="INPUT", type=Path, help="a .star, .cs, .csg or .mrcs file")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="a .star, .cs or .mrcs file to write")
    parser.add_argument(
        "--star-version", choices=("3.0", "3.1"),
        help="style of the STAR file: one table (RELION up to 3.0), or optics groups and particles (3.1 to "
        "5); by default that of the input, 3.1 for others",
    )  # fmt: skip
    parser.add_argument("--images-dir", metavar="DIR", type=Path, help="where the image stacks are, if moved")
    parser.add_argument(
        "--passthrough",
        metavar="FILE",
        type=Path,
        help="second .cs file, with the fields that the input lacks",
    )
    parser.add_argument(
        "--pixel-size", metavar="A", type=positive, help="Angstrom per pixel (default: what the file says)"
    )
    parser.add_argument("--no-ctf", action="store_true", help="do without CTF parameters")
    parser.add_argument("--force", action="store_true", help="replace the output if it is there")
    return parser


def run(options, console):
    """Read, write, and say what it is now."""
    from sklearn_cryoem.io import read_particles, write_particles

    if not options.input.exists():
        raise CommandError(f"there is no {options.input}. Check the path.")
    if options.output.exists() and not options.force:
        raise CommandError(f"{options.output} exists. Choose another name, or pass --force to replace it.")
    if options.output.exists() and options.output.samefile(options.input):
        raise CommandError(f"{options.output} is the input itself. Choose another name.")
    stack = read_particles(
        options.input,
        images_dir=options.images_dir,
        pixel_size=options.pixel_size,
        ctf=not options.no_ctf,
        passthrough=options.passthrough,
        metadata_only=options.output.suffix.lower() != ".mrcs" and options.images_dir is None,
    )
    write_particles(stack, options.output, star_version=options.star_version, overwrite=options.force)
    console.say(f"{len(stack):,} particles from {options.input} written to {options.output}")
