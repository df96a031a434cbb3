"""`sklearn-cryoem deep`: classes, then sub-classes inside each by its population."""

import json
from pathlib import Path

import numpy as np

from sklearn_cryoem.cli._arguments import add_machine, add_output, count, new_command
from sklearn_cryoem.cli._classes import (
    CLASS_FILES,
    CLASS_STAR,
    QUALITY,
    SUGGESTED,
    judge_partition,
    tell_suggestion,
    warn_of_partition,
    write_classes,
)
from sklearn_cryoem.cli._config import add_config
from sklearn_cryoem.cli._outputs import RunFolder, as_json, options_as_dict
from sklearn_cryoem.cli._resume import UnfinishedRun
from sklearn_cryoem.cli.classify import add_classification, add_reading
from sklearn_cryoem.cli.console import CommandError

TREE = "tree.json"

_EPILOG = """\
Sub-classes are numbered through, class by class; their numbers are written as rlnClassNumber (from 1 on),
and class_averages.mrcs has the same order. tree.json tells which class each is part of. With --skip-align the
first classes are --classes of the clusterer, otherwise --align-classes of the alignment; by default one for
every ten times --images-per-subclass particles, 2 to 50.
"""


def add_parser(commands):
    """Add the command to the parser; return its own parser."""
    parser = new_command(
        commands, "deep", run,
        summary="divide each class into sub-classes, as many as its particles can feed",
        description="Classify particles (MAPAligner; SMLClusterer with --skip-align), then cluster those of "
        "each class on a manifold of their own (DeepClusterer).",
        epilog=_EPILOG,
    )  # fmt: skip
    parser.add_argument("particles", metavar="PARTICLES", type=Path, help="a .star, .cs or .mrcs file")
    add_output(parser)
    add_config(parser)
    add_reading(parser.add_argument_group("reading"))
    deep = parser.add_argument_group("sub-classes")
    deep.add_argument(
        "--images-per-subclass", metavar="N", type=count, default=30,
        help="a class gets a sub-class for every so many particles",
    )  # fmt: skip
    deep.add_argument(
        "--min-class-size", metavar="N", type=count,
        help="smaller classes stay whole (default: twice --images-per-subclass)",
    )  # fmt: skip
    deep.add_argument("--max-subclasses", metavar="N", type=count, help="sub-classes of a class, at most")
    add_classification(parser)
    parser.set_defaults(align_classes=None, classes=None)  # as many as the population feeds; see `run`
    add_machine(parser.add_argument_group("machine"))
    return parser


def run(options, console):
    """Classify, divide and write."""
    from sklearn_cryoem.cli import _advice, _workflow
    from sklearn_cryoem.cli._preflight import check_machine

    if not options.particles.exists():
        raise CommandError(f"there is no {options.particles}. Check the path.")
    names = output_names(options.particles.suffix, align=not options.skip_align)
    with RunFolder(options.output, [*names, _workflow.LEFT_OUT], force=options.force) as folder:
        check_machine(console)
        with folder.timed("read"):
            stack, n_left_out = _workflow.read(options, folder, console)
        console.say(f"{stack!r}")
        if not options.skip_align and options.classes is not None:
            console.warn(
                "--classes is not used without --skip-align: first classes are --align-classes, and "
                "sub-classes follow from --images-per-subclass."
            )
        choose_first_classes(options, len(stack))
        if options.skip_align:
            _advice.check_options(options, stack, console)
        _advice.question_particles(
            stack, console, mask_diameter=options.mask_diameter, pixel_size=options.pixel_size
        )
        stack, n_unusable = _workflow.screen(stack, options, folder, console)
        deep, stack = divide(stack, options, folder)
        if hint := undivided(deep, options):
            console.warn(hint)
        results = write(deep, stack, options, folder)
        warn_of_partition(results, console)
        results["n_left_out"] = n_left_out + n_unusable
        folder.write_summary("deep", options_as_dict(options), results, console.warnings)
    tell(results, deep, folder, console)


