"""`sklearn-cryoem classify`: read, align, cluster, look, write back."""

from pathlib import Path

from sklearn_cryoem.cli._arguments import (
    add_machine,
    add_output,
    add_passthrough,
    angle,
    count,
    count_or_auto,
    count_or_grid,
    new_command,
    positive,
    whole,
)
from sklearn_cryoem.cli._config import add_config
from sklearn_cryoem.cli._outputs import RunFolder, options_as_dict
from sklearn_cryoem.cli.console import CommandError

DEFAULT_CLASSES = 100

_EPILOG = """\
The class of each particle is written as rlnClassNumber (counted from 1) into the labelled particles; class
averages stand in the same order in class_averages.mrcs. The model is loaded with sklearn_cryoem.load_model.
"""


def add_parser(commands):
    """Add the command to the parser; return its own parser."""
    parser = new_command(
        commands, "classify", run,
        summary="align particles, cluster them, write labels, class averages and pictures",
        description="Align particle images without a reference (MAPAligner), cluster them on a manifold "
        "(SMLClusterer), and write the labelled particles, class averages, pictures, model and summary.",
        epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument("particles", metavar="PARTICLES", type=Path, help="a .star, .cs or .mrcs file")
    add_output(parser)
    add_config(parser)
    add_reading(parser.add_argument_group("reading"))
    add_classification(parser)
    add_machine(parser.add_argument_group("machine"))
    return parser


def add_reading(group):
    """Add the options of how particles are read."""
    group.add_argument("--images-dir", metavar="DIR", type=Path, help="where the image stacks are, if moved")
    add_passthrough(group)
    group.add_argument(
        "--pixel-size", metavar="A", type=positive, help="Angstrom per pixel (default: what the file says)"
    )
    group.add_argument(
        "--rescale", action="store_true", help="bring particles of several pixel sizes and boxes to one"
    )
    group.add_argument("--invert", action="store_true", help="invert the contrast: for dark particles")
    group.add_argument("--no-ctf", action="store_true", help="take the CTF as 1, even if the file has one")
    group.add_argument(
        "--normalise", action="store_true", help="give each background mean 0 and standard deviation 1"
    )
    group.add_argument(
        "--clip-hot-pixels", action="store_true", help="replace pixels that are far off their neighbours"
    )
    group.add_argument(
        "--downsample",
        metavar="PIXELS",
        type=count,
        help="crop images in Fourier space to this box, in pixels",
    )
    group.add_argument(
        "--permissive", action="store_true", help="leave out particles that cannot be used, and say which"
    )


def add_classification(parser):
    """Add the options of alignment and clustering."""
    both = parser.add_argument_group("alignment and clustering")
    both.add_argument(
        "--mask-diameter", metavar="A", type=positive,
        help="diameter of the round mask, in Angstrom (default: chosen from the box)",
    )  # fmt: skip
    both.add_argument(
        "--max-resolution", metavar="A", type=positive,
        help="finest detail to use, in Angstrom (default: as fine as pixel size and signal allow)",
    )  # fmt: skip
    both.add_argument(
        "--noise-groups", action="store_true",
        help="a noise spectrum for each micrograph, instead of one for all particles, in both steps",
    )  # fmt: skip
    align = parser.add_argument_group("alignment")
    align.add_argument("--align-classes", metavar="N", type=count, default=50, help="classes while aligning")
    align.add_argument(
        "--align-references", metavar="N", type=count,
        help="references that are united to these classes in the end: more are more accurate and slower "
        "(default: 2.5 to a class, as far as there are particles)",
    )  # fmt: skip
    align.add_argument(
        "--align-starts", metavar="N", type=count,
        help="starts, of which the best goes on; each costs its mini-batches (default: the aligner's)",
    )  # fmt: skip
    align.add_argument(
        "--align-batches", metavar="N", type=whole, help="mini-batches to begin with (default: the aligner's)"
    )
    align.add_argument(
        "--align-iterations", metavar="N", type=count,
        help="passes over all particles, at most (default: the aligner's)",
    )  # fmt: skip
    align.add_argument(
        "--max-shift", metavar="A", type=positive,
        help="particles are off centre by at most this, in Angstrom (default: chosen from the box)",
    )  # fmt: skip
    align.add_argument(
        "--angle-range", metavar="DEG", type=angle,
        help="search this far round the in-plane angles of the file, in degrees (default: all angles)",
    )  # fmt: skip
    align.add_argument(
        "--align-mirrored", action="store_true",
        help="let mirror images share classes: the same view from opposite sides",
    )  # fmt: skip
    align.add_argument(
        "--skip-align", action="store_true", help="use the in-plane angles and shifts of the file as they are"
    )
    cluster = parser.add_argument_group("clustering")
    cluster.add_argument(
        "--classes", metavar="N", type=count_or_grid, default=DEFAULT_CLASSES,
        help="number of classes, rounded to a regular grid, or the grid itself: 10x10",
    )  # fmt: skip
    cluster.add_argument(
        "--latent-dim", metavar="L", type=count, choices=(1, 2, 3),
        help="dimension of the manifold (default: that of its shape, 2 for a grid)",
    )  # fmt: skip
    cluster.add_argument(
        "--topology", choices=("grid", "ring", "torus", "sphere"), default="grid",
        help="shape of the manifold; closed ones for motions and views that come round",
    )  # fmt: skip
    cluster.add_argument(
        "--basis", metavar="N", type=count_or_auto, default="auto",
        help="basis functions of the manifold: fewer are smoother",
    )  # fmt: skip
    cluster.add_argument(
        "--iterations", metavar="N", type=count, help="iterations, at most (default: the clusterer's)"
    )
    cluster.add_argument(
        "--cache-folder", metavar="DIR", type=Path,
        help="keep prepared images of large sets in files here, which further runs read again; their size is "
        "stated before, and they stay until they are deleted",
    )  # fmt: skip


def run(options, console):
    """Classify and write."""
    from sklearn_cryoem.cli import _advice, _workflow
    from sklearn_cryoem.cli._preflight import check_machine

    if not options.particles.exists():
        raise CommandError(f"there is no {options.particles}. Check the path.")
    names = _workflow.output_names(options.particles.suffix, align=not options.skip_align)
    with RunFolder(options.output, [*names, _workflow.LEFT_OUT], force=options.force) as folder:
        check_machine(console)
        with folder.timed("read"):
            stack, n_left_out = _workflow.read(options, folder, console)
        console.say(f"{stack!r}")
        _advice.check_options(options, stack, console)
        _advice.question_particles(
            stack, console, mask_diameter=options.mask_diameter, pixel_size=options.pixel_size
        )
        stack, n_unusable = _workflow.screen(stack, options, folder, console)
        outcome = _workflow.classify(stack, options, folder)
        results = _workflow.write(outcome, folder, console)
        results["n_left_out"] = n_left_out + n_unusable
        folder.write_summary("classify", options_as_dict(options), results, console.warnings)
    _workflow.tell(results, folder, console)
    labelled = folder / outcome.labels_name
    images_dir = _advice.where_images_are(labelled, stack, options)
    if images_dir is not None:
        console.say(
            f"image names in {labelled} are those of the input; to read it where it is, pass "
            f"--images-dir {images_dir} (images_dir= in Python)"
        )
