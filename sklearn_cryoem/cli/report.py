"""`sklearn-cryoem report`: the results of a run as one HTML page, to look through and to select from."""

from pathlib import Path

from sklearn_cryoem.cli._arguments import new_command
from sklearn_cryoem.cli._wording import in_the_shell
from sklearn_cryoem.cli.console import CommandError

PAGE = "report.html"
_EPILOG = """\
The page is one file that needs no network. Classes selected in it are saved as selection.json, which
sklearn-cryoem select turns into a subset of the particles.
"""


def add_parser(commands):
    """Add the command to the parser; return its own parser."""
    parser = new_command(
        commands, "report", run,
        summary="show the results of a run as one HTML page, to select classes in",
        description="Make one self-contained HTML page of a finished run: class gallery, manifold atlas, "
        "convergence, class tree, parameters and warnings.",
        epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument("folder", metavar="DIR", type=Path, help="the --output of a finished run")
    parser.add_argument(
        "-o", "--output", metavar="FILE", type=Path, help=f"the page (default: {PAGE} in DIR, replaced)"
    )
    parser.add_argument("--force", action="store_true", help="replace FILE if it is there")
    parser.add_argument("--title", metavar="TEXT", help="title of the page (default: the name of DIR)")
    parser.add_argument("--images-dir", metavar="DIR", type=Path, help="where the image stacks are, if moved")
    parser.add_argument(
        "--no-particles", action="store_true", help="read no images: a smaller page, without examples"
    )
    return parser


def run(options, console):
    """Make the page and say where it is."""
    if not options.folder.is_dir():
        raise CommandError(f"there is no folder {options.folder}. Give the --output of a finished run.")
    from sklearn_cryoem._core.files import try_to_write
    from sklearn_cryoem.report import report

    path = options.output or options.folder / PAGE
    overwrite = options.force or options.output is None
    try_to_write(path, overwrite=overwrite)
    page = report(
        options.folder,
        images_dir=options.images_dir,
        examples=not options.no_particles,
        title=options.title,
    )
    page.save(path, overwrite=overwrite)
    for warning in page.warnings:
        console.warn(in_the_shell(warning, options))
    console.say(
        f"{path} ({len(page.html) / 1e6:.1f} MB): open it in a browser, select classes, save the selection"
    )
    console.say(f"then: sklearn-cryoem select {options.folder} --selection selection.json -o good.star")
