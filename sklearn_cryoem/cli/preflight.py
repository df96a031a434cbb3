"""Before the fits: particles are read and looked at, and what would fail hours later is tried now."""

import importlib.util
import io
import math
import time
import warnings
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version

import numpy as np

import sklearn_cryoem as lib
from sklearn_cryoem._core.files import check_room
from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.cli.console import CommandError, with_options
from sklearn_cryoem.cli.options import READING, parameters_from
from sklearn_cryoem.cli.results import LEFT_OUT, MODEL, labelled_name, write_classes
from sklearn_cryoem.cli.run_folder import UNFINISHED

_MIN_BOX = 4  # pixels, of --downsample
_EXTRA = "cli"  # what the commands need beside the library's own dependencies
_REFERENCES_A_CLASS = 2.5  # of an aligner, where nobody asked for another number
# What `classify` takes, in visits of an image by a mini-batch: the last poses, and the clustering with all
# that follows; of a look at the signal: all looks. Seconds besides, and what one core does alone. Measured.
_FIND, _CLUSTER, _LOOKS, _FIXED, _SERIAL = 5, 10, 2.2, 15.0, 0.05
_COPIES = 10  # of all averages and references: in files, models and the states of fits; measured


def read(options, folder, console):
    """Read the particles that the options name; return (stack, number of particles left out)."""
    settings = parameters_from(options, READING)
    settings.pop("downsample", None)
    settings["ctf"] = not options.no_ctf
    settings["normalise"] = options.normalise and (options.mask_diameter or True)
    given = lib.io.read_particles(
        options.particles,
        images_dir=options.images_dir,
        passthrough=options.passthrough,
        verbose=0 if options.quiet else 1,
        **settings,
    )
    stack, report = given if options.permissive else (given, ())
    if len(report):
        _tell_left_out(report, folder, console)
    if options.downsample is not None:
        if not _MIN_BOX <= options.downsample <= stack.box:
            raise CommandError(
                f"--downsample is {options.downsample} pixels, expected {_MIN_BOX} to {stack.box}, the "
                f"box of the images. Choose a smaller box, or leave it out."
            )
        stack = stack.downsample(options.downsample)
    return stack, len(report)


def _tell_left_out(report, folder, console):
    folder.write_csv(LEFT_OUT, report)
    console.warn(
        f"{len(report):,} particles cannot be used and were left out; {LEFT_OUT} lists them. "
        f"The first: {report.iloc[0]['image']}, {report.iloc[0]['problem']}"
    )


def screen(stack, options, folder, console):
    """Look at every image before the fits: leave out what is constant or not finite, mark outliers.

    Returns
    -------
    stack : ParticleStack
        Screened.
    n_left_out : int
    """
    # an alignment has one noise level for all particles, so their grey values are normalised for it
    settings = {
        "noise": "group" if options.noise_groups and options.skip_align else "shell",
        "n_jobs": options.jobs,
        "verbose": 0 if options.quiet else 1,
    }
    with folder.timed("look"):
        try:
            return stack.screen(options.mask_diameter, **settings), 0
        except ParticleDataError:
            unusable = stack.unusable(verbose=settings["verbose"])
            if not 0 < len(unusable) < len(stack):
                raise
        report = unusable.assign(row=unusable["row"] + 1).rename(columns={"row": "particle"})
        _tell_left_out(report, folder, console)
        sound = stack[np.setdiff1d(np.arange(len(stack)), unusable["row"])]
        return sound.screen(options.mask_diameter, **settings), len(unusable)


def crop(stack, options, folder):
    """Crop particles to the box that their signal needs, and note it in --downsample, unless that was given.

    Returns
    -------
    ParticleStack
    """
    with folder.timed("look"):
        small = lib.particles.to_working_box(stack, options.max_resolution, n_jobs=options.jobs)
    if small is not stack:
        options.downsample = small.box
    return small


