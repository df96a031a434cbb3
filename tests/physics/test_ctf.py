"""The contrast transfer function against cases that can be worked out by hand."""

import numpy as np
import pytest

from sklearn_cryoem.physics.ctf import contrast_transfer, electron_wavelength

MICROSCOPE = {"voltage_volts": 300e3, "cs_angstrom": 2.7e7, "amplitude_contrast": 0.1}


def textbook(
    s, azimuth, *, defocus_u_angstrom, defocus_v_angstrom, astigmatism_angle_rad, voltage_volts, cs_angstrom,
    amplitude_contrast, phase_shift_rad=0.0, b_factor_angstrom2=0.0, scale=1.0,
):  # fmt: skip
    """Eq. (1.4)-(1.5) as they stand, for one image in float64."""
    wavelength, mean = electron_wavelength(voltage_volts), 0.5 * (defocus_u_angstrom + defocus_v_angstrom)
    half_split = 0.5 * (defocus_u_angstrom - defocus_v_angstrom)
    defocus = mean + half_split * np.cos(2 * (azimuth - astigmatism_angle_rad))
    chi = np.pi * wavelength * s**2 * defocus - 0.5 * np.pi * cs_angstrom * wavelength**3 * s**4
    envelope = scale * np.exp(-0.25 * b_factor_angstrom2 * s**2)
    return envelope * np.sin(chi + np.arcsin(amplitude_contrast) + phase_shift_rad)


def round_ctf(frequency, defocus, **changes):
    parameters = {**MICROSCOPE, "astigmatism_angle_rad": 0.0, **changes}
    return contrast_transfer(
        frequency,
        np.zeros_like(frequency),
        defocus_u_angstrom=defocus,
        defocus_v_angstrom=defocus,
        **parameters,
    )[0]


@pytest.mark.parametrize(("volts", "angstrom"), [(100e3, 0.03701), (200e3, 0.02508), (300e3, 0.01969)])
def test_wavelength_agrees_with_published_tables(volts, angstrom):
    assert electron_wavelength(volts) == pytest.approx(angstrom, abs=6e-6)


@pytest.mark.parametrize("w", [0.0, 0.07, 0.1, 1.0])
@pytest.mark.parametrize("defocus", [-5000.0, 15000.0])
def test_ctf_at_zero_frequency_is_plus_the_amplitude_contrast(w, defocus):
    zero = np.zeros(1)
    assert round_ctf(zero, defocus, amplitude_contrast=w)[0] == pytest.approx(w, abs=1e-6)
    with_plate = round_ctf(zero, defocus, amplitude_contrast=w, phase_shift_rad=0.7)[0]
    assert with_plate == pytest.approx(np.sin(np.arcsin(w) + 0.7), abs=1e-6)


@pytest.mark.parametrize("defocus", [8000.0, 20000.0])
@pytest.mark.parametrize("w", [0.0, 0.1])
def test_first_zero_lies_where_the_phase_reaches_pi(defocus, w):
    wavelength, cs = electron_wavelength(300e3), 2.7e7
    # pi L z s^2 - pi/2 Cs L^3 s^4 + asin(w) = pi, a quadratic in s^2
    roots = np.roots([-0.5 * cs * wavelength**3, wavelength * defocus, np.arcsin(w) / np.pi - 1.0])
    zero = np.sqrt(roots.real.min())
    values = round_ctf(zero * np.array([0.5, 0.99, 1.0, 1.01]), defocus, amplitude_contrast=w)
    assert values[0] > 0.1 and values[1] > 0, "white particles before the first zero"
    assert values[2] == pytest.approx(0.0, abs=1e-6)
    assert values[3] < 0
    without_cs = round_ctf(
        np.array([1 / np.sqrt(wavelength * defocus)]), defocus, amplitude_contrast=0, cs_angstrom=0
    )
    assert without_cs[0] == pytest.approx(0.0, abs=1e-6)


def test_defocus_u_lies_along_the_astigmatism_angle_and_v_across():
    u, v, angle = 18000.0, 9000.0, 0.4
    s = np.full(5, 0.06)
    azimuth = angle + np.array([0.0, np.pi / 2, np.pi / 4, np.pi, -np.pi / 2])
    values = contrast_transfer(
        s, azimuth, defocus_u_angstrom=u, defocus_v_angstrom=v, astigmatism_angle_rad=angle, **MICROSCOPE
    )[0]
    expected = [round_ctf(s[:1], z)[0] for z in (u, v, 0.5 * (u + v), u, v)]
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_swapping_u_and_v_is_a_quarter_turn(rng):
    s, azimuth = rng.uniform(0, 0.2, 50), rng.uniform(-np.pi, np.pi, 50)
    one = contrast_transfer(
        s, azimuth, defocus_u_angstrom=2e4, defocus_v_angstrom=1e4, astigmatism_angle_rad=0.3, **MICROSCOPE
    )
    other = contrast_transfer(
        s, azimuth, defocus_u_angstrom=1e4, defocus_v_angstrom=2e4,
        astigmatism_angle_rad=0.3 + np.pi / 2, **MICROSCOPE,
    )  # fmt: skip
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_quarter_wave_plate_turns_sine_into_cosine():
    s = np.linspace(0, 0.2, 30)
    sine = round_ctf(s, 12000.0, amplitude_contrast=0.0)
    cosine = round_ctf(s, 12000.0, amplitude_contrast=0.0, phase_shift_rad=np.pi / 2)
    np.testing.assert_allclose(sine**2 + cosine**2, 1.0, atol=1e-6)
    assert cosine[0] == pytest.approx(1.0)


def test_envelope_and_scale_multiply():
    s = np.linspace(0, 0.2, 30)
    damped = round_ctf(s, 12000.0, b_factor_angstrom2=80.0, scale=0.9)
    np.testing.assert_allclose(damped, 0.9 * np.exp(-80.0 * s**2 / 4.0) * round_ctf(s, 12000.0), atol=1e-6)


def test_many_steep_phases_are_those_of_the_textbook(rng):
    s, azimuth = rng.uniform(0, 0.5, 40), rng.uniform(-np.pi, np.pi, 40)  # up to 400 radians
    varied = {
        "defocus_u_angstrom": rng.uniform(8000, 60000, 7),
        "astigmatism_angle_rad": rng.uniform(0, np.pi, 7),
        "phase_shift_rad": rng.uniform(0, 2, 7),
        "b_factor_angstrom2": rng.uniform(-5, 30, 7),
        "scale": rng.uniform(0.8, 1.1, 7),
    }
    varied["defocus_v_angstrom"] = varied["defocus_u_angstrom"] - 500.0
    values = contrast_transfer(s, azimuth, **varied, **MICROSCOPE)
    assert values.shape == (7, 40) and values.dtype == np.float32
    for row in range(7):
        own = {name: value[row] for name, value in varied.items()}
        np.testing.assert_allclose(values[row], textbook(s, azimuth, **own, **MICROSCOPE), atol=3e-6)
