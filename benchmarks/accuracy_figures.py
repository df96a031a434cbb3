"""Figures of the comparison of classifications: one for each of the paper's that shows simulated images."""

import numpy as np

BINS = np.arange(0.0, 182.0, 2.0)  # degrees
CENTRES = 0.5 * (BINS[1:] + BINS[:-1])
CHANCE = np.diff(-np.cos(np.radians(BINS))) / 2  # share of pairs of random views
FIGURES = {0.01: "figure_2de", 0.005: "figure_2fg"}  # others: supplementary_3
STYLES = {  # by the first words of a method's name: one colour each, the same in all figures
    "SML, 1-D": {"color": "C1"},
    "SML, 2-D, random": {"color": "C0", "linestyle": "--"},
    "SML, 2-D, mirror": {"color": "C6"},
    "SML, 2-D": {"color": "C0", "linewidth": 2.2},
    "SML, 3-D": {"color": "C4"},
    "MAPAligner": {"color": "C2"},
    "MAP, ": {"color": "C2", "linestyle": "--"},
    "RELION": {"color": "C3"},
    "ProjectionClusterer": {"color": "C8"},
    "PCA": {"color": "0.35"},
    "Gaussian": {"color": "C5"},
}


def draw_all(found, images, folder):
    """Write a figure of all methods for each SNR, and one of the dimensions of SML at all SNR.

    Parameters
    ----------
    found : dict
        (SNR, poses) -> name of a method -> histogram ``counts``, ``fraction``, ``effective``, ``sizes``.
    images : str
        What the images are, said in the titles.
    folder : Path
        Where to write.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for (snr, poses), results in found.items():
        left_out = "1-D", "3-D", "cells"  # of other figures, and far above all
        shown = {name: one for name, one in results.items() if not any(word in name for word in left_out)}
        title = f"SNR {snr:g} per pixel, {poses} poses; {images}"
        figure = draw({title: shown})
        figure.savefig(folder / f"{FIGURES.get(snr, 'supplementary_3')}_snr{snr:g}_{poses}.png", dpi=80)
    for poses in dict.fromkeys(poses for _, poses in found):
        rows = {}
        for (snr, one), results in found.items():
            ours = {name: kept for name, kept in results.items() if name.startswith("SML")}
            if one == poses and len(ours) > 1:
                rows[f"SNR {snr:g} per pixel, {poses} poses; {images}"] = ours
        if rows:
            draw(rows).savefig(folder / f"supplementary_2_{poses}.png", dpi=80)


def draw(rows):
    """Histograms of angles on the left, ranked sizes on the right, a row for each title."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.5, 4.3 * len(rows)), layout="constrained")
    panels = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for panel, (title, results) in zip(panels, rows.items(), strict=True):
        panel.suptitle(title, fontsize="medium")
        views, sizes = panel.subplots(1, 2, width_ratios=(1.25, 1))
        for name, one in results.items():
            style = next(style for start, style in STYLES.items() if name.startswith(start))
            share = one["counts"] / max(one["counts"].sum(), 1) / 2 * 100  # per cent a degree
            label = f"{name}: {one['fraction']:.1%} within 10°"
            views.plot(CENTRES, share, label=label, **style)
            ranked = np.arange(1, len(one["sizes"]) + 1)
            sizes.plot(ranked, one["sizes"], label=f"{name}: {one['effective']:.0f} effective", **style)
        views.plot(CENTRES, CHANCE / 2 * 100, "k:", label="chance: 0.8% within 10°")
        views.axvspan(0, 10, color="0.93", zorder=0)
        views.set(xlabel="angle between two views of one class (degrees)", xlim=(0, 180), ylim=(0, None))
        views.set(ylabel="pairs (per cent per degree)", xticks=range(0, 181, 30))
        sizes.set(xlabel="rank of the class", ylabel="particles in the class", yscale="log", xlim=(0, None))
        for ax in (views, sizes):
            ax.legend(fontsize="x-small")
            ax.spines[["top", "right"]].set_visible(False)
    return figure
