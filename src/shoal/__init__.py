"""Shoal makes deep residual networks shallow."""

__version__ = "0.1.0"
