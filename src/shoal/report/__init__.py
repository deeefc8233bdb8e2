"""The record in words and pictures: one HTML page that works offline, and a short form for the terminal."""

from shoal.report.html import render
from shoal.report.terminal import show, show_certificate, show_chain

__all__ = ["render", "show", "show_certificate", "show_chain"]
