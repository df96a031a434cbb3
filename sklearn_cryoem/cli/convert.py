"""`sklearn-cryoem convert` and `initial-model`: particles and a first volume for other programs."""

from pathlib import Path

import sklearn_cryoem as lib
from sklearn_cryoem._core.files import atomic_path, try_to_write
from sklearn_cryoem.cli import options as opts
from sklearn_cryoem.cli.classify import folder_of_names
from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.run_folder import averages_of_run, check_is_file, quality_of_run

_FIT = [
    ("symmetry", "--symmetry", "GROUP", str, "C1", "C1, C2, .. or D2, D3, .."),
    ("mask_diameter", "--mask-diameter", "A", opts.positive, None,
     "of the particle, Angstrom (default: 0.9 of the box)"),
    ("max_shift", "--max-shift", "A", opts.not_negative, None,
     "of an average, Angstrom (default: 0.05 of the box)"),
    ("max_resolution", "--max-resolution", "A", opts.positive, None,
     "finest detail used, Angstrom (default: 24)"),
]  # fmt: skip


def add_convert(commands):
    """Add `convert` to the parser."""
    parser = opts.new_command(commands, "convert", convert)
    parser.add_argument("input", metavar="INPUT", type=Path, help="a .star, .cs, .csg or .mrcs file")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="a .star, .cs or .mrcs file to write")
    opts.add_files(parser)
    opts.add_options(parser, [
        ("--star-version", None, ("3.0", "3.1"), None,
         "style of the STAR file: one table (RELION up to 3.0), or optics groups and particles (3.1 to 5); "
         "by default that of the input, 3.1 for others"),
        ("--float32", None, bool, False,
         "write the images too, as 32-bit numbers, to one .mrcs file beside the STAR file: for programs "
         "that do not read half precision, as RELION up to 3.1"),
        opts.PIXEL_SIZE,
        ("--no-ctf", None, bool, False, "do without CTF parameters"),
        opts.FORCE,
    ])  # fmt: skip


def convert(options, console):
    """Convert particles between RELION and cryoSPARC.

    Convert a table of particles: .star (RELION 1.x to 5) to .cs (cryoSPARC) and back, or from one style of
    STAR file to another.

    Images are not copied: the new file names them where they are. Names are kept, unless the images would not
    be found by them from the new file; then a STAR file names them from the folder in which the command runs,
    the project's for RELION, or absolutely. With --float32, and in a .mrcs file, the images themselves are
    written. What the new format has no place for is named in a warning.
    """
    _check_paths(options)
    writes_images = options.float32 or options.output.suffix.lower() == ".mrcs"
    stack = lib.io.read_particles(
        options.input,
        images_dir=options.images_dir,
        pixel_size=options.pixel_size,
        ctf=not options.no_ctf,
        passthrough=options.passthrough,
        metadata_only=not writes_images and options.images_dir is None,
        rescale=not writes_images,  # the table says of each particle what size it has
    )
    if options.float32:
        _keep_own_images(stack, options.output)
    elif not writes_images:
        stack = named_for(options.output, stack, [(options.input, options.images_dir)], console)
    lib.io.write_particles(
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
    check_is_file(options.input)
    if options.float32 and options.output.suffix.lower() != ".star":
        raise CommandError(
            f"--float32 writes a STAR file and its images, and {options.output} is none. Give a .star file."
        )
    targets = [options.output] + ([options.output.with_suffix(".mrcs")] if options.float32 else [])
    for path in targets:
        if path.exists() and path.samefile(options.input):
            raise CommandError(f"{path} is the input itself. Choose another name.")
        lib.io.write.check_target(path, overwrite=options.force)


def _keep_own_images(stack, output):
    """Refuse to replace images that are being read, and that the input names."""
    path = output.with_suffix(".mrcs")
    if path.exists() and any(path.samefile(file) for file in lib.io.image_files.image_files(stack)):
        raise CommandError(f"{path} holds the images that are read. Choose another name.")


def named_for(output, stack, places, console):
    """The stack with names by which its images are found from the table `output`; says where names change.

    `places` are from where its images are looked for, one after the other: a table that names them, and the
    folder of the images if they were moved.
    """
    for_cryosparc = output.suffix.lower() == ".cs"  # there names count from the project, wherever that is
    renamed_stack, renamed = stack, {}
    for source, images_dir in places:
        renamed_stack, more = lib.io.rename_images(renamed_stack, source, output, images_dir=images_dir)
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
    missing = lib.io.image_files.missing_files(stack, output)
    if missing:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        console.warn(
            f"{missing[0]}{more} will not be found from {output}, as it was not from where it was named "
            "before. Pass --images-dir, the folder of the images, or write where they are."
        )


# ---------------------------------------------------------------- initial-model
def add_initial_model(commands):
    """Add `initial-model` to the parser."""
    parser = opts.new_command(commands, "initial-model", initial_model)
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a finished run")
    opts.add_output(parser, "MAP", "map to write (.mrc)")
    all_of_them = ("--all", None, bool, False, "take all averages, not only those suggested")
    opts.add_options(parser, [all_of_them], _FIT)
    opts.add_machine(parser.add_argument_group("machine"))


def initial_model(options, console):
    """Make a first volume from the class averages of a run.

    Make a volume from the class averages that a run suggests to keep, as a beginning for a refinement
    elsewhere.

    The hand of the volume cannot be known from projections: try its mirror image, too. Beside the map there
    is a picture: sections, views, and projections below the averages that they should look like.
    """
    averages, pixel_size = averages_of_run(options.folder)
    quality = quality_of_run(options.folder)
    if options.output.suffix.lower() != ".mrc":
        raise CommandError(f"{options.output} is no name of a map, expected one in .mrc. Change the suffix.")
    picture = options.output.with_suffix(".png")
    for path in (options.output, picture):
        try_to_write(path, overwrite=options.force)
    chosen = (quality["size"] > 0) & (quality["resolution"] < float("inf"))
    chosen &= options.all | quality["keep"]
    if not chosen.any():
        raise CommandError(f"{options.folder} suggests no class to keep. Pass --all to take all averages.")
    model = lib.estimators.initial_model(
        averages[chosen.to_numpy()],
        pixel_size,
        sizes=quality.loc[chosen, "size"],
        resolutions=quality.loc[chosen, "resolution"],
        **opts.parameters_from(options, _FIT, opts.MACHINE),
        verbose=0 if options.quiet else 1,
    )
    lib.io.write_mrc(options.output, model.volumes_[0], pixel_size, overwrite=options.force)
    with atomic_path(picture, overwrite=options.force) as path:
        lib.plotting.plot_volume(model).savefig(path)
    scores = ", ".join(f"{score:.2f}" for score in model.start_scores_)
    console.say(f"{chosen.sum()} class averages; log likelihood of the starts: {scores}")
    console.say(f"{options.output}: halves agree up to {model.volume_resolution_[0]:.3g} A; {picture}")
