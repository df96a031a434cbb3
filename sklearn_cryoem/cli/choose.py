"""`sklearn-cryoem choose`: how many classes and dimensions the particles can tell apart."""

from argparse import Namespace

import sklearn_cryoem as lib
from sklearn_cryoem.cli import options as opts
from sklearn_cryoem.cli import preflight
from sklearn_cryoem.cli.classify import make_aligner, make_clusterer
from sklearn_cryoem.cli.results import LEFT_OUT
from sklearn_cryoem.cli.run_folder import RunFolder, check_is_file
from sklearn_cryoem.manifold.topology import TOPOLOGIES

TABLE, PICTURE = "choose.csv", "choose.png"


def add_choose(commands):
    """Add `choose` to the parser."""
    parser = opts.new_command(commands, "choose", choose)
    opts.add_particles(parser)
    opts.add_classification(parser)
    candidates = parser.add_argument_group("candidates", conflict_handler="resolve")
    candidates.add_argument(
        "--classes", metavar="N", type=opts.count, nargs="+", default=[16, 36, 64, 100],
        help="numbers of classes to try (default: 16 36 64 100)",
    )  # fmt: skip
    candidates.add_argument(
        "--dimensions", metavar="L", type=opts.count, choices=(1, 2, 3), nargs="+",
        help="dimensions of the manifold to try (default: 1 2, or that of its shape)",
    )  # fmt: skip
    opts.add_machine(parser.add_argument_group("machine"))


def choose(options, console):
    """Compare numbers of classes and dimensions by particles held out.

    Compare numbers of classes and dimensions of the manifold by the likelihood of particles that the fit has
    not seen.

    Particles are aligned once (or taken as they are, --skip-align). Then each candidate is fitted to two
    thirds of them and asked for the likelihood of the rest, in turn. choose.csv has what each comes to,
    choose.png shows it. Recommended are the fewest classes that are no worse than the best by more than the
    standard error.
    """
    check_is_file(options.particles)
    possible = TOPOLOGIES[options.topology].components
    options.dimensions = options.dimensions or [number for number in (1, 2) if number in possible]
    with RunFolder(options.output, [TABLE, PICTURE, LEFT_OUT], force=options.force) as folder:
        preflight.check_machine(console)
        with folder.timed("read"):
            stack, _ = preflight.read(options, folder, console)
        most = Namespace(**vars(options) | {"classes": max(options.classes)})
        preflight.check_options(most, stack, console)
        stack, _ = preflight.screen(stack, options, folder, console)
        stack = preflight.crop(stack, options, folder)
        clusterer = make_clusterer(options).set_params(verbose=0)
        for n_components in options.dimensions:  # what is refused is refused before the alignment
            for n_clusters in options.classes:
                clusterer.set_params(n_clusters=n_clusters, n_components=n_components).validate(stack)
        aligner = make_aligner(options, stack)
        if aligner is not None:
            with folder.timed("align"):
                stack = stack.with_poses(folder.fit(aligner, stack).poses_)
        with folder.timed("compare"):
            table = lib.estimators.choose_classes(clusterer, stack, options.classes, options.dimensions)
        with folder.writing(TABLE) as path:
            table.to_csv(path, index=False, float_format="%.6g")
        with folder.writing(PICTURE) as path:
            _draw(table).savefig(path, dpi=160, format="png")
        best = table[table["recommended"]].iloc[0]
        results = {"classes": int(best["classes"]), "dimensions": int(best["dimensions"])}
        folder.write_summary(options, results, console.warnings)
    for row in table.itertuples():
        console.say(
            f"  {row.classes:4d} classes in {row.dimensions} dimension{'s' * (row.dimensions > 1)}: "
            f"{row.below_best:.3f} +- {row.error:.3f} nats per particle below the best, as many as "
            f"{row.effective_classes:.0f} equal ones"
        )
    console.say(
        f"recommended: --classes {results['classes']} --latent-dim {results['dimensions']}, the fewest that "
        f"are as good as any; {TABLE} and {PICTURE} are in {folder.path}"
    )


def _draw(table):
    """Held-out likelihood, relative to the best, against the number of classes, a line for each dimension."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 3.6), layout="constrained")
    ax = figure.subplots()
    for dimensions, rows in table.groupby("dimensions"):
        label = f"{dimensions} dimension{'s' * (dimensions > 1)}"
        ax.errorbar(rows["classes"], -rows["below_best"], rows["error"], marker="o", capsize=3, label=label)
    best = table[table["recommended"]]
    ax.plot(best["classes"], -best["below_best"], "o", ms=14, mfc="none", mec="black", label="recommended")
    ax.set(xlabel="classes", ylabel="nats per held-out particle,\nrelative to the best", xscale="log")
    ax.set_xticks(sorted(table["classes"].unique()), sorted(table["classes"].unique()), minor=False)
    ax.minorticks_off()
    ax.legend(frameon=False)
    return figure
