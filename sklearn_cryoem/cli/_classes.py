"""What a classification says of its classes: their quality, their files, and which to keep."""

import warnings

import numpy as np

from sklearn_cryoem._core.notices import notice_text

QUALITY, SUGGESTED, AVERAGES = "quality.csv", "suggested.json", "class_averages.mrcs"
CLASS_STAR = "class_averages_model.star"
CLASS_FILES = (AVERAGES, CLASS_STAR, QUALITY, SUGGESTED)
_STAR_COLUMNS = {"clsSize": "size", "clsRank": "rank", "clsScore": "score", "clsKeep": "keep"}
_DIGITS = "%.6g"
REPEATED_PARTICLES, REPEATED_A_CLASS = 10_000, 50  # as many tell whether classes come out again: the larger
LEAST_AGREEMENT = 0.15  # noise has 0.03 to 0.08, a round shell 0.10 to 0.13, real particles 0.7
DEFOCUS_SHARE, DEFOCUS_P_VALUE = 2.0, 1e-3  # over chance; of chance


def repeated_labels(unfinished, clusterer, stack, seed):
    """Cluster some of the particles once more, and let that label others, which it has not seen.

    On the same particles noise that was aligned once comes together again, whatever the start: two fits of
    all of 1,000 images of noise agree at 0.4, and at 0.03 as here.

    Parameters
    ----------
    unfinished : UnfinishedRun
        Keeps its state.
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
    enough = max(REPEATED_PARTICLES, REPEATED_A_CLASS * len(clusterer.class_averages_))
    size = min(len(sound) // 2, enough)
    if size < 2:
        return labels
    drawn = np.random.default_rng(seed).permutation(sound)
    learned, others = np.sort(drawn[:size]), np.sort(drawn[size : 2 * size])
    other_seed = None if seed is None else seed + 1
    repeat = clone(clusterer).set_params(init="random", random_state=other_seed, cache_folder=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is to be said of these particles was said by the first fit
        labels[others] = unfinished.fit(repeat, stack[learned]).predict(stack[others])
    return labels


def measure_classes(clusterer, stack, assignment, repeated):
    """Table of `class_quality` of a fitted clusterer, and the labels that its repeat has given."""
    from sklearn_cryoem.quality import class_quality

    return class_quality(
        clusterer,
        stack,
        other_labels=[repeated],
        assignment=assignment,
        n_jobs=clusterer.n_jobs,
        verbose=clusterer.verbose,
    )


def write_classes(averages, pixel_size, quality, folder):
    """Write class averages, their STAR file, the table of quality and the suggested selection.

    Parameters
    ----------
    averages : ndarray of shape (n_classes, D, D)
        Class averages.
    pixel_size : float or None
        In Angstrom.
    quality : DataFrame
        From `class_quality`, a row for each.
    folder : RunFolder
        Where to.
    """
    from sklearn_cryoem.io import write_class_averages, write_selection

    rounded = quality[list(_STAR_COLUMNS.values())].round(
        6
    )  # a table: pandas before 2.2 rounds no Series of bool
    columns = {star: rounded[name].to_numpy() for star, name in _STAR_COLUMNS.items()}
    write_class_averages(
        folder / AVERAGES,
        averages,
        pixel_size,
        sizes=quality["size"],
        resolutions=quality["resolution"],
        columns=columns,
        overwrite=folder.force,
    )
    with folder.writing(QUALITY) as path:
        quality.to_csv(path, index=False, float_format=_DIGITS)
    source = {"folder": folder.path.name, "n_classes": len(quality), "written_at": folder.written_at}
    kept = quality.loc[quality["keep"], "class"]
    write_selection(folder / SUGGESTED, kept, source=source, overwrite=folder.force)


def judge_partition(stack, labels, quality):
    """What the labels as a whole, and the suggestion, come to: plain numbers for the summary.

    Parameters
    ----------
    stack : ParticleStack
        The particles.
    labels : ndarray of shape (n_images,), int
        Their classes.
    quality : DataFrame
        From `class_quality`.

    Returns
    -------
    dict
    """
    from sklearn_cryoem.metrics import effective_count
    from sklearn_cryoem.quality.suggestion import kept_by_rarity
    from sklearn_cryoem.quality.table import defocus_share

    kept = quality["keep"].to_numpy()
    sizes = quality["size"].to_numpy()
    results = {
        "n_classes_suggested": np.count_nonzero(kept),
        "n_particles_suggested": sizes[kept].sum(),
        "n_effective_classes_suggested": effective_count(sizes[kept]),
        "kept_by_rarity": kept_by_rarity(quality),
    }
    if stack.ctf is not None:
        found = defocus_share(stack.ctf, labels, len(quality))
        results |= {
            "defocus_share": found.share,
            "defocus_share_by_chance": found.by_chance,
            "defocus_p_value": found.p_value,
        }
    return results


def agreement(labels, repeated, kept):
    """Adjusted mutual information of the classes to keep with those of the repeat; None where it has none."""
    from sklearn.metrics import adjusted_mutual_info_score

    both = repeated >= 0
    sound = both & (labels >= 0) & kept[labels]
    if sound.any():  # particles and junk come apart again even where views do not
        both = sound
    return adjusted_mutual_info_score(labels[both], repeated[both]) if both.any() else None


def warn_of_partition(results, console):
    """Warn of classes that do not come out again, and of classes that follow the defocus."""
    alike = results.get("agreement_of_repeat")
    if alike is not None and alike < LEAST_AGREEMENT and results["n_classes_with_particles"] > 1:
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


def tell_suggestion(results, console):
    """Say how much of the run the suggestion would keep, and of which classes."""
    console.say(
        f"suggestion: keep {results['n_classes_suggested']} classes with "
        f"{results['n_particles_suggested']:,} of {results['n_particles']:,} particles; {QUALITY} has the "
        "reasons against the others. Look at the gallery before you follow it with sklearn-cryoem select"
    )
    if results["kept_by_rarity"]:
        shares = ", ".join(f"{share:.0%}" for share in results["kept_by_rarity"])
        console.say(
            f"kept of each fifth of the particles, from the smallest classes to the largest: {shares}"
        )
