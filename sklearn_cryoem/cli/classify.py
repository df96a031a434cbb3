"""`sklearn-cryoem classify` and `deep`: read, align, cluster, measure, write back."""

import math
import warnings
from pathlib import Path

import numpy as np

import sklearn_cryoem as lib
from sklearn_cryoem.cli import options as opts
from sklearn_cryoem.cli import preflight
from sklearn_cryoem.cli import results as outputs
from sklearn_cryoem.cli.console import CommandError
from sklearn_cryoem.cli.run_folder import RunFolder, check_is_file

_MAP_SUFFIXES = (".mrc", ".map", ".ccp4")
# Particles of the second clustering, and particles a class, whichever is more: as many tell whether classes
# come out again.
_REPEATED_PARTICLES, _REPEATED_A_CLASS = 10_000, 50

_FULL_AVERAGES = (
    "--full-averages", None, bool, False,
    f"write {outputs.FULL_AVERAGES} as well: averages in the box of the particles, not of the fits",
)  # fmt: skip


def add_classify(commands):
    """Add `classify` to the parser."""
    parser = opts.new_command(commands, "classify", classify)
    opts.add_particles(parser)
    opts.add_options(parser, [_FULL_AVERAGES])
    opts.add_classification(parser)
    opts.add_machine(parser.add_argument_group("machine"))


def add_deep(commands):
    """Add `deep` to the parser."""
    parser = opts.new_command(commands, "deep", deep)
    opts.add_particles(parser)
    opts.add_options(parser, [_FULL_AVERAGES])
    opts.add_options(parser.add_argument_group("sub-classes"), opts.SUBCLASSES)
    opts.add_classification(parser, is_deep=True)
    opts.add_machine(parser.add_argument_group("machine"))


def classify(options, console, *, keep_states=False):
    """Align particles, cluster them, write labels, class averages and pictures.

    Align particle images without a reference (MAPAligner), cluster them on a manifold (SMLClusterer), and
    write the labelled particles, class averages, pictures, model and summary.

    The class of each particle is written as rlnClassNumber (counted from 1) into the labelled particles;
    class averages stand in the same order in class_averages.mrcs. The model is loaded with
    sklearn_cryoem.load_model.
    """
    return _run(options, console, fit_flat, deep=False, keep_states=keep_states)


def deep(options, console):
    """Divide each class into sub-classes, as many as its particles can feed.

    Classify particles (MAPAligner; SMLClusterer with --skip-align), then cluster those of each class on a
    manifold of their own (DeepClusterer).

    Sub-classes are numbered through, class by class; their numbers are written as rlnClassNumber (from 1 on),
    and class_averages.mrcs has the same order. tree.json tells which class each is part of. With --skip-align
    the first classes are --classes of the clusterer, otherwise --align-classes of the alignment; by default
    one for every ten times --images-per-subclass particles, 2 to 50.
    """
    _run(options, console, fit_deep, deep=True)


def _run(options, console, fit, *, deep, keep_states=False):
    """Do all of a run; return its Outcome."""
    check_is_file(options.particles)
    suffix, in_full = options.particles.suffix, getattr(options, "full_averages", False)
    names = outputs.output_names(suffix, align=not options.skip_align, deep=deep)
    names += [outputs.FULL_AVERAGES] * in_full
    with RunFolder(options.output, [*names, outputs.LEFT_OUT], force=options.force) as folder:
        preflight.check_machine(console)
        with folder.timed("read"):
            stack, n_left_out = preflight.read(options, folder, console)
        console.say(f"{stack!r}")
        if deep:
            choose_first_classes(options, len(stack), console)
        preflight.check_options(options, stack, console)
        preflight.warn_about_particles(
            stack, console, mask_diameter=options.mask_diameter, pixel_size=options.pixel_size
        )
        stack, n_unusable = preflight.screen(stack, options, folder, console)
        whole, stack = stack, preflight.crop(stack, options, folder)
        outcome = fit(stack, options, folder, console)
        whole = whole if in_full else None
        results = outputs.write(outcome, suffix, folder, console, whole=whole)
        results["n_left_out"] = n_left_out + n_unusable
        folder.write_summary(options, results, console.warnings, keep_states=keep_states)
    outputs.tell(results, folder, console, files=not keep_states)
    if not keep_states:
        written = folder / outputs.labelled_name(suffix)
        _tell_where_images_are(written, stack, options, console)
    return outcome


