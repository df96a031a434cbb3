"""From a finished alignment to the attributes of a MAPAligner."""

import numpy as np

from sklearn_cryoem.alignment.classes import centred_classes
from sklearn_cryoem.alignment.mutual import unite_references
from sklearn_cryoem.alignment.update import polar_statistics
from sklearn_cryoem.metrics import effective_count
from sklearn_cryoem.particles import Poses

LABELS_IN_MOTION = 0.5  # of the images, in the last pass: with more, an alignment has not come to rest


def unite_classes(aligner, fit, source, settings):
    """Frames of the references of a fit, and the classes that they form, Eq. (4.9)-(4.10).

    Parameters
    ----------
    aligner : MAPAligner
        Number of classes and of workers.
    fit : FittedAlignment
        What EM found.
    source : FeatureSource
        The images.
    settings : AlignmentSettings
        What EM was asked to do.
    """
    stats = fit.statistics
    seen = polar_statistics(stats, fit.grid).denominator.mean(axis=-1, dtype=np.float64)
    frames = unite_references(
        fit.model, seen, stats.mass, settings, aligner.n_clusters, mirror=aligner.align_mirrored,
        n_jobs=aligner.n_jobs,
    )  # fmt: skip
    return centred_classes(stats, frames, fit.model, fit.grid, settings, source.noise_fraction)


def store_results(aligner, fit, classes, stack, found):
    """Set the public attributes of `aligner`.

    Parameters
    ----------
    aligner : MAPAligner
        Gets the attributes.
    fit : FittedAlignment
        What EM found.
    classes : AlignedClasses
        Averages of the classes.
    stack : ParticleStack
        The particles, screened.
    found : ImagePoses
        Their classes and poses.
    """
    unit = stack.pixel_length
    model = fit.model
    sizes = np.bincount(found.cluster[~stack.outlier], minlength=aligner.n_clusters)
    with np.errstate(divide="ignore"):
        aligner.class_resolution_ = stack.box * unit / classes.resolution
        aligner.pass_resolution_ = stack.box * unit / fit.resolved
        aligner.resolution_ = float(stack.box * unit / model.resolution.max())
    aligner.poses_ = Poses(found.angle_rad, found.shift_px * unit, found.mirrored)
    aligner.labels_ = found.cluster
    aligner.class_posterior_, aligner.log_evidence_ = found.class_posterior, found.log_evidence
    aligner.class_averages_, aligner.references_ = classes.averages, model.references
    aligner.reference_class_ = aligner._frames.group
    aligner.cluster_weights_ = classes.mass / classes.mass.sum()
    aligner.noise_variance_, aligner.shift_sigma_ = model.noise, model.shift_sigma_px * unit
    aligner.group_noise_variance_ = model.noise * model.group_noise if len(model.group_noise) else None
    aligner.log_posterior_, aligner.n_iter_ = fit.evidence, fit.n_iter
    # few passes are the usual end of online EM: what is still in motion tells whether more are needed
    aligner.converged_ = bool(fit.converged or fit.changed <= LABELS_IN_MOTION)
    aligner.n_effective_clusters_ = effective_count(sizes)
