"""The way of the data through one run, shared by `classify` and `demo`: read, align, cluster, write, tell."""

from dataclasses import dataclass

import numpy as np

from sklearn_cryoem.cli._classes import (
    AVERAGES,
    CLASS_FILES,
    CLASS_STAR,
    QUALITY,
    SUGGESTED,
    agreement,
    judge_partition,
    measure_classes,
    repeated_labels,
    tell_suggestion,
    warn_of_partition,
    write_classes,
)
from sklearn_cryoem.cli._estimators import make_aligner, make_clusterer
from sklearn_cryoem.cli._preflight import rehearse
from sklearn_cryoem.cli._resume import UnfinishedRun
from sklearn_cryoem.cli.console import CommandError

LEFT_OUT = "left_out.csv"
MODEL = "model.npz"
ALIGNMENT_AVERAGES, ALIGNMENT_GALLERY = "alignment_averages.mrcs", "alignment_gallery.png"
GALLERY, ATLAS, CONVERGENCE = "gallery.png", "atlas.png", "convergence.png"
_DPI = 160
SMALLEST_BOX = 4


@dataclass
class Outcome:
    """What a run made: aligned particles and the fitted estimators."""

    stack: object  # ParticleStack with poses
    aligner: object  # MAPAligner, or None where the poses of the file were used
    clusterer: object  # SMLClusterer
    labels_name: str  # file name of the labelled particles
    repeated: object = None  # labels of some particles by a second clustering, which has not seen them
    positions: object = None  # latent position of each particle, once known
    quality: object = None  # table of its classes, once measured


def output_names(suffix, *, align=True):
    """Every file of a classification except the summary."""
    names = [labelled_name(suffix), *CLASS_FILES, GALLERY, ATLAS, CONVERGENCE, MODEL]
    return [*names, ALIGNMENT_AVERAGES, ALIGNMENT_GALLERY] if align else names


def labelled_name(suffix):
    """Labelled particles come back in the format they came in; a bare stack gets a STAR file."""
    return "particles.cs" if suffix.lower() in (".cs", ".csg") else "particles.star"


def read(options, folder, console):
    """Read the particles that the options name; return (stack, number of particles left out)."""
    from sklearn_cryoem.io import read_particles

    given = read_particles(
        options.particles,
        images_dir=options.images_dir,
        passthrough=options.passthrough,
        pixel_size=options.pixel_size,
        invert=options.invert,
        rescale=options.rescale,
        ctf=not options.no_ctf,
        normalise=options.normalise and (options.mask_diameter or True),
        clip_hot_pixels=options.clip_hot_pixels,
        permissive=options.permissive,
        verbose=0 if options.quiet else 1,
    )
    stack, report = given if options.permissive else (given, ())
    if len(report):
        _tell_left_out(report, folder, console)
    if options.downsample is not None:
        if not SMALLEST_BOX <= options.downsample <= stack.box:
            raise CommandError(
                f"--downsample is {options.downsample} pixels, expected {SMALLEST_BOX} to {stack.box}, the "
                f"box of the images. Choose a smaller box, or leave it out."
            )
        stack = stack.downsample(options.downsample)
    return stack, len(report)


def _tell_left_out(report, folder, console):
    folder.write_csv(LEFT_OUT, report.columns, report.itertuples(index=False))
    console.warn(
        f"{len(report):,} particles cannot be used and were left out; {LEFT_OUT} lists them. "
        f"The first: {report.iloc[0]['image']}, {report.iloc[0]['problem']}"
    )


