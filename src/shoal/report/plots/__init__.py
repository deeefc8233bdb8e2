"""Plots of a report: x/y plots drawn by matplotlib as SVG, and intervals as rows of HTML."""
