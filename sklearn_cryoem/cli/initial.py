"""`sklearn-cryoem initial-model`: a first volume from the class averages of a finished run."""

from pathlib import Path

from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.options import add_machine, new_command, not_negative, positive
from sklearn_cryoem.cli.results import AVERAGES, QUALITY

_EPILOG = """\
The hand of the volume cannot be known from projections: try its mirror image, too. Beside the map there is a
picture: sections, views, and projections below the averages that they should look like.
"""


def add_initial_model(commands):
    """Add `initial-model` to the parser; return its own parser."""
    parser = new_command(
        commands, "initial-model", initial_model,
        summary="make a first volume from the class averages of a run",
        description="Make a volume from the class averages that a run suggests to keep, as a beginning for a "
        "refinement elsewhere.",
        epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a finished run")
    parser.add_argument("-o", "--output", metavar="MAP", type=Path, required=True, help="map to write (.mrc)")
    parser.add_argument("--force", action="store_true", help="replace a map that is there")
    parser.add_argument("--all", action="store_true", help="take all averages, not only those suggested")
    parser.add_argument(
        "--symmetry", metavar="GROUP", default="C1", help="C1, C2, .. or D2, D3, .. (default: %(default)s)"
    )
    parser.add_argument(
        "--mask-diameter",
        metavar="A",
        type=positive,
        help="of the particle, Angstrom (default: 0.9 of the box)",
    )
    parser.add_argument(
        "--max-shift",
        metavar="A",
        type=not_negative,
        help="of an average, Angstrom (default: 0.05 of the box)",
    )
    parser.add_argument(
        "--max-resolution", metavar="A", type=positive, help="finest detail used, Angstrom (default: 24)"
    )
    add_machine(parser.add_argument_group("machine"))
    return parser


def initial_model(options, console):
    """Read averages, fit, write the map and its picture."""
    import pandas as pd

    from sklearn_cryoem import estimators
    from sklearn_cryoem._core.files import atomic_path, try_to_write
    from sklearn_cryoem.io import read_mrc, write_mrc
    from sklearn_cryoem.plotting.volumes import plot_volume

    for name in (AVERAGES, QUALITY):
        if not (options.folder / name).exists():
            raise CommandError(f"{options.folder} holds no {name}. Give the --output of a finished run.")
    if options.output.suffix.lower() != ".mrc":
        raise CommandError(f"{options.output} is no name of a map, expected one in .mrc. Change the suffix.")
    picture = options.output.with_suffix(".png")
    for path in (options.output, picture):
        if path.exists() and not options.force:
            raise CommandError(f"{path} exists. Choose another name, or pass --force to replace it.")
        try_to_write(path, overwrite=options.force)
    averages, pixel_size = read_mrc(options.folder / AVERAGES)
    quality = pd.read_csv(options.folder / QUALITY)
    chosen = (quality["size"] > 0) & (quality["resolution"] < float("inf"))
    chosen &= True if options.all else quality["keep"]
    if not chosen.any():
        raise CommandError(f"{options.folder} suggests no class to keep. Pass --all to take all averages.")
    names = ("mask_diameter", "max_shift", "max_resolution")
    wanted = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    model = estimators.initial_model(
        averages[chosen.to_numpy()],
        pixel_size,
        sizes=quality.loc[chosen, "size"],
        resolutions=quality.loc[chosen, "resolution"],
        symmetry=options.symmetry,
        n_jobs=options.jobs,
        random_state=options.seed,
        verbose=0 if options.quiet else 1,
        **wanted,
    )
    write_mrc(options.output, model.volumes_[0], pixel_size, overwrite=options.force)
    with atomic_path(picture, overwrite=options.force) as path:
        plot_volume(model).savefig(path)
    scores = ", ".join(f"{score:.2f}" for score in model.start_scores_)
    console.say(f"{chosen.sum()} class averages; log likelihood of the starts: {scores}")
    console.say(f"{options.output}: halves agree up to {model.volume_resolution_[0]:.3g} A; {picture}")
