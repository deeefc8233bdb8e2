"""The record in words and pictures: one HTML page that works offline, and a short form for the terminal."""

from shoal.report.compress import render
from shoal.report.front_csv import front_csv
from shoal.report.runs import NamedRun, render_runs
from shoal.report.scan import render_scan
from shoal.report.terminal import show, show_certificate, show_chain, show_scan, show_tasks, show_training
from shoal.report.train import render_training

__all__ = [
    "NamedRun",
    "front_csv",
    "render",
    "render_runs",
    "render_scan",
    "render_training",
    "show",
    "show_certificate",
    "show_chain",
    "show_scan",
    "show_tasks",
    "show_training",
]