def check_machine(console):
    """Raise if pictures cannot be drawn; warn of dependencies that are older than this package declares.

    Parameters
    ----------
    console : Console
        Says the warnings.

    Raises
    ------
    CommandError
        If matplotlib is missing, broken, or cannot draw with the settings that it finds.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError(
            "matplotlib is not installed, and the pictures need it. "
            "Install it with: pip install 'sklearn-cryoem[plot]'"
        )
    for name, found, wanted in outdated():
        console.warn(
            f"{name} {found} is installed, and sklearn-cryoem is made for {name}{wanted}: what fails may be "
            f"due to that. Install it with: pip install '{name}{wanted}'"
        )
    try:
        from sklearn_cryoem.plotting import plot_class_averages

        quality = {"size": [3], "resolution": [8.0], "keep": [False]}
        picture = plot_class_averages(np.eye(8)[np.newaxis], quality=quality, numbers=True)
        picture.savefig(io.BytesIO(), format="png", dpi=20)
    except Exception as error:  # of matplotlib, Pillow, fonts, LaTeX or what matplotlibrc asks for
        raise CommandError(
            f"pictures cannot be drawn here ({type(error).__name__}: {' '.join(str(error).split())}). "
            "Correct or remove the matplotlibrc file in use, or install matplotlib again: pip install "
            "--force-reinstall matplotlib"
        ) from error


def outdated():
    """Dependencies that are installed in a version older than declared, as (name, version, wanted)."""
    from packaging.requirements import Requirement  # a dependency of matplotlib

    found = []
    with suppress(PackageNotFoundError):  # of the package itself, run from its sources
        for needed in map(Requirement, requires("sklearn-cryoem")):
            if needed.marker is not None and not needed.marker.evaluate({"extra": _EXTRA}):
                continue
            with suppress(PackageNotFoundError):  # what is missing is said where it is needed
                installed = version(needed.name)
                if not needed.specifier.contains(installed, prereleases=True):
                    found.append((needed.name, installed, str(needed.specifier)))
    return found


def check_options(options, stack, console):
    """Refuse or warn of lengths and numbers that do not go with the particles.

    Parameters
    ----------
    options : argparse.Namespace
        With everything that `options.add_classification` defines.
    stack : ParticleStack
        What was read.
    console : Console
        Says the warnings.

    Raises
    ------
    CommandError
        If there would be more classes than particles, or shifts beyond half the box.
    """
    n_classes = math.prod(options.classes) if isinstance(options.classes, tuple) else options.classes
    if n_classes is not None and n_classes > len(stack):
        raise CommandError(
            f"--classes asks for {n_classes:,} classes of {len(stack):,} particles. Ask for fewer: one class "
            f"for every 20 to 100 particles is a good start."
        )
    unit = "px" if stack.pixel_size is None else "A"
    pixel = stack.pixel_length
    side = stack.box * pixel
    shift, finest = options.max_shift, options.max_resolution
    if shift is not None and shift > side / 2 and not options.skip_align:
        raise CommandError(
            f"--max-shift is {shift:g} {unit}, more than half the box ({side / 2:.4g} {unit}). Give how far "
            f"particles are off the centre of their boxes, at most."
        )
    if finest is not None and finest < 2 * pixel:
        console.warn(
            f"--max-resolution {finest:g} {unit} is finer than the pixels hold; {2 * pixel:.4g} {unit} is "
            f"the limit, and is taken."
        )


def warn_about_particles(stack, console, *, mask_diameter=None, pixel_size=None):
    """Look at some particles and warn of what looks wrong with them.

    Parameters
    ----------
    stack : ParticleStack
        What was read.
    console : Console
        Says the warnings.
    mask_diameter : float or None
        That the user asked for.
    pixel_size : float or None
        That the user gave, who then knows that the files say otherwise.

    Returns
    -------
    list of Finding
        What was warned of.
    """
    found = lib.quality.check_particles(stack, mask_diameter=mask_diameter, warn=False)
    if pixel_size is not None:
        found = [finding for finding in found if finding.name != "pixel-size-differs"]
    for finding in found:
        console.warn(with_options(str(finding), console.options))
    return found


def seconds_of_classification(stack, n_cores):
    """How long `classify` takes as it comes, by a few mini-batches of an alignment on one core.

    Parameters
    ----------
    stack : ParticleStack
        All of them.
    n_cores : int
        That will be used.
    """
    n, whole = len(stack), lib.estimators.MAPAligner()
    n_references = lib.estimators.map_aligner.number_of_references(whole.n_clusters, None, n, False)
    batch_size = lib.estimators.map_aligner.batch_size_for(n_references)
    few = stack[np.unique(np.linspace(0, n - 1, batch_size).astype(int))]
    few = few.with_outliers(np.zeros(len(few), dtype=bool))
    started = time.process_time()
    small = lib.particles.to_working_box(few)
    look = _LOOKS * (time.process_time() - started) / len(few)
    aligner = lib.estimators.MAPAligner(n_references=n_references)
    visit, batches = lib.estimators.map_aligner.timed_visits(aligner, small)
    serial = _SERIAL + (1.0 - _SERIAL) / n_cores
    return _FIXED + serial * (batches + n * (look + visit * (whole.max_iter + _FIND + _CLUSTER)))


def rehearse(clusterer, stack, options, folder, n_classes):
    """Write what the run will write, of made-up results, and remove it; see that there is room for the rest.

    Whatever stands in the way of the last file stands in the way of this one: a name that the format cannot
    hold, a field that it lacks, versions that do not go together, a folder that is read-only, a quota.

    Parameters
    ----------
    clusterer : SMLClusterer
        Not fitted; it stands for the model that will be saved.
    stack : ParticleStack
        What was read.
    options : argparse.Namespace
        With everything that `options.add_classification` defines.
    folder : RunFolder
        The folder of the run.
    n_classes : int
        At most so many classes will be written.

    Raises
    ------
    CommandError
        If they cannot be written.
    """
    n_references = 0
    if not options.skip_align:
        n_references = options.align_references or math.ceil(_REFERENCES_A_CLASS * options.align_classes)
    averages = 4 * (n_classes + min(n_references, len(stack))) * stack.box**2
    trial = folder
    try:
        with folder.trial() as trial, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again, with the results they are about
            _write_made_up(clusterer, stack, options, trial)
            written = sum(path.stat().st_size for path in trial.path.iterdir())
        check_room(folder.path, 2 * written + _COPIES * averages)  # labels and poses are in models, too
    except (OSError, ValueError, TypeError, LookupError, AttributeError, ImportError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        reason = reason.replace(f"{UNFINISHED}/{trial.path.name}/", "")  # as the file will be called
        raise CommandError(
            f"the results could not be written, which was tried before the fits: {with_options(reason)}"
        ) from error


def _write_made_up(clusterer, stack, options, trial):
    n, nothing = len(stack), np.zeros(len(stack), dtype=np.int64)
    if not options.skip_align:
        mirrored = np.full(n, options.mirror)
        stack = stack.with_poses(lib.particles.Poses(np.zeros(n), np.zeros((n, 2)), mirrored))
    lib.io.write_particles(
        stack,
        trial / labelled_name(options.particles.suffix),
        labels=nothing,
        posterior=nothing,
        latent_positions=np.zeros((n, 3)),
    )
    quality = lib.quality.class_quality(nothing[:2], stack[:2])
    write_classes(np.zeros((1, stack.box, stack.box)), stack.pixel_size, quality, trial)
    lib.estimators.save_model(clusterer, trial / MODEL)
