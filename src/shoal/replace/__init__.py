"""What could stand in the place of a span: found, fitted in closed form or trained, built again from plain data."""

from shoal.replace.blockwise import TrainedStudent, train_students
from shoal.replace.calibrate import recalibrate_
from shoal.replace.fitting import MOST_UNKNOWNS, FittedReplacement, ReplacementSpec, fit_all, in_portions
from shoal.replace.kinds import KINDS
from shoal.replace.modules import PassThrough, build_replacement, with_shortcut
from shoal.replace.output_format import ALONE, OutputFormat, copy_format_, install_
from shoal.replace.recording import recording
from shoal.replace.refit import refit_
from shoal.replace.segments import Segment, SegmentChain, build_segments
from shoal.replace.spans import Span, spans_of
from shoal.replace.students import STUDENTS, StudentSpec, students_of, two_blocks

__all__ = [
    "ALONE",
    "KINDS",
    "MOST_UNKNOWNS",
    "STUDENTS",
    "FittedReplacement",
    "OutputFormat",
    "PassThrough",
    "ReplacementSpec",
    "Segment",
    "SegmentChain",
    "Span",
    "StudentSpec",
    "TrainedStudent",
    "build_replacement",
    "build_segments",
    "copy_format_",
    "fit_all",
    "in_portions",
    "install_",
    "recalibrate_",
    "recording",
    "refit_",
    "spans_of",
    "students_of",
    "train_students",
    "two_blocks",
    "with_shortcut",
]