def choose_first_classes(options, n_particles):
    """Fill in how many first classes there are to be, where the user has not said it."""
    from sklearn_cryoem.estimators.deep_clusterer import n_first_classes

    n_first = n_first_classes(n_particles, options.images_per_subclass)
    options.align_classes = options.align_classes or n_first
    options.classes = options.classes or n_first


def most_classes(options, n_particles):
    """Number of classes that there can be in the end, first classes that stay whole among them."""
    first = options.classes if options.skip_align else options.align_classes
    return n_particles // options.images_per_subclass + int(np.prod(first))


def undivided(deep, options):
    """What to say where no class was large enough to be divided; empty where one was."""
    if any(clusterer is not None for clusterer in deep.clusterers_):
        return ""
    fewer = "--classes" if options.skip_align else "--align-classes"
    smallest = options.min_class_size or 2 * options.images_per_subclass
    return (
        f"No class was divided: the largest has {np.bincount(deep.first_labels_).max():,} particles, and "
        f"classes of fewer than {smallest:,} stay whole. Take fewer {fewer}, or a smaller "
        "--images-per-subclass and --min-class-size."
    )


def output_names(suffix, *, align):
    """Every file of a run except the summary."""
    from sklearn_cryoem.cli import _workflow as flow

    names = [flow.labelled_name(suffix), *CLASS_FILES, TREE, flow.GALLERY, flow.ATLAS, flow.CONVERGENCE]
    return [*names, flow.MODEL, *([flow.ALIGNMENT_AVERAGES, flow.ALIGNMENT_GALLERY] if align else [])]


def divide(stack, options, folder):
    """Fit a DeepClusterer as the options say; return it with the particles in its poses."""
    from sklearn.base import clone

    from sklearn_cryoem.cli._estimators import machine, make_aligner, make_clusterer
    from sklearn_cryoem.cli._preflight import rehearse
    from sklearn_cryoem.estimators import DeepClusterer

    clusterer = make_clusterer(options)
    clusterer.validate(stack)
    first = make_aligner(options, stack) or clusterer
    rehearse(stack, options, folder, most_classes(options, len(stack)))
    unfinished = UnfinishedRun(folder)
    with folder.timed("classify"):
        unfinished.fit(clone(first), stack)
    deep = DeepClusterer(
        first,  # of which the fit just made is found where it was kept; poses are not searched again
        make_clusterer(options).set_params(verbose=0, cache_folder=None),
        images_per_subclass=options.images_per_subclass,
        min_class_size=options.min_class_size,
        max_subclasses=options.max_subclasses,
        **machine(options),
    )
    with folder.timed("divide"):
        deep = unfinished.fit(deep, stack)
    return deep, stack.with_poses(deep.poses_)


def write(deep, stack, options, folder):
    """Write everything of a run but its summary; return the summary's results."""
    from sklearn_cryoem.cli import _workflow as flow
    from sklearn_cryoem.estimators import save_model
    from sklearn_cryoem.io import write_mrc, write_particles
    from sklearn_cryoem.quality import class_quality

    labelled = folder / flow.labelled_name(options.particles.suffix)
    with folder.timed("judge"):
        quality = class_quality(
            deep,
            stack,
            mask_diameter=options.mask_diameter,
            max_resolution=options.max_resolution,
            n_jobs=options.jobs,
        )
    with folder.timed("write"):
        write_particles(stack, labelled, labels=deep.labels_, overwrite=folder.force)
        write_classes(deep.class_averages_, stack.pixel_size, quality, folder)
        if not options.skip_align:
            averages = deep.first_.class_averages_
            write_mrc(folder / flow.ALIGNMENT_AVERAGES, averages, stack.pixel_size, overwrite=folder.force)
        save_model(deep, folder / flow.MODEL, overwrite=folder.force)
        with folder.writing(TREE) as path:
            path.write_text(json.dumps(as_json(numbered(deep.tree_)), indent=1) + "\n", encoding="utf-8")
    with folder.timed("draw"):
        draw(deep, stack, quality, folder, aligned=not options.skip_align)
    return {
        "n_particles": len(stack),
        "box_px": stack.box,
        "pixel_size_angstrom": stack.pixel_size,
        "n_first_classes": len(deep.children_),
        "n_first_classes_divided": sum(clusterer is not None for clusterer in deep.clusterers_),
        "n_classes": len(deep.class_sizes_),
        "n_classes_with_particles": np.count_nonzero(deep.class_sizes_),
        "n_effective_classes": deep.n_effective_clusters_,
        "n_outliers": np.count_nonzero(stack.outlier),
        **judge_partition(stack, deep.labels_, quality),
        "converged": deep.converged_,
        "finest_class_resolution": quality["resolution"].min(),
        "classes": {
            "number": np.arange(1, len(deep.class_sizes_) + 1),
            "first_class": deep.parent_label_ + 1,
            "size": deep.class_sizes_,
            "resolution": quality["resolution"].to_numpy(),
        },
    }


