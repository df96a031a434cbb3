"""The results of a run: what is measured, written, drawn and told of its classes."""

import copy
import json
from dataclasses import dataclass
from typing import Any

import numpy as np

import sklearn_cryoem as lib
from sklearn_cryoem._core.validation import notice_text
from sklearn_cryoem.cli.options import RUN_FILE
from sklearn_cryoem.cli.run_folder import AVERAGES, QUALITY, SUMMARY, as_json

SUGGESTED = "suggested.json"
FULL_AVERAGES = "class_averages_full.mrcs"  # on request
CLASS_STAR, TREE, MODEL = "class_averages_model.star", "tree.json", "model.npz"
ALIGNMENT_AVERAGES, ALIGNMENT_GALLERY = "alignment_averages.mrcs", "alignment_gallery.png"
GALLERY, ATLAS, CONVERGENCE = "gallery.png", "atlas.png", "convergence.png"
LEFT_OUT = "left_out.csv"
CONTENTS = {
    AVERAGES: "class averages, in the order of the class numbers",
    CLASS_STAR: "the same for --ref of relion_refine, with sizes and resolutions",
    FULL_AVERAGES: "class averages in the box and pixels of the particles",
    TREE: "classes and their sub-classes, with sizes",
    QUALITY: "quality of the classes, with rank, suggestion and reasons",
    SUGGESTED: "classes to keep by that, for sklearn-cryoem select",
    GALLERY: "class averages by size, with class number and resolution",
    ATLAS: "class averages on the manifold, density of particles behind",
    CONVERGENCE: "how the fits went, step by step, and whether they converged",
    ALIGNMENT_AVERAGES: "class averages of the alignment",
    ALIGNMENT_GALLERY: "classes of the alignment",
    MODEL: "fitted model, for sklearn_cryoem.load_model",
    SUMMARY: "parameters, versions, times, sizes and resolutions",
    RUN_FILE: "options, to repeat the run with --config",
}
_CONTENTS_OF_DEEP = {
    ATLAS: "sub-classes of the largest class that was divided, on their manifold",
    CONVERGENCE: "how the first classification and the fit inside that class went",
}
_STAR_COLUMNS = {"clsSize": "size", "clsRank": "rank", "clsScore": "score", "clsKeep": "keep"}
_DPI = 160
MIN_AGREEMENT = 0.15  # noise has 0.03 to 0.08, a round shell 0.10 to 0.13, real particles 0.7
DEFOCUS_SHARE, DEFOCUS_P_VALUE = 2.0, 1e-3  # over chance; of chance


@dataclass
class Outcome:
    """What a run made: aligned particles and the fitted estimators.

    Parameters
    ----------
    stack : ParticleStack
        With poses.
    model : SMLClusterer or DeepClusterer
        Fitted; it has the classes.
    aligner : MAPAligner or None
        Where the particles were aligned.
    repeated : ndarray of shape (n_images,) or None
        Labels of some particles by a second clustering, which has not seen them; -1 for the others.
    assignment, quality, match : tuple, DataFrame, ndarray or None
        What `model.assign(stack)`, `class_quality` and `particle_match` gave.
    """

    stack: Any
    model: Any
    aligner: Any = None
    repeated: Any = None
    assignment: Any = None
    quality: Any = None
    match: Any = None

    @property
    def is_deep(self):
        """Whether classes were divided into sub-classes."""
        return hasattr(self.model, "tree_")

    @property
    def whole_model(self):
        """What is saved: everything that was fitted, as one estimator."""
        from sklearn.pipeline import make_pipeline

        if self.is_deep:
            return self.model
        return make_pipeline(*([self.aligner] if self.aligner is not None else []), self.model)


def output_names(suffix, *, align=True, deep=False):
    """Every file of a classification except the summary."""
    others = (SUMMARY, RUN_FILE, FULL_AVERAGES)
    names = [name for name in CONTENTS if name not in others and (deep or name != TREE)]
    if not align:
        names = [name for name in names if name not in (ALIGNMENT_AVERAGES, ALIGNMENT_GALLERY)]
    return [labelled_name(suffix), *names]


