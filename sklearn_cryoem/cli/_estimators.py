"""From the options of a command line to the estimators they ask for."""

import math

from sklearn_cryoem.cli.console import CommandError


def make_clusterer(options):
    """SMLClusterer with the options of `classify.add_classification`."""
    from sklearn_cryoem.estimators import SMLClusterer

    return SMLClusterer(
        options.classes,
        n_components=options.latent_dim,
        n_basis=options.basis,
        topology=options.topology,
        **_given(_shared(options)),
        **_given({"max_iter": options.iterations, "cache_folder": options.cache_folder}),
        **machine(options),
    )


def make_aligner(options, stack):
    """MAPAligner with the options of `classify.add_classification`, or None with --skip-align.

    Raises
    ------
    CommandError
        If alignment is to be skipped, but the particles have no poses.
    """
    from sklearn_cryoem.estimators import MAPAligner

    if options.skip_align:
        if stack.poses is None:
            raise CommandError(
                "the particles have no in-plane angles and shifts, which --skip-align relies on. "
                "Leave it out, or give a file with rlnAnglePsi, rlnOriginXAngst and rlnOriginYAngst."
            )
        return None
    return MAPAligner(
        options.align_classes,
        **_given(_shared(options)),
        **_given({"max_shift": options.max_shift, "max_iter": options.align_iterations}),
        **_given({"n_batches": options.align_batches, "n_init": options.align_starts}),
        **_given({"n_references": options.align_references}),
        **_given({"angle_range": None if options.angle_range is None else math.radians(options.angle_range)}),
        align_mirrored=options.align_mirrored,
        **machine(options),
    )


def machine(options):
    """Workers, seed and progress, as every estimator takes them."""
    return {
        "n_jobs": options.jobs,
        "random_state": options.seed,
        "verbose": 0 if options.quiet else 1,
    }


def _shared(options):
    return {
        "mask_diameter": options.mask_diameter,
        "max_resolution": options.max_resolution,
        "noise": "group" if options.noise_groups else None,
    }


def _given(parameters):
    """Only what the user gave: the estimator knows its own defaults best."""
    return {name: value for name, value in parameters.items() if value is not None}
