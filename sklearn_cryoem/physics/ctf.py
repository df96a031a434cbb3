"""The contrast transfer function, Eq. (1.4)-(1.6), with RELION's sign: +w at zero frequency."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def electron_wavelength(voltage_volts: ArrayLike) -> NDArray[np.float64]:
    """Relativistic wavelength in Angstrom, Eq. (1.5); 0.0197 Angstrom at 300 kV."""
    volts = np.asarray(voltage_volts, dtype=np.float64)
    return np.asarray(12.2643 / np.sqrt(volts + 0.978466e-6 * volts**2))


def contrast_transfer(
    frequency: ArrayLike,
    azimuth: ArrayLike,
    *,
    defocus_u_angstrom: ArrayLike,
    defocus_v_angstrom: ArrayLike,
    astigmatism_angle_rad: ArrayLike,
    voltage_volts: ArrayLike,
    cs_angstrom: ArrayLike,
    amplitude_contrast: ArrayLike,
    phase_shift_rad: ArrayLike = 0.0,
    b_factor_angstrom2: ArrayLike = 0.0,
    scale: ArrayLike = 1.0,
) -> NDArray[np.float32]:
    """Contrast transfer of many images at the same frequencies, Eq. (1.4)-(1.5).

    Parameters
    ----------
    frequency : array_like of shape (J,)
        |s| in 1/Angstrom.
    azimuth : array_like of shape (J,)
        atan2(ky, kx) in radians.
    defocus_u_angstrom, defocus_v_angstrom : array_like of shape (n_images,), or a number, as all others
        Defocus along the two principal directions, positive is underfocus.
    astigmatism_angle_rad : array_like of shape (n_images,)
        Azimuth of `defocus_u_angstrom`, from x (columns) towards y (rows). Add the in-plane angle psi of an
        image for the CTF of the aligned image, Eq. (1.6).
    voltage_volts, cs_angstrom, amplitude_contrast, phase_shift_rad : array_like of shape (n_images,)
        Acceleration voltage, spherical aberration, amplitude contrast w in [0, 1], phase-plate shift.
    b_factor_angstrom2, scale : array_like of shape (n_images,)
        Envelope exp(-B s^2 / 4), and overall factor.

    Returns
    -------
    ctf : ndarray of shape (n_images, J), float32

    Notes
    -----
    The sign is RELION's: +w at s = 0. cisTEM, cryoJAX and ASPIRE have -w.

    The phase of Eq. (1.5) is linear in five functions of the frequency, |s|^2 times 1, cos 2a and sin 2a
    among them, so it is one matrix product in float64 and then one sine.
    """
    u, v, angle, volts, cs, amplitude, shift, b_factor, factor = np.broadcast_arrays(
        np.zeros(1), defocus_u_angstrom, defocus_v_angstrom, astigmatism_angle_rad, voltage_volts,
        cs_angstrom, amplitude_contrast, phase_shift_rad, b_factor_angstrom2, scale,
    )[1:]  # fmt: skip
    s2 = np.asarray(frequency, dtype=np.float64) ** 2  # (J,)
    double = 2.0 * np.asarray(azimuth, dtype=np.float64)
    functions = np.stack([s2, s2 * np.cos(double), s2 * np.sin(double), s2**2, np.ones_like(s2)])  # (5, J)
    wavelength = electron_wavelength(volts)
    split = 0.5 * np.pi * wavelength * (u - v)
    coefficients = np.stack(
        [
            0.5 * np.pi * wavelength * (u + v),
            split * np.cos(2.0 * angle),
            split * np.sin(2.0 * angle),
            -0.5 * np.pi * cs * wavelength**3,
            np.arcsin(amplitude) + shift,
        ],
        axis=1,
    )  # (n_images, 5)
    turns = (coefficients * (0.5 / np.pi)) @ functions  # (n_images, J), chi / (2 pi) of Eq. (1.5)
    # sines of float32 are 20 times faster; whole turns are taken off before, so that no digit is lost
    turns -= np.rint(turns)
    ctf: NDArray[np.float32] = turns.astype(np.float32)
    ctf *= np.float32(2.0 * np.pi)
    np.sin(ctf, out=ctf)
    if np.any(b_factor != 0.0):
        ctf *= np.exp(np.outer(-0.25 * b_factor, s2).astype(np.float32))
    if np.any(factor != 1.0):
        ctf *= factor[:, None].astype(np.float32)
    return ctf