def labelled_name(suffix):
    """Labelled particles come back in the format they came in; a bare stack gets a STAR file."""
    return "particles.cs" if suffix.lower() in (".cs", ".csg") else "particles.star"


def write(outcome, suffix, folder, console, *, whole=None):
    """Measure the quality, write everything of a run but its summary; return the summary's results.

    Averages of the `whole` particles are written where these are given.
    """
    stack, model = outcome.stack, outcome.model
    _, posterior, positions = outcome.assignment or (None, None, None)
    with folder.timed("judge"):
        outcome.match = lib.quality.particle_match(model, stack, n_jobs=model.n_jobs)
        outcome.quality = lib.quality.class_quality(
            model, stack, assignment=outcome.assignment, match=outcome.match, n_jobs=model.n_jobs,
            other_labels=[] if outcome.repeated is None else [outcome.repeated],
            verbose=0 if outcome.is_deep else model.verbose,
        )  # fmt: skip
    with folder.timed("write"):
        lib.io.write_particles(
            stack,
            folder / labelled_name(suffix),
            labels=model.labels_,
            posterior=posterior,
            latent_positions=positions,
            columns={lib.particles.classes.MATCH[0]: np.round(outcome.match, 4)},
            overwrite=folder.force,
        )
        write_classes(model.class_averages_, stack.pixel_size, outcome.quality, folder)
        if whole is not None:
            whole = whole.with_poses(stack.poses)
            averages = lib.quality.average_classes(model.labels_, whole, n_jobs=model.n_jobs)
            averages = np.pad(averages, [(0, len(outcome.quality) - len(averages)), (0, 0), (0, 0)])
            lib.io.write_mrc(folder / FULL_AVERAGES, averages, whole.pixel_size, overwrite=folder.force)
        if outcome.aligner is not None:
            averages, path = outcome.aligner.class_averages_, folder / ALIGNMENT_AVERAGES
            lib.io.write_mrc(path, averages, stack.pixel_size, overwrite=folder.force)
        lib.estimators.save_model(outcome.whole_model, folder / MODEL, overwrite=folder.force)
        if outcome.is_deep:
            with folder.writing(TREE) as path:
                path.write_text(json.dumps(as_json(numbered(model.tree_)), indent=1) + "\n", encoding="utf-8")
    with folder.timed("draw"):
        results = measure(outcome)
        warn_of_partition(results, console)
        draw(outcome, folder)
    return results


def write_classes(averages, pixel_size, quality, folder):
    """Write class averages, their STAR file, the table of quality and the suggested selection."""
    rounded = quality[list(_STAR_COLUMNS.values())].round(6)  # pandas before 2.2 rounds no Series of bool
    lib.io.write_class_averages(
        folder / AVERAGES,
        averages,
        pixel_size,
        sizes=quality["size"],
        resolutions=quality["resolution"],
        columns={star: rounded[name].to_numpy() for star, name in _STAR_COLUMNS.items()},
        overwrite=folder.force,
    )
    folder.write_csv(QUALITY, quality, float_format="%.6g")
    source = {"folder": folder.path.name, "n_classes": len(quality), "started_at": folder.started_at}
    kept = quality.loc[quality["keep"], "class"]
    lib.io.write_selection(folder / SUGGESTED, kept, source=source, overwrite=folder.force)


def numbered(tree):
    """The tree with classes counted from 1, as rlnClassNumber counts them."""
    tree = copy.deepcopy(tree)
    for entry in tree["classes"]:
        entry["first_class"] += 1
        for leaf in entry["subclasses"]:
            leaf["class_number"] = leaf.pop("label") + 1
    return tree


