"""Statistical manifold learning on arrays: latent grid, E-step, M-step, noise, start, class averages."""
