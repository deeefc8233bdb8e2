"""What could stand in the place of a span: found, fitted in closed form, built again from plain data."""

from shoal.replace.fitting import Fitted, Wanted, fit_all
from shoal.replace.recording import recording
from shoal.replace.refit import recalibrate_, refit_
from shoal.replace.spans import Line, Span, line_of, spans_of
from shoal.replace.stand_ins import build

__all__ = [
    "Fitted",
    "Line",
    "Span",
    "Wanted",
    "build",
    "fit_all",
    "line_of",
    "recalibrate_",
    "recording",
    "refit_",
    "spans_of",
]
