"""What a fitted SMLClusterer asks of posteriors, and how it draws samples."""

import numpy as np


def most_probable(posterior):
    """Node of each image; (n,)."""
    return posterior.responsibilities.argmax(axis=1)


def responsibilities(posterior):
    """Posterior of every node; (n, n_nodes)."""
    return posterior.responsibilities


def log_evidence(posterior):
    """Log likelihood of each image, Eq. (2.5); (n,)."""
    return posterior.log_evidence


def draw(manifold, space, n_samples, rng):
    """Features (n, P) of samples of the model and the nodes (n,) they come from, Eq. (2.4) and Eq. (1.3)."""
    nodes = rng.randint(len(manifold.basis.nodes), size=n_samples)
    deviation = np.sqrt(manifold.noise_variance)[space.shell]  # (P,)
    noise = rng.standard_normal((n_samples, len(deviation))) * deviation
    return manifold.templates[nodes] + noise, nodes