# ---------------------------------------------------------------- numbers
def measure(outcome):
    """What the run found, as plain numbers for the summary."""
    stack, model, quality = outcome.stack, outcome.model, outcome.quality
    fits = lib.plotting.convergence.fits_of(outcome.whole_model, stack)
    results = {
        "n_particles": len(stack),
        "box_px": stack.box,
        "pixel_size_angstrom": stack.pixel_size,
        "n_classes": len(quality),
        "n_classes_with_particles": np.count_nonzero(model.class_sizes_),
        "n_effective_classes": model.n_effective_clusters_,
        "converged": model.converged_,
        "outcome": [f"{fit.title} {fit.outcome}" for fit in fits],
        "finest_class_resolution": quality["resolution"].min(),
        "n_outliers": np.count_nonzero(stack.outlier),
        **judge_partition(stack, model.labels_, quality, outcome.match),
    }
    named = quality[["class", "size", "resolution"]].rename(columns={"class": "number"})
    classes = named.to_dict("list")
    if outcome.is_deep:
        results["n_first_classes"] = len(model.children_)
        results["n_first_classes_divided"] = sum(c is not None for c in model.clusterers_)
        classes["first_class"] = model.parent_label_ + 1
    else:
        results |= {
            "grid_shape": model.grid_shape_,
            "clustering_iterations": model.n_iter_,
            "log_posterior_per_particle": model.log_posterior_[-1],
            "agreement_of_repeat": agreement(model.labels_, outcome.repeated, quality["keep"].to_numpy()),
        }
        classes |= {"soft_size": model.soft_class_sizes_, "latent_position": model.latent_nodes_}
        aligner = outcome.aligner
        if aligner is not None:
            results |= {
                "n_alignment_references": len(aligner.references_),
                "n_alignment_classes": len(aligner.class_averages_),
                "n_effective_alignment_classes": aligner.n_effective_clusters_,
                "alignment_passes": aligner.n_iter_,
                "alignment_converged": aligner.converged_,
                "alignment_resolution": aligner.resolution_,
                "alignment_pass_resolution": aligner.history_["resolution"][-aligner.n_iter_ :],
            }
    return {**results, "classes": classes}


def judge_partition(stack, labels, quality, match):
    """What the labels as a whole, and the suggestion, come to."""
    kept = quality["keep"].to_numpy()
    sizes = quality["size"].to_numpy()
    chosen = kept[labels] & (True if stack.outlier is None else ~stack.outlier)
    results = {
        "n_classes_suggested": np.count_nonzero(kept),
        "n_particles_suggested": np.count_nonzero(~lib.quality.unlike_their_class(match[chosen])),
        "n_effective_classes_by_size": lib.metrics.effective_count(sizes),
        "n_effective_classes_suggested": lib.metrics.effective_count(sizes[kept]),
        "kept_by_rarity": lib.quality.suggestion.kept_by_rarity(quality),
    }
    if stack.ctf is not None:
        found = lib.quality.table.defocus_share(stack.ctf, labels, len(quality))
        results |= {
            "defocus_share": found.share,
            "defocus_share_by_chance": found.by_chance,
            "defocus_p_value": found.p_value,
        }
    return results


def agreement(labels, repeated, kept):
    """Adjusted mutual information of the classes to keep with those of the repeat; None without a repeat."""
    from sklearn.metrics import adjusted_mutual_info_score

    both = repeated >= 0
    sound = both & (labels >= 0) & kept[labels]
    if sound.any():  # particles and junk come apart again even where views do not
        both = sound
    return adjusted_mutual_info_score(labels[both], repeated[both]) if both.any() else None


def warn_of_partition(results, console):
    """Warn of classes that do not come out again, and of classes that follow the defocus."""
    alike = results.get("agreement_of_repeat")
    if alike is not None and alike < MIN_AGREEMENT and results["n_classes_with_particles"] > 1:
        console.warn(
            notice_text(
                "classes-by-chance",
                "a second clustering puts particles that it has not seen into classes that have hardly "
                f"anything in common with these: an adjusted mutual information of {alike:.2f}, where 0 is "
                "chance and 1 the same classes. Ask for fewer classes, give more particles, or align again.",
            )
        )
    share, chance = results.get("defocus_share", np.nan), results.get("defocus_share_by_chance", np.nan)
    if share > DEFOCUS_SHARE * chance and results["defocus_p_value"] < DEFOCUS_P_VALUE:
        console.warn(
            notice_text(
                "classes-follow-defocus",
                f"{share:.0%} of the variance of the defocus lies between classes, {chance:.1%} by chance. "
                "Give a wider --mask-diameter.",
            )
        )


