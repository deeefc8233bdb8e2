"""Streamed least squares."""
