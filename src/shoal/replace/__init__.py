"""What could stand in the place of a span: found, fitted in closed form, built again from plain data."""

from shoal.replace.calibrate import recalibrate_
from shoal.replace.fitting import MOST_UNKNOWNS, Fitted, Wanted, fit_all, in_portions
from shoal.replace.kinds import KINDS
from shoal.replace.line import Line, Step, line_of
from shoal.replace.recording import recording
from shoal.replace.refit import refit_
from shoal.replace.spans import Span, spans_of
from shoal.replace.stand_ins import Through, build, with_shortcut

__all__ = [
    "KINDS",
    "MOST_UNKNOWNS",
    "Fitted",
    "Line",
    "Span",
    "Step",
    "Through",
    "Wanted",
    "build",
    "fit_all",
    "in_portions",
    "line_of",
    "recalibrate_",
    "recording",
    "refit_",
    "spans_of",
    "with_shortcut",
]