# ---------------------------------------------------------------- pictures
def draw(outcome, folder):
    """Write the pictures; of a deep clustering the manifold of the class that was divided most."""
    stack, model = outcome.stack, outcome.model
    figures = {GALLERY: lib.plotting.plot_class_averages(model, stack, quality=outcome.quality, numbers=True)}
    largest = lib.plotting.convergence.largest_divided(model) if outcome.is_deep else None
    if not outcome.is_deep:
        figures[ATLAS] = lib.plotting.plot_manifold_atlas(model, latent_positions=outcome.assignment[2])
    elif largest is not None:
        figures[ATLAS] = lib.plotting.plot_manifold_atlas(
            model.clusterers_[largest], stack[np.flatnonzero(model.first_labels_ == largest)]
        )
        ax = figures[ATLAS].axes[0]
        # a narrow map has little room
        ax.set_title(f"Inside class {largest + 1}: {ax.get_title()}", fontsize=9)
    if ATLAS in figures:
        figures[CONVERGENCE] = lib.plotting.plot_convergence(outcome.whole_model, stack)
    if outcome.aligner is not None:
        figures[ALIGNMENT_GALLERY] = lib.plotting.plot_class_averages(outcome.aligner, stack, numbers=True)
    for name, figure in figures.items():
        with folder.writing(name) as path:
            figure.savefig(path, dpi=_DPI, pil_kwargs={"compress_level": 4})


# ---------------------------------------------------------------- words
def tell(results, folder, console, *, files=True):
    """Say what was found, and in which files it is."""
    divided = ""
    if "n_first_classes" in results:
        n_first, n_divided = results["n_first_classes"], results["n_first_classes_divided"]
        divided = f"{n_first} first classes, of which {n_divided} were divided: "
    console.say()
    console.say(
        f"{results['n_particles']:,} particles in {divided}{results['n_classes_with_particles']} of "
        f"{results['n_classes']} classes (told apart like {results['n_effective_classes']:.1f} clear ones); "
        + ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in folder.seconds.items())
    )
    if "n_alignment_references" in results:
        passes, reached = results["alignment_passes"], results["alignment_pass_resolution"][-1]
        unit = "px" if results["pixel_size_angstrom"] is None else "A"
        console.say(
            f"aligned with {results['n_alignment_references']:,} references, merged into "
            f"{results['n_alignment_classes']:,} classes, in {passes} full pass{'es' if passes > 1 else ''}; "
            + (f"the best reference reaches {reached:.3g} {unit}" if np.isfinite(reached)
               else "no reference rises above its noise")
        )  # fmt: skip
    for text in results["outcome"]:
        console.say(text)
    console.say(
        f"suggestion: keep {results['n_classes_suggested']} classes with "
        f"{results['n_particles_suggested']:,} of {results['n_particles']:,} particles; {QUALITY} has the "
        "reasons against the others. Look at the gallery before you follow it with sklearn-cryoem select"
    )
    if results["kept_by_rarity"]:
        shares = ", ".join(f"{share:.0%}" for share in results["kept_by_rarity"])
        console.say(f"kept of each fifth of the particles, smallest classes first: {shares}")
    if not files:
        return
    console.say(f"results in {folder.path}:")
    labelled = next(name for name in folder.names if name.startswith("particles."))
    contents = CONTENTS | (_CONTENTS_OF_DEEP if "n_first_classes" in results else {})
    written = [(name, text) for name, text in contents.items() if (folder / name).exists()]
    console.table([(labelled, "particles with class numbers and poses"), *written])
