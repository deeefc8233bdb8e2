"""Which span of a row is replaced, and why there is none where there is none."""

from shoal.blocks import Anatomy
from shoal.blocks.template import Ref
from shoal.replace import MOST_UNKNOWNS, Span, line_of, spans_of

_LONGEST = 3


def chosen_span(anatomy: Anatomy, inside: str) -> Span | None:
    """A span across a change of stage where there is one, of two blocks where there are; the first of these."""
    found = [
        span
        for span in spans_of(anatomy, line_of(anatomy), _LONGEST)
        if span.paths[0].startswith(inside) and span.in_channels <= MOST_UNKNOWNS and span.residual
    ]
    return min(found, key=lambda span: (span.keeps_shape, abs(len(span.paths) - 2), span.start), default=None)


def why_none(anatomy: Anatomy, inside: str) -> str:
    """What the blocks of a network without a span have that a stand-in cannot take or give back."""
    reasons: dict[str, int] = {}
    for path in anatomy.remainders:
        if path.startswith(inside):
            reason = _obstacle(anatomy, path)
            reasons[reason] = reasons.get(reason, 0) + 1
    said = [f"{reason} ({count})" for reason, count in sorted(reasons.items(), key=lambda one: -one[1])]
    return "no span: " + "; ".join(said or ["no removable block"])


def _obstacle(anatomy: Anatomy, path: str) -> str:
    call = anatomy.calls[path]
    if len(call.inputs) > 1:
        return "blocks take several tensors"
    if call.kwargs or len(call.args) != 1:
        return "blocks take more than a tensor: " + ", ".join(call.kwargs or ["arguments by position"])
    if not isinstance(call.output, Ref):
        return f"blocks return a {type(call.output).__name__}"
    if all(step.tail is None for step in line_of(anatomy).steps if step.path == path):
        return "something other than an activation follows the last addition"
    block = anatomy.chain[path]
    return f"no layout for {list(block.in_shape)} to {list(block.out_shape)}"
