"""Replacements for spans of blocks: fitted in closed form or trained, refitted, and rebuilt from plain data."""

from shoal.replace.blockwise import TrainedStudent, train_students
from shoal.replace.calibrate import recalibrate_
from shoal.replace.fitting import MAX_UNKNOWNS, FittedReplacement, ReplacementSpec, fit_all, split_by_memory
from shoal.replace.kinds import REPLACEMENTS
from shoal.replace.modules import PassThrough, build_replacement, with_shortcut
from shoal.replace.output_format import PLAIN, OutputFormat, copy_format_, install_
from shoal.replace.recording import recording
from shoal.replace.refit import RefitConfig, refit_
from shoal.replace.segments import Segment, SegmentChain, build_segments
from shoal.replace.spans import Span, find_spans
from shoal.replace.students import STUDENTS, StudentSpec, students_of, two_blocks

__all__ = [
    "MAX_UNKNOWNS",
    "PLAIN",
    "REPLACEMENTS",
    "STUDENTS",
    "FittedReplacement",
    "OutputFormat",
    "PassThrough",
    "RefitConfig",
    "ReplacementSpec",
    "Segment",
    "SegmentChain",
    "Span",
    "StudentSpec",
    "TrainedStudent",
    "build_replacement",
    "build_segments",
    "copy_format_",
    "find_spans",
    "fit_all",
    "install_",
    "recalibrate_",
    "recording",
    "refit_",
    "split_by_memory",
    "students_of",
    "train_students",
    "two_blocks",
    "with_shortcut",
]
