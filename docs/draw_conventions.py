"""Draw the pictures of docs/guide/conventions.md by the library's own functions.

python docs/draw_conventions.py [FOLDER]
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from sklearn_cryoem.datasets import project, volume_of_blobs
from sklearn_cryoem.physics.ctf import contrast_transfer
from sklearn_cryoem.physics.rotation import aligned_images

BOX, PSI_DEGREES, OFFSET = 64, 40.0, (10.0, -6.0)
MICROSCOPE = {"voltage_volts": 300e3, "cs_angstrom": 2.7e7, "amplitude_contrast": 0.1}
INK, ACCENT = "#f2c14e", "#e4572e"


def letter_f():
    """A volume that looks like the letter F from the front: no turn and no mirror leaves it as it is."""
    strokes = [(-7, y) for y in range(-14, 15, 2)] + [(x, -14) for x in range(-5, 10, 2)]
    strokes += [(x, -2) for x in range(-5, 6, 2)]
    blobs = np.array([(x, y, 0.0, 1.6, 1.0) for x, y in strokes])
    return volume_of_blobs(blobs, BOX, 1.0)


def particles(psi_degrees=0.0, shift=(0.0, 0.0)):
    """Image of the F with RELION's rlnAnglePsi and origin (pixels)."""
    return project(letter_f(), [0.0], [0.0], np.radians([psi_degrees]), [shift])[0]


def draw_axes(folder):
    """Where x and y point, where the centre is, which way azimuths count."""
    figure, (ax,) = panels(1, 4.2)
    show(ax, particles(), "image[y, x]")
    centre = BOX // 2
    arrow(ax, (2, 2), (20, 2), "x: columns")
    arrow(ax, (2, 2), (2, 20), "y: rows")
    ax.plot(centre, centre, "+", color=ACCENT, ms=14, mew=2)
    ax.annotate("centre: pixel D // 2", (centre, centre), (centre - 27, centre + 24), color=ACCENT)
    theta = np.radians(np.linspace(0, 50, 50))
    ax.plot(centre + 22 * np.cos(theta), centre + 22 * np.sin(theta), color=INK)
    ax.annotate("", (centre + 22 * np.cos(theta[-1]), centre + 22 * np.sin(theta[-1])),
                (centre + 22 * np.cos(theta[-4]), centre + 22 * np.sin(theta[-4])),
                arrowprops={"arrowstyle": "->", "color": INK})  # fmt: skip
    ax.text(centre + 13, centre + 25, "azimuth", color=INK)
    save(figure, folder, "conventions_axes.png")


def draw_pose(folder):
    """What a positive angle and a positive shift do, and that applying them undoes it."""
    turned, moved = particles(PSI_DEGREES), particles(0.0, OFFSET)
    both = particles(PSI_DEGREES, OFFSET)
    figure, axes = panels(5, 2.6)
    show(axes[0], particles(), "class average")
    show(axes[1], turned, f"angle {PSI_DEGREES:g}°")
    show(axes[2], moved, f"shift ({OFFSET[0]:g}, {OFFSET[1]:g})")
    show(axes[3], both, "both")
    show(axes[4], undone(both), "both, aligned")
    centre = np.array([BOX // 2, BOX // 2])
    arrow(axes[2], centre - OFFSET, centre, "")
    for ax in axes:
        ax.plot(*centre, "+", color=ACCENT, ms=10)
    save(figure, folder, "conventions_pose.png")


def undone(image):
    """The image with PSI_DEGREES and OFFSET applied to it as a pose."""
    return aligned_images(image[None], np.radians([PSI_DEGREES]), np.array([OFFSET]))[0]


def draw_ctf(folder):
    """The sign of the CTF, and the direction of astigmatism."""
    figure, (left, right) = panels(2, 3.6)
    frequency = np.linspace(0, 0.12, 600)
    transfer = contrast_transfer(
        frequency, np.zeros(600), defocus_u_angstrom=15000.0, defocus_v_angstrom=15000.0,
        astigmatism_angle_rad=0.0, **MICROSCOPE,
    )[0]  # fmt: skip
    left.set_axis_on()
    left.axhline(0, color="0.7", lw=0.8)
    left.plot(frequency, transfer, color="#2166ac")
    left.plot(0, transfer[0], "o", color=ACCENT)
    left.annotate(f"+{transfer[0]:.1f}, the amplitude contrast", (0, transfer[0]), (0.012, -0.9),
                  color=ACCENT, arrowprops={"arrowstyle": "-", "color": ACCENT})  # fmt: skip
    left.set(xlabel="spatial frequency (1/Å)", ylabel="CTF", title="underfocus 1.5 µm", ylim=(-1.05, 1.05))
    left.set_aspect("auto")
    axis = (np.arange(128) - 64) / 128 * 0.16
    kx, ky = np.meshgrid(axis, axis)
    rings = contrast_transfer(
        np.hypot(kx, ky).ravel(), np.arctan2(ky, kx).ravel(), defocus_u_angstrom=18000.0,
        defocus_v_angstrom=11000.0, astigmatism_angle_rad=np.radians(30.0), **MICROSCOPE,
    ).reshape(128, 128)  # fmt: skip
    show(right, rings, "astigmatism angle 30°", darkest=-1.0)
    ends = 64 + 58 * np.array([np.cos(np.radians(30)), np.sin(np.radians(30))])
    arrow(right, (64, 64), ends, "defocus U", (-92, 8))
    save(figure, folder, "conventions_ctf.png")


# ---------------------------------------------------------------- drawing
def panels(n_panels, side):
    """A figure with so many bare axes in a row."""
    figure = Figure(figsize=(side * n_panels, side + 0.3), layout="constrained")
    axes = figure.subplots(1, n_panels, squeeze=False)[0]
    for ax in axes:
        ax.set_axis_off()
    return figure, axes


def show(ax, image, title, darkest=0.0):
    """An image with row 0 on top."""
    ax.imshow(image, cmap="gray", origin="upper", interpolation="nearest", vmin=darkest)
    ax.set_title(title, fontsize=11)


def arrow(ax, start, end, text, offset=(3, -12)):
    """An arrow with text beside its end."""
    ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": INK, "lw": 1.8})
    ax.annotate(text, end, offset, textcoords="offset points", color=INK, fontsize=10)


def save(figure, folder, name):
    """Write it as a small PNG."""
    figure.savefig(Path(folder) / name, dpi=80)


if __name__ == "__main__":
    target = sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent / "images"
    for draw in (draw_axes, draw_pose, draw_ctf):
        draw(target)
