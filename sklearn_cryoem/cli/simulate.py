"""`sklearn-cryoem simulate`: particles with known truth, as files that any program reads."""

from pathlib import Path

from sklearn_cryoem.cli._arguments import (
    add_machine,
    add_output,
    count,
    fraction,
    new_command,
    not_negative,
    positive,
)
from sklearn_cryoem.cli._config import add_config
from sklearn_cryoem.cli._outputs import RunFolder, options_as_dict
from sklearn_cryoem.cli.console import CommandError

STACK, STAR, TRUTH = "particles.mrcs", "particles.star", "truth.csv"
_PLAIN = {"max_shift": 0.0, "junk": 0.0, "defocus": [10000.0, 25000.0]}
_SESSION = {"max_shift": None, "junk": 0.2, "defocus": [8000.0, 22000.0]}
_DRAWN_IN_A_SESSION = {  # option: default
    "noise": "white", "views": None, "no_rotation": False, "weights": None, "astigmatism": 500.0,
    "voltage": 300.0, "cs": 2.7,
}  # fmt: skip
_PHANTOM_NAMES = ("ribosome", "ring-10", "ring-11", "ring-12", "rp", "rp-cp")


def add_parser(commands):
    """Add the command to the parser; return its own parser."""
    parser = new_command(
        commands, "simulate", run,
        summary="simulate particles of a volume or a phantom, with known truth",
        description="Simulate particle images (CTF with astigmatism, shifts, rotation, noise, junk) and "
        f"write {STACK}, {STAR} and {TRUTH} (view, angle in radians, shift in Angstrom, structure, junk). "
        "With --session they are as hard as real ones: views that prefer directions, picks off centre, "
        "neighbours in the box, four kinds of junk, and ice, noise, defocus and contrast by micrograph.",
    )  # fmt: skip
    add_output(parser)
    add_config(parser)
    what = parser.add_argument_group("what is imaged (several make a mixed set)")
    what.add_argument("--volume", metavar="FILE", type=Path, nargs="+", help="density maps (.mrc)")
    what.add_argument(
        "--phantom",
        metavar="NAME",
        choices=_PHANTOM_NAMES,
        nargs="+",
        help=f"made in code: {', '.join(_PHANTOM_NAMES)} (default: ribosome)",
    )
    what.add_argument(
        "--weights", metavar="W", type=not_negative, nargs="+", help="share of each (default: equal)"
    )
    images = parser.add_argument_group("images")
    images.add_argument(
        "--session", action="store_true",
        help="as a session at the microscope brings them home; noise, views and optics are drawn by it",
    )  # fmt: skip
    images.add_argument("--particles", metavar="N", type=count, default=1000, help="number of images")
    images.add_argument(
        "--box", metavar="PIXELS", type=count, default=64, help="side of the images in pixels"
    )
    images.add_argument(
        "--pixel-size", metavar="A", type=positive,
        help="Angstrom per pixel (default: that of the volume; for phantoms, what fits the box)",
    )  # fmt: skip
    images.add_argument(
        "--snr", metavar="X", type=positive, default=0.1, help="variance of the signal over that of the noise"
    )
    images.add_argument("--noise", choices=("white", "coloured"), help="spectrum of the noise")
    images.add_argument(
        "--views", metavar="N", type=count, help="number of view directions (default: one for each particle)"
    )
    images.add_argument("--no-rotation", action="store_true", help="do not turn particles in the plane")
    images.add_argument(
        "--max-shift",
        metavar="A",
        type=not_negative,
        help="largest shift off centre, in Angstrom (default: 0; an eighth of the box in a session)",
    )
    images.add_argument(
        "--junk", metavar="X", type=fraction,
        help="share of images that hold no good particle (default: 0; 0.2 in a session)",
    )  # fmt: skip
    optics = parser.add_argument_group("microscope")
    optics.add_argument(
        "--defocus", metavar=("MIN", "MAX"), type=not_negative, nargs=2,
        help="range of the mean defocus in Angstrom, underfocus positive (default: 10000 25000; 8000 22000 "
        "in a session)",
    )  # fmt: skip
    optics.add_argument(
        "--astigmatism", metavar="A", type=not_negative,
        help="largest difference of the two defocus values, in Angstrom",
    )  # fmt: skip
    optics.add_argument("--voltage", metavar="kV", type=positive, help="in kV")
    optics.add_argument("--cs", metavar="mm", type=not_negative, help="spherical aberration in mm")
    parser.set_defaults(**_DRAWN_IN_A_SESSION)
    add_machine(parser.add_argument_group("machine"))
    return parser


def run(options, console):
    """Simulate and write."""
    with RunFolder(options.output, [STACK, STAR, TRUTH], force=options.force) as folder:
        from sklearn_cryoem.datasets import load_volume, make_particles, make_session
        from sklearn_cryoem.io import write_particles

        if options.volume and options.phantom:
            raise CommandError("--volume and --phantom exclude each other. Give one of them.")
        imaged = [load_volume(path) for path in options.volume or []] or options.phantom or ["ribosome"]
        _complete(options)
        settings = {
            "box": options.box,
            "pixel_size": options.pixel_size,
            "snr": options.snr,
            "max_shift": options.max_shift,
            "defocus": tuple(options.defocus),
            "junk_fraction": options.junk,
            "path": folder / STACK,
            "overwrite": options.force,
            "n_jobs": options.jobs,
            "random_state": options.seed,
            "verbose": 0 if options.quiet else 1,
        }
        with folder.timed("simulate"):
            if options.session:
                stack = make_session(imaged, options.particles, **settings)
            else:
                stack = make_particles(
                    imaged,
                    options.particles,
                    **settings,
                    n_views=options.views,
                    in_plane=not options.no_rotation,
                    astigmatism=options.astigmatism,
                    voltage_volts=1e3 * options.voltage,
                    cs_angstrom=1e7 * options.cs,
                    noise=options.noise,
                    weights=options.weights,
                )
        with folder.timed("write"):
            write_particles(stack, folder / STAR, overwrite=options.force)
            folder.write_csv(TRUTH, stack.truth.columns, stack.truth.itertuples(index=False))
            results = {
                "n_particles": len(stack),
                "box_px": stack.box,
                "pixel_size_angstrom": stack.pixel_size,
            }
            folder.write_summary("simulate", options_as_dict(options), results, console.warnings)
    console.say(f"{len(stack):,} particles of {stack.box} px, {stack.pixel_size:g} A/px, in {folder.path}:")
    console.table([
        (STAR, "metadata for RELION and for sklearn-cryoem classify"),
        (STACK, "images"),
        (TRUTH, "what each image really shows"),
    ])  # fmt: skip


def _complete(options):
    """Put in the defaults that depend on what is simulated, and refuse what a session draws by itself."""
    if options.session:
        given = [name for name, default in _DRAWN_IN_A_SESSION.items() if getattr(options, name) != default]
        if given:
            names = ", ".join("--" + name.replace("_", "-") for name in given)
            raise CommandError(
                f"--session draws these by itself: {names}. Leave them out, or leave out --session."
            )
    for name, default in (_SESSION if options.session else _PLAIN).items():
        if getattr(options, name) is None:
            setattr(options, name, default)
