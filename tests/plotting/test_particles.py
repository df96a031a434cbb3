"""Pictures of particles before a fit."""

import numpy as np
import pytest

from sklearn_cryoem._core.validation import ParticleDataError
from sklearn_cryoem.datasets import make_particles
from sklearn_cryoem.physics.images import radial_power
from sklearn_cryoem.plotting import plot_ctf, plot_particles, plot_power_spectrum


@pytest.fixture(scope="module")
def stack():
    return make_particles("ribosome", 60, box=32, pixel_size=10.0, snr=1.0, random_state=0)


def test_particles_are_drawn_without_finer_detail_than_asked_for(stack):
    def fine_power(lowpass):
        ax = plot_particles(stack[:1], lowpass=lowpass).axes[0]
        return radial_power(np.asarray(ax.images[0].get_array())[:32, :32])[11:].mean()

    assert fine_power(40.0) < 0.1 * fine_power(None)  # 40 A are 8 of 16 rings
    figure = plot_particles(stack, lowpass=40)
    assert figure.axes[0].get_title() == "48 of 60 particles, low-passed to 40 Å"
    assert figure._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ParticleDataError, match="Give at least one"):
        plot_particles(stack[:0])


def test_the_ctf_of_least_and_most_defocus_is_drawn(stack):
    curve = plot_ctf(stack).axes[0]
    defocus = stack.ctf.mean_defocus_angstrom
    texts = [text.get_text() for text in curve.get_legend().get_texts()]
    assert texts[0] == f"{defocus.min():,.0f} Å" and texts[2] == f"{defocus.max():,.0f} Å"
    x, y = curve.lines[2].get_data()
    most = stack.ctf[[int(defocus.argmax())]]
    np.testing.assert_allclose(y, most.evaluate(x, np.zeros(len(x)))[0])
    with pytest.raises(ParticleDataError, match="Read a file that has both"):
        plot_ctf(stack.with_ctf(None))


def test_the_power_spectrum_is_that_of_the_images(stack):
    ax, twin = plot_power_spectrum(stack).axes
    np.testing.assert_allclose(
        ax.lines[0].get_ydata(), np.median(radial_power(stack.read())[:, 1:16], axis=0)
    )
    np.testing.assert_allclose(ax.lines[0].get_xdata()[-1], 15 / (32 * 10.0))
    assert 0 <= min(twin.lines[0].get_ydata()) <= max(twin.lines[0].get_ydata()) <= 1
