"""Replacements for spans of blocks: fitted in closed form or trained, refitted, and rebuilt from plain data."""

from shoal.deprecated import former_names
from shoal.replace.blockwise import TrainedStudents, train_students
from shoal.replace.calibrate import has_statistics, recalibrate_
from shoal.replace.fitting import (
    MAX_UNKNOWNS,
    FitScorer,
    FittedReplacement,
    ReplacementSpec,
    fit_all,
    split_by_key,
    split_by_memory,
)
from shoal.replace.folded import FOLDED, FoldedSpec, fit_folded, folded_specs
from shoal.replace.kinds import REPLACEMENTS
from shoal.replace.linear_attention import (
    LINEAR_ATTENTION,
    LinearAttentionSpec,
    fit_linear_attentions,
    linear_attention_specs,
)
from shoal.replace.modules import PassThrough, build_replacement, with_shortcut
from shoal.replace.output_format import PLAIN, OutputFormat, copy_format_, install_
from shoal.replace.recording import recording
from shoal.replace.refit import RefitConfig, refit_
from shoal.replace.segments import Segment, SegmentChain, build_segments
from shoal.replace.spans import Span, find_spans, stream_layout
from shoal.replace.students import STUDENTS, StudentSpec, students_of, two_blocks

__all__ = [
    "FOLDED",
    "LINEAR_ATTENTION",
    "MAX_UNKNOWNS",
    "PLAIN",
    "REPLACEMENTS",
    "STUDENTS",
    "FitScorer",
    "FittedReplacement",
    "FoldedSpec",
    "LinearAttentionSpec",
    "OutputFormat",
    "PassThrough",
    "RefitConfig",
    "ReplacementSpec",
    "Segment",
    "SegmentChain",
    "Span",
    "StudentSpec",
    "TrainedStudents",
    "build_replacement",
    "build_segments",
    "copy_format_",
    "find_spans",
    "fit_all",
    "fit_folded",
    "fit_linear_attentions",
    "folded_specs",
    "has_statistics",
    "install_",
    "linear_attention_specs",
    "recalibrate_",
    "recording",
    "refit_",
    "split_by_key",
    "split_by_memory",
    "stream_layout",
    "students_of",
    "train_students",
    "two_blocks",
    "with_shortcut",
]

__getattr__ = former_names(
    __name__,
    {
        "ALONE": "shoal.replace:PLAIN",
        "KINDS": "shoal.replace:REPLACEMENTS",
        "MOST_UNKNOWNS": "shoal.replace:MAX_UNKNOWNS",
        "Fitted": "shoal.replace:FittedReplacement",
        "Form": "shoal.replace:OutputFormat",
        "Line": "shoal.replace:SegmentChain",
        "Step": "shoal.replace:Segment",
        "Through": "shoal.replace:PassThrough",
        "Trained": "shoal.replace:TrainedStudents",
        "Wanted": "shoal.replace:ReplacementSpec",
        "WantedStudent": "shoal.replace:StudentSpec",
        "build": "shoal.replace:build_replacement",
        "hand_form_on_": "shoal.replace:copy_format_",
        "in_portions": "shoal.replace:split_by_memory",
        "line_of": "shoal.replace:build_segments",
        "spans_of": "shoal.replace:find_spans",
        "take_place_": "shoal.replace:install_",
    },
)
