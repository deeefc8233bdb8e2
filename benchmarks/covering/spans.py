"""Which span of a row is replaced, and why there is none where there is none."""

from shoal.blocks import BlockGraph
from shoal.blocks.template import TensorRef
from shoal.replace import MAX_UNKNOWNS, Span, build_segments, find_spans

_LONGEST = 3


def chosen_span(anatomy: BlockGraph, inside: str) -> Span | None:
    """A span across a change of stage where there is one, of two blocks where there are; the first of these."""
    found = [
        span
        for span in find_spans(anatomy, build_segments(anatomy), _LONGEST)
        if span.paths[0].startswith(inside) and span.in_channels <= MAX_UNKNOWNS and span.residual
    ]
    return min(found, key=lambda span: (span.keeps_shape, abs(len(span.paths) - 2), span.start), default=None)


def why_none(anatomy: BlockGraph, inside: str) -> str:
    """What the blocks of a network without a span have that a stand-in cannot take or give back."""
    reasons: dict[str, int] = {}
    for path in anatomy.shortcut_modules:
        if path.startswith(inside):
            reason = _obstacle(anatomy, path)
            reasons[reason] = reasons.get(reason, 0) + 1
    said = [f"{reason} ({count})" for reason, count in sorted(reasons.items(), key=lambda one: -one[1])]
    return "no span: " + "; ".join(said or ["no removable block"])


def _obstacle(anatomy: BlockGraph, path: str) -> str:
    call, block = anatomy.calls[path], anatomy.chain[path]
    if not call.args:
        return "a block gets the stream by keyword"
    if not isinstance(call.args[0], TensorRef):
        return "the first argument of a block is no tensor"
    if path not in build_segments(anatomy).paths:
        return f"the stream is not the first argument, or comes back in a {type(call.output).__name__} with more"
    if block.in_shape and max(block.in_shape[0], block.in_shape[-1]) > MAX_UNKNOWNS:
        return f"more than {MAX_UNKNOWNS} channels"
    return f"no layout for {list(block.in_shape)} to {list(block.out_shape)}"
