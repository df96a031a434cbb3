"""Conventions and forward operators of image formation, on plain arrays.

Images are (n_images, D, D), ``image[y, x]``; x runs right along columns, y down along rows. The origin is
pixel D // 2, RELION's centre. Frequencies k = (kx, ky) count Fourier pixels; azimuths are atan2(ky, kx).
"""
