"""The way of the data through one run, shared by `classify` and `demo`: read, align, cluster, write, tell."""

import importlib.util
from dataclasses import dataclass

import numpy as np

from sklearn_cryoem.cli.console import CommandError

LEFT_OUT = "left_out.csv"
AVERAGES, MODEL = "class_averages.mrcs", "model.npz"
GALLERY, ATLAS, CONVERGENCE = "gallery.png", "atlas.png", "convergence.png"
_DPI = 160


@dataclass
class Outcome:
    """What a run made: aligned particles and the fitted estimators."""

    stack: object  # ParticleStack with poses
    aligner: object  # MAPAligner, or None where the poses of the file were used
    clusterer: object  # SMLClusterer
    labels_name: str  # file name of the labelled particles


def output_names(suffix):
    """Every file of a classification except the summary."""
    return [labelled_name(suffix), AVERAGES, GALLERY, ATLAS, CONVERGENCE, MODEL]


def labelled_name(suffix):
    """Labelled particles come back in the format they came in; a bare stack gets a STAR file."""
    return "particles.cs" if suffix == ".cs" else "particles.star"


def require_pictures():
    """Say before any work, not after hours of it, that pictures cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CommandError(
            "matplotlib is not installed, and the pictures need it. "
            "Install it with: pip install 'sklearn-cryoem[plot]'"
        )


def read(options, folder, console):
    """Read the particles that the options name; return (stack, number of particles left out)."""
    from sklearn_cryoem.io import read_particles

    given = read_particles(
        options.particles,
        images_dir=options.images_dir,
        pixel_size=options.pixel_size,
        invert=options.invert,
        ctf=not options.no_ctf,
        normalise=options.normalise and (options.mask_diameter or True),
        permissive=options.permissive,
        verbose=0 if options.quiet else 1,
    )
    stack, report = given if options.permissive else (given, ())
    if len(report):
        folder.write_csv(LEFT_OUT, report.columns, report.itertuples(index=False))
        console.warn(
            f"{len(report):,} particles cannot be used and were left out; {LEFT_OUT} lists them. "
            f"The first: {report.iloc[0]['image']}, {report.iloc[0]['problem']}"
        )
    if options.downsample is not None:
        stack = stack.downsample(options.downsample)
    return stack, len(report)


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
    from sklearn_cryoem.estimators import MAPAligner, SMLClusterer

    machine = {
        "n_jobs": options.jobs,
        "random_state": options.seed,
        "verbose": 0 if options.quiet else 1,
    }
    shared = {"mask_diameter": options.mask_diameter, "max_resolution": options.max_resolution}
    aligner = None
    if options.skip_align:
        if stack.poses is None:
            raise CommandError(
                "the particles have no in-plane angles and shifts, which --skip-align relies on. "
                "Leave it out, or give a file with rlnAnglePsi, rlnOriginXAngst and rlnOriginYAngst."
            )
    else:
        aligner = MAPAligner(
            options.align_classes,
            **_given(shared),
            **_given({"max_shift": options.max_shift, "max_iter": options.align_iterations}),
            **machine,
        )
        with folder.timed("align"):
            stack = aligner.fit_transform(stack)
    clusterer = SMLClusterer(
        options.classes,
        n_components=options.latent_dim,
        n_basis=options.basis,
        **_given(shared),
        **_given({"max_iter": options.iterations}),
        **machine,
    )
    with folder.timed("cluster"):
        clusterer.fit(stack)
    return Outcome(stack, aligner, clusterer, labelled_name(options.particles.suffix))


def _given(parameters):
    """Only what the user gave: the estimator knows its own defaults best."""
    return {name: value for name, value in parameters.items() if value is not None}


def write(outcome, folder, console):
    """Write everything of a run but its summary; return the summary's results."""
    from sklearn.pipeline import make_pipeline

    from sklearn_cryoem.estimators import save_model
    from sklearn_cryoem.io import write_mrc, write_particles

    stack, clusterer = outcome.stack, outcome.clusterer
    with folder.timed("write"):
        write_particles(stack, folder / outcome.labels_name, labels=clusterer.labels_, overwrite=folder.force)
        write_mrc(folder / AVERAGES, clusterer.class_averages_, stack.pixel_size, overwrite=folder.force)
        steps = [step for step in (outcome.aligner, clusterer) if step is not None]
        save_model(make_pipeline(*steps), folder / MODEL, overwrite=folder.force)
    with folder.timed("draw"):
        results = measure(outcome)
        draw(outcome, results["classes"], folder)
    return results


def measure(outcome):
    """What the run found, as plain numbers."""
    from sklearn_cryoem.metrics import effective_classes

    stack, clusterer = outcome.stack, outcome.clusterer
    n_classes = len(clusterer.class_averages_)
    effective = effective_classes(clusterer.labels_)
    results = {
        "n_particles": len(stack),
        "box_px": stack.box,
        "pixel_size_angstrom": stack.pixel_size,
        "n_classes": n_classes,
        "n_classes_with_particles": effective.occupied,
        "n_effective_classes": effective.perplexity,
        "n_iter_cluster": clusterer.n_iter_,
        "log_posterior": float(np.ravel(clusterer.log_posterior_)[-1]),
    }
    if outcome.aligner is not None:
        results["n_iter_align"] = outcome.aligner.n_iter_
        results["alignment_resolution"] = outcome.aligner.resolution_
    results["classes"] = {
        "number": np.arange(1, n_classes + 1),
        "size": np.bincount(clusterer.labels_, minlength=n_classes),
        "resolution": class_resolutions(clusterer, stack),
        "latent_position": clusterer.latent_nodes_,
    }
    return results


def draw(outcome, classes, folder):
    """Write the three pictures."""
    from sklearn_cryoem.plotting import plot_class_averages, plot_convergence, plot_manifold_atlas

    stack, clusterer = outcome.stack, outcome.clusterer
    pictures = {
        GALLERY: plot_class_averages(
            clusterer.class_averages_,
            counts=classes["size"],
            resolutions=classes["resolution"],
            pixel_size=stack.pixel_size,
            numbers=True,
        ),
        ATLAS: plot_manifold_atlas(
            clusterer.class_averages_,
            clusterer.latent_nodes_,
            latent_positions=clusterer.transform(stack),
            counts=classes["size"],
        ),
        CONVERGENCE: plot_convergence(clusterer.log_posterior_),
    }
    for name, ax in pictures.items():
        with folder.writing(name) as path:
            ax.figure.savefig(path, dpi=_DPI)


def tell(results, folder, console):
    """Say what was found and where it is."""
    console.say()
    console.say(
        f"{results['n_particles']:,} particles in {results['n_classes_with_particles']} of "
        f"{results['n_classes']} classes (as many as {results['n_effective_classes']:.0f} equal ones); "
        + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in folder.seconds.items())
    )
    console.say(f"results in {folder.path}:")
    what = {
        AVERAGES: "class averages, in the order of the class numbers",
        GALLERY: "class averages by size, with class number and resolution",
        ATLAS: "class averages on the manifold, density of particles behind",
        CONVERGENCE: "objective of the fit",
        MODEL: "fitted model, for sklearn_cryoem.load_model",
        "summary.json": "parameters, versions, times, sizes and resolutions",
    }
    labelled = next(name for name in folder.names if name.startswith("particles."))
    console.table([(labelled, "particles with class numbers and poses"), *what.items()])
