"""Streamed least squares: moments of paired rows, ridge regression with a bias, ridge chosen by held-out error."""

from shoal.regress.moments import Moments, sums_device
from shoal.regress.ridge import RIDGES, Fit, fit, fits, r2, solve

__all__ = ["RIDGES", "Fit", "Moments", "fit", "fits", "r2", "solve", "sums_device"]