def screen(stack, options, folder, console):
    """Look at every image before the fits: leave out what is constant or not finite, mark what is far out.

    Returns
    -------
    stack : ParticleStack
        Screened.
    n_left_out : int
    """
    from sklearn_cryoem._core.exceptions import ParticleDataError

    settings = {
        "noise": "group" if options.noise_groups else "shell",
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


def classify(stack, options, folder):
    """Align and cluster as the options say.

    Parameters
    ----------
    stack : ParticleStack
        What was read.
    options : argparse.Namespace
        With everything that `classify.add_classification` and `add_machine` define.
    folder : RunFolder
        Keeps the times.

    Returns
    -------
    Outcome
    """
    clusterer = make_clusterer(options)
    n_classes = clusterer.validate(stack)  # what it refuses is refused before the hours of an alignment
    aligner = make_aligner(options, stack)
    rehearse(stack, options, folder, n_classes)
    unfinished = UnfinishedRun(folder)
    if aligner is not None:
        with folder.timed("align"):
            aligner = unfinished.fit(aligner, stack)
            stack = stack.with_poses(aligner.poses_)
    with folder.timed("cluster"):
        clusterer = unfinished.fit(clusterer, stack)
    with folder.timed("repeat"):
        repeated = repeated_labels(unfinished, clusterer, stack, options.seed)
    return Outcome(stack, aligner, clusterer, labelled_name(options.particles.suffix), repeated)


def write(outcome, folder, console):
    """Write everything of a run but its summary; return the summary's results."""
    from sklearn.pipeline import make_pipeline

    from sklearn_cryoem.estimators import save_model
    from sklearn_cryoem.io import write_mrc, write_particles

    stack, clusterer = outcome.stack, outcome.clusterer
    with folder.timed("judge"):
        assignment = clusterer.assign(stack)
        outcome.positions = assignment.positions
        outcome.quality = measure_classes(clusterer, stack, assignment, outcome.repeated)
    with folder.timed("write"):
        write_particles(
            stack,
            folder / outcome.labels_name,
            labels=clusterer.labels_,
            posterior=assignment.posterior,
            latent_positions=outcome.positions,
            overwrite=folder.force,
        )
        write_classes(clusterer.class_averages_, stack.pixel_size, outcome.quality, folder)
        steps = [clusterer]
        if outcome.aligner is not None:
            steps = [outcome.aligner, clusterer]
            averages = outcome.aligner.class_averages_
            write_mrc(folder / ALIGNMENT_AVERAGES, averages, stack.pixel_size, overwrite=folder.force)
        save_model(make_pipeline(*steps), folder / MODEL, overwrite=folder.force)
    with folder.timed("draw"):
        results = measure(outcome)
        warn_of_partition(results, console)
        draw(outcome, results["classes"], folder)
    return results


def measure(outcome):
    """What the run found, as plain numbers."""
    stack, clusterer = outcome.stack, outcome.clusterer
    n_classes = len(clusterer.class_averages_)
    results = {
        "n_particles": len(stack),
        "box_px": stack.box,
        "pixel_size_angstrom": stack.pixel_size,
        "n_classes": n_classes,
        "grid_shape": clusterer.grid_shape_,
        "n_classes_with_particles": np.count_nonzero(clusterer.class_sizes_),
        "n_effective_classes": clusterer.n_effective_clusters_,
        "n_iter_cluster": clusterer.n_iter_,
        "converged": clusterer.converged_,
        "log_posterior_per_particle": clusterer.log_posterior_[-1],
        "finest_class_resolution": outcome.quality["resolution"].min(),
    }
    aligner = outcome.aligner
    if aligner is not None:
        results |= {
            "n_references_align": len(aligner.references_),
            "n_classes_align": len(aligner.class_averages_),
            "n_effective_classes_align": aligner.n_effective_clusters_,
            "n_iter_align": aligner.n_iter_,
            "converged_align": aligner.converged_,
            "alignment_resolution": aligner.resolution_,
            "alignment_pass_resolution": aligner.pass_resolution_,
        }
    results["n_outliers"] = np.count_nonzero(stack.outlier)
    results["agreement_of_repeat"] = agreement(
        clusterer.labels_, outcome.repeated, outcome.quality["keep"].to_numpy()
    )
    results |= judge_partition(stack, clusterer.labels_, outcome.quality)
    results["classes"] = {
        "number": np.arange(1, n_classes + 1),
        "size": clusterer.class_sizes_,
        "soft_size": clusterer.soft_class_sizes_,
        "resolution": outcome.quality["resolution"].to_numpy(),
        "latent_position": clusterer.latent_nodes_,
    }
    return results


def draw(outcome, classes, folder):
    """Write the pictures."""
    from sklearn.pipeline import make_pipeline

    from sklearn_cryoem.plotting import plot_class_averages, plot_manifold_atlas

    stack, aligner, clusterer = outcome.stack, outcome.aligner, outcome.clusterer
    gallery = plot_class_averages(
        clusterer.class_averages_,
        counts=classes["size"],
        resolutions=classes["resolution"],
        pixel_size=stack.pixel_size,
        numbers=True,
    )
    atlas = plot_manifold_atlas(
        clusterer.class_averages_,
        latent_nodes=clusterer.latent_nodes_,
        latent_positions=outcome.positions,
        counts=classes["size"],
        topology=clusterer.topology,
    )
    figures = {
        GALLERY: gallery.figure,
        ATLAS: atlas.figure,
        CONVERGENCE: draw_convergence(make_pipeline(*filter(None, (aligner, clusterer))), stack),
    }
    if aligner is not None:
        figures[ALIGNMENT_GALLERY] = draw_alignment(aligner, stack.pixel_size)
    save_figures(figures, folder)


def draw_alignment(aligner, pixel_size):
    """Figure of the classes of an alignment."""
    from sklearn_cryoem.plotting import plot_class_averages

    return plot_class_averages(
        aligner.class_averages_,
        counts=np.bincount(aligner.labels_, minlength=len(aligner.class_averages_)),
        resolutions=aligner.class_resolution_,
        pixel_size=pixel_size,
        numbers=True,
    ).figure


def save_figures(figures, folder):
    """Write figures by file name."""
    for name, figure in figures.items():
        with folder.writing(name) as path:
            figure.savefig(path, dpi=_DPI, pil_kwargs={"compress_level": 4})


def draw_convergence(model, stack):
    """Every fit of the model, one above the other: their objectives do not compare."""
    from matplotlib.figure import Figure

    from sklearn_cryoem.plotting import plot_convergence
    from sklearn_cryoem.plotting.convergence import fits_of

    fits = fits_of(model, stack)
    figure = Figure(figsize=(6.4, 3.6 * len(fits)), layout="constrained")
    for fit, ax in zip(fits, figure.subplots(len(fits), squeeze=False)[:, 0], strict=True):
        plot_convergence(**fit, ax=ax)
    return figure


def tell(results, folder, console):
    """Say what was found and where it is."""
    console.say()
    console.say(
        f"{results['n_particles']:,} particles in {results['n_classes_with_particles']} of "
        f"{results['n_classes']} classes (as many as {results['n_effective_classes']:.0f} equal ones); "
        + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in folder.seconds.items())
    )
    if "n_references_align" in results:
        passes, resolution = results["n_iter_align"], results["alignment_resolution"]
        unit = "px" if results["pixel_size_angstrom"] is None else "A"
        console.say(
            f"aligned with {results['n_references_align']:,} references, united to "
            f"{results['n_classes_align']:,} classes, in {passes} full pass{'es' if passes > 1 else ''}; "
            + (f"the best reference reaches {resolution:.3g} {unit}" if np.isfinite(resolution)
               else "no reference rises above its noise")
        )  # fmt: skip
    tell_suggestion(results, console)
    console.say(f"results in {folder.path}:")
    what = {
        AVERAGES: "class averages, in the order of the class numbers",
        CLASS_STAR: "the same for --ref of relion_refine, with sizes and resolutions",
        QUALITY: "quality of the classes, with rank, suggestion and reasons",
        SUGGESTED: "classes to keep by that, for sklearn-cryoem select",
        GALLERY: "class averages by size, with class number and resolution",
        ATLAS: "class averages on the manifold, density of particles behind",
        CONVERGENCE: "objectives of both fits",
        ALIGNMENT_GALLERY: "classes of the alignment",
        MODEL: "fitted model, for sklearn_cryoem.load_model",
        "summary.json": "parameters, versions, times, sizes and resolutions",
        "run.yaml": "options, to repeat the run with --config",
    }
    labelled = next(name for name in folder.names if name.startswith("particles."))
    written = [(name, text) for name, text in what.items() if (folder / name).exists()]
    console.table([(labelled, "particles with class numbers and poses"), *written])
