"""A volume in one picture: sections, views, and projections below the class averages that they resemble."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from sklearn.base import BaseEstimator

from sklearn_cryoem.datasets.forward import project
from sklearn_cryoem.datasets.volumes import Volume
from sklearn_cryoem.plotting._figure import ACCENT, hide_frame, new_figure

SHOWN = 8  # class averages, the largest


def plot_volume(model: BaseEstimator, volume: int = 0) -> Figure:
    """Draw a volume of a `ProjectionClusterer`: three sections, views, averages and projections below them.

    Parameters
    ----------
    model : ProjectionClusterer
        Fitted.
    volume : int, default=0
        Which of its volumes.

    Returns
    -------
    figure : matplotlib Figure
        Views are drawn by rot and the cosine of the tilt: equal areas are equal parts of the sphere.
    """
    density, counts = model.volumes_[volume], model.direction_counts_[volume]
    box, angles = len(density), model.cell_angles_
    figure = new_figure(SHOWN * 1.2, 6.0)
    grid = figure.add_gridspec(3, SHOWN, height_ratios=(2, 1, 1))
    for place, name in enumerate("zyx"):
        axes = figure.add_subplot(grid[0, 2 * place : 2 * place + 2])
        axes.imshow(np.take(density, box // 2, axis=place), cmap="gray", vmin=0.0, vmax=density.max())
        axes.set_title(f"section along {name}", fontsize=8)
        hide_frame(axes)
    sphere = figure.add_subplot(grid[0, 6:])
    rot, tilt = angles.T
    sphere.scatter(np.degrees(rot), np.cos(tilt), s=60.0 * counts / max(counts.max(), 1), color=ACCENT)
    sphere.set_xlabel("rot (degrees)", fontsize=8)
    sphere.set_ylabel("cos tilt", fontsize=8)
    sphere.set_title("particles by view", fontsize=8)
    largest = np.argsort(-counts, kind="stable")[:SHOWN]
    projections = project(Volume(density, 1.0), rot[largest], tilt[largest])
    averages = model.class_averages_[volume * len(counts) + largest]
    for row, (name, images) in enumerate((("averages", averages), ("projections", projections)), start=1):
        for place, image in enumerate(images):
            axes = figure.add_subplot(grid[row, place])
            axes.imshow(image, cmap="gray")
            hide_frame(axes)
            if place == 0:
                axes.set_ylabel(name, fontsize=8)
    return figure
