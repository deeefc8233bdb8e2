"""What could stand in the place of a span: found, fitted in closed form or trained, built again from plain data."""

from shoal.replace.calibrate import recalibrate_
from shoal.replace.fitting import MOST_UNKNOWNS, Fitted, Wanted, fit_all, in_portions
from shoal.replace.forms import ALONE, Form, hand_form_on_, take_place_
from shoal.replace.kinds import KINDS
from shoal.replace.learning import Trained, train_students
from shoal.replace.line import Line, Step, line_of
from shoal.replace.recording import recording
from shoal.replace.refit import refit_
from shoal.replace.spans import Span, spans_of
from shoal.replace.stand_ins import Through, build, with_shortcut
from shoal.replace.students import STUDENTS, WantedStudent, students_of, two_blocks

__all__ = [
    "ALONE",
    "KINDS",
    "MOST_UNKNOWNS",
    "STUDENTS",
    "Fitted",
    "Form",
    "Line",
    "Span",
    "Step",
    "Through",
    "Trained",
    "Wanted",
    "WantedStudent",
    "build",
    "fit_all",
    "hand_form_on_",
    "in_portions",
    "line_of",
    "recalibrate_",
    "recording",
    "refit_",
    "spans_of",
    "students_of",
    "take_place_",
    "train_students",
    "two_blocks",
    "with_shortcut",
]
