"""The scikit-learn estimators, and how to keep them in files."""

from sklearn_cryoem.estimators.deep_clusterer import DeepClusterer
from sklearn_cryoem.estimators.eigen_images import EigenImages
from sklearn_cryoem.estimators.map_aligner import MAPAligner
from sklearn_cryoem.estimators.model_files import fit_once as fit_once  # whose runs go on after a kill
from sklearn_cryoem.estimators.model_files import load_model, save_model
from sklearn_cryoem.estimators.model_use import as_fitted_by, assign_particles, choose_classes
from sklearn_cryoem.estimators.projection_clusterer import ProjectionClusterer, initial_model
from sklearn_cryoem.estimators.realigning_clusterer import RealigningClusterer
from sklearn_cryoem.estimators.sml_clusterer import SMLClusterer

__all__ = [
    "DeepClusterer",
    "EigenImages",
    "MAPAligner",
    "ProjectionClusterer",
    "RealigningClusterer",
    "SMLClusterer",
    "as_fitted_by",
    "assign_particles",
    "choose_classes",
    "initial_model",
    "load_model",
    "save_model",
]