def numbered(tree):
    """The tree with classes counted from 1, as rlnClassNumber counts them."""
    classes = []
    for entry in tree["classes"]:
        leaves = [dict(leaf) for leaf in entry["subclasses"]]
        for leaf in leaves:
            leaf["class_number"] = leaf.pop("label") + 1
        classes.append({**entry, "first_class": entry["first_class"] + 1, "subclasses": leaves})
    return {**tree, "classes": classes}


def draw(deep, stack, quality, folder, *, aligned):
    """Write the pictures: all sub-classes, and the manifold and the objective of the class divided most."""
    from sklearn_cryoem.cli import _workflow as flow
    from sklearn_cryoem.plotting import plot_class_averages, plot_manifold_atlas

    figures = {
        flow.GALLERY: plot_class_averages(
            deep.class_averages_, counts=deep.class_sizes_, resolutions=quality["resolution"],
            pixel_size=stack.pixel_size, numbers=True,
        ).figure
    }  # fmt: skip
    divided = [k for k, clusterer in enumerate(deep.clusterers_) if clusterer is not None]
    if divided:
        k = max(divided, key=lambda k: len(deep.clusterers_[k].labels_))
        clusterer = deep.clusterers_[k]
        positions = clusterer.transform(stack[np.flatnonzero(deep.first_labels_ == k)])
        figures[flow.ATLAS] = plot_manifold_atlas(
            clusterer, latent_positions=positions,
        ).figure  # fmt: skip
        figures[flow.CONVERGENCE] = flow.draw_convergence(deep, stack)
    if aligned:
        figures[flow.ALIGNMENT_GALLERY] = flow.draw_alignment(deep.first_, stack.pixel_size)
    flow.save_figures(figures, folder)


def tell(results, deep, folder, console):
    """Say what was found and where it is."""
    from sklearn_cryoem.cli import _workflow as flow

    console.say()
    console.say(
        f"{results['n_particles']:,} particles in {results['n_first_classes']} classes, of which "
        f"{results['n_first_classes_divided']} were divided: {results['n_classes_with_particles']} classes "
        f"(as many as {results['n_effective_classes']:.0f} equal ones); "
        + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in folder.seconds.items())
    )
    largest = int(np.argmax(np.bincount(deep.first_labels_))) + 1
    tell_suggestion(results, console)
    console.say(f"results in {folder.path}:")
    what = {
        flow.AVERAGES: "averages of the sub-classes, in the order of their numbers",
        TREE: "classes and their sub-classes, with sizes",
        CLASS_STAR: "the same for --ref of relion_refine, with sizes and resolutions",
        QUALITY: "figures, rank and suggestion for each sub-class",
        SUGGESTED: "the suggested selection, for sklearn-cryoem select",
        flow.GALLERY: "sub-classes by size, with number and resolution",
        flow.ATLAS: f"manifold of the largest class, {largest}",
        flow.CONVERGENCE: "objectives of its fits",
        flow.ALIGNMENT_GALLERY: "first classes",
        flow.MODEL: "fitted model, for sklearn_cryoem.load_model",
        "summary.json": "parameters, versions, times, sizes and resolutions",
        "run.yaml": "options, to repeat the run with --config",
    }
    labelled = next(name for name in folder.names if name.startswith("particles."))
    written = [(name, text) for name, text in what.items() if (folder / name).exists()]
    console.table([(labelled, "particles with class numbers and poses"), *written])
