"""The record in words and pictures: one HTML page that works offline, and a short form for the terminal."""

from shoal.report.html import render
from shoal.report.scan_html import render_scan
from shoal.report.scan_terminal import show_scan
from shoal.report.terminal import show, show_certificate, show_chain

__all__ = ["render", "render_scan", "show", "show_certificate", "show_chain", "show_scan"]