def _tell_where_images_are(written, stack, options, console):
    """Image names keep the form they came in, so particles in another folder may not find them by it."""
    _, renamed = lib.io.rename_images(stack, options.particles, written, images_dir=options.images_dir)
    if renamed:
        folder = options.images_dir or folder_of_names(renamed)
        console.say(
            f"image names in {written} are those of the input; to read it where it is, pass "
            f"--images-dir {folder} (images_dir= in Python)"
        )


def folder_of_names(renamed):
    """The folder that old names count from, of names by which the same files are found from elsewhere."""
    old, new = next(iter(renamed.items()))
    return Path(str(Path(new)).removesuffix(str(Path(old))))


# ---------------------------------------------------------------- estimators
def make_clusterer(options):
    """SMLClusterer with the options of `options.add_classification`."""
    return lib.estimators.SMLClusterer(
        noise="group" if options.noise_groups else "shell",
        **opts.parameters_from(options, opts.ALIGNMENT_AND_CLUSTERING, opts.SHAPE, opts.CLUSTERING),
        **_machine(options),
    )


def make_aligner(options, stack):
    """MAPAligner with the options of `options.add_classification`, or None with --skip-align.

    Raises
    ------
    CommandError
        If alignment is to be skipped, but the particles have no poses.
    """
    if not options.skip_align:
        parameters = opts.parameters_from(options, opts.ALIGNMENT_AND_CLUSTERING, opts.ALIGNMENT)
        for name in {"angle_range", "angle_sigma"} & parameters.keys():
            parameters[name] = math.radians(parameters[name])
        if "init" in parameters:
            parameters["init"] = read_references(stack, parameters)
            parameters["n_clusters"] = min(parameters["n_clusters"], len(parameters["init"]))
        return lib.estimators.MAPAligner(**parameters, **_machine(options))
    if stack.poses is None:
        raise CommandError(
            "the particles have no in-plane angles and shifts, which --skip-align relies on. "
            "Leave it out, or give a file with rlnAnglePsi, rlnOriginXAngst and rlnOriginYAngst."
        )
    return None


def read_references(stack, parameters):
    """Averages, or projections of a map at evenly spread views, in the box and pixels of particles.

    Parameters
    ----------
    stack : ParticleStack
        The particles.
    parameters : dict
        Of a MAPAligner; `init` is the file.
    """
    from sklearn_cryoem.projections.views import view_angles

    path, box, pixel_size = parameters["init"], stack.box, stack.pixel_size
    if not path.exists():
        raise CommandError(f"there is no {path}. Check the path given to --ref.")
    if pixel_size is None:
        raise CommandError("--ref needs particles of known pixel size. Give it with --pixel-size.")
    if path.suffix in _MAP_SUFFIXES:
        mirror = parameters.get("mirror", False)
        number_of = lib.estimators.map_aligner.number_of_references
        n = number_of(parameters["n_clusters"], parameters.get("n_references"), len(stack), mirror)
        views = view_angles(n, "D1" if mirror else "C1")  # opposite views are mirror images: half a sphere
        volume = lib.datasets.volumes.centred(lib.datasets.load_volume(path))
        return lib.datasets.project(volume, *views.T, box=box, pixel_size=pixel_size)
    return lib.particles.rescale(lib.read_particles(path), pixel_size, box).read()


def _machine(options):
    return {**opts.parameters_from(options, opts.MACHINE), "verbose": 0 if options.quiet else 1}


# ---------------------------------------------------------------- fits
def fit_flat(stack, options, folder, console):
    """Align and cluster as the options say; return an Outcome."""
    clusterer = make_clusterer(options)
    n_classes = clusterer.validate(stack)  # what it refuses is refused before the hours of an alignment
    aligner = make_aligner(options, stack)
    preflight.rehearse(clusterer, stack, options, folder, n_classes)
    if aligner is not None:
        with folder.timed("align"):
            aligner = folder.fit(aligner, stack, folder.earlier_fits(options.config))
            stack = stack.with_poses(aligner.poses_)
    with folder.timed("cluster"):
        clusterer = folder.fit(clusterer, stack)
    with folder.timed("repeat"):
        repeated = repeated_labels(folder, clusterer, stack, options.seed)
    with folder.timed("judge"):
        assignment = clusterer.assign(stack)
        if aligner is not None:  # of the class in this pose, times that of what the alignment saw, Eq. (4.20)
            posterior = np.maximum(assignment.posterior * aligner.class_posterior_, 1.0 / n_classes)
            assignment = assignment._replace(posterior=posterior)
    return outputs.Outcome(stack, clusterer, aligner, repeated, assignment)


def repeated_labels(folder, clusterer, stack, seed):
    """Cluster some of the particles once more, and let that label others, which it has not seen.

    On the same particles noise that was aligned once comes together again, whatever the start: two fits of
    all of 1,000 images of noise agree at 0.4, and at 0.03 as here.

    Parameters
    ----------
    folder : RunFolder
        Keeps the state of the fit.
    clusterer : SMLClusterer
        Fitted.
    stack : ParticleStack
        Aligned particles.
    seed : int or None
        Seed of the run.

    Returns
    -------
    labels : ndarray of shape (n_images,), int
        -1 for particles that have none, those that the repeat has learned from among them.
    """
    from sklearn.base import clone

    labels = np.full(len(stack), -1)
    sound = np.arange(len(stack)) if stack.outlier is None else np.flatnonzero(~stack.outlier)
    enough = max(_REPEATED_PARTICLES, _REPEATED_A_CLASS * len(clusterer.class_averages_))
    size = min(len(sound) // 2, enough)
    if size < 2:
        return labels
    drawn = np.random.default_rng(seed).permutation(sound)
    learned, others = np.sort(drawn[:size]), np.sort(drawn[size : 2 * size])
    other_seed = None if seed is None else seed + 1
    repeat = clone(clusterer).set_params(init="random", random_state=other_seed, cache_folder=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the first fit has warned about these particles
        labels[others] = folder.fit(repeat, stack[learned]).predict(stack[others])
    return labels


def choose_first_classes(options, n_particles, console):
    """Fill in how many first classes there are to be, where the user has not said it."""
    if not options.skip_align and options.classes is not None:
        console.warn(
            "--classes is not used without --skip-align: first classes are --align-classes, and "
            "sub-classes follow from --images-per-subclass."
        )
        options.classes = None
    n_first = lib.estimators.deep_clusterer.n_first_classes(n_particles, options.images_per_subclass)
    if not options.skip_align:
        options.align_classes = options.align_classes or n_first


def fit_deep(stack, options, folder, console):
    """Classify and divide each class as the options say; return an Outcome."""
    from sklearn.base import clone

    clusterer = make_clusterer(options)
    clusterer.validate(stack)
    first, per_class = make_aligner(options, stack), options.images_per_subclass
    n_first = lib.estimators.deep_clusterer.n_first_classes(len(stack), per_class)
    if first is not None or options.classes is not None:
        first = first or clusterer
        n_first = int(np.prod(options.classes if options.skip_align else options.align_classes))
    preflight.rehearse(clusterer, stack, options, folder, len(stack) // per_class + n_first)
    if first is not None:
        with folder.timed("classify"):
            folder.fit(clone(first), stack, folder.earlier_fits(options.config))
    model = lib.estimators.DeepClusterer(
        first,  # its fit is found where it was kept; poses are not searched again
        make_clusterer(options).set_params(verbose=0, cache_folder=None),
        **opts.parameters_from(options, opts.SUBCLASSES),
        **_machine(options),
    )
    with folder.timed("divide"):
        model = folder.fit(model, stack)
    if all(fitted is None for fitted in model.clusterers_):
        fewer = "--classes" if options.skip_align else "--align-classes"
        largest = np.bincount(model.first_labels_).max()
        smallest = options.min_class_size or 2 * options.images_per_subclass
        console.warn(
            f"No class was divided: the largest has {largest:,} particles, and classes of fewer than "
            f"{smallest:,} stay whole. Take fewer {fewer}, or a smaller --images-per-subclass and "
            "--min-class-size."
        )
    aligner = None if options.skip_align else model.first_
    return outputs.Outcome(stack.with_poses(model.poses_), model, aligner)
