"""Put replacements in the place of spans."""

from collections.abc import Mapping, Sequence

from torch import nn

from shoal.batches import like_of
from shoal.blocks import BlockGraph
from shoal.errors import SurgeryError
from shoal.plan import Replace
from shoal.replace import PassThrough, SegmentChain, build_replacement, build_segments, install_
from shoal.surgery.hugging_face import attention_slots, repair_kv_cache_


def replace_spans_(
    graph: BlockGraph,
    actions: Sequence[Replace],
    modules: Mapping[str, nn.Module] | None = None,
    *,
    segments: SegmentChain | None = None,
) -> nn.Module:
    """Put a replacement at the first module of each span, in place; its other modules pass their input through.

    Args:
        graph: of the network to change.
        actions: what to replace.
        modules: the fitted replacements by the path of their first module; any other is built with fresh weights.
        segments: those of the network, where they are known; else they are built.

    Raises:
        SurgeryError: a span that is none in this network.
    """
    line = segments or build_segments(graph)
    forms = {path: step.output_format for step in line.segments for path in step.paths}
    for action in actions:
        _check(line, action)
    like = like_of(graph.model)
    ready = dict(modules or {})
    for action in actions:  # all of them before the first change: students are copies of what is replaced
        if action.paths[0] not in ready:
            ready[action.paths[0]] = build_replacement(action.stand_in, like, graph.model)
    attentions = attention_slots(graph.model)
    for action in actions:
        for number, path in enumerate(action.paths):
            install_(graph.model, path, PassThrough() if number else ready[path], forms[path])
    repair_kv_cache_(graph.model, attentions)
    return graph.model


def _check(line: SegmentChain, action: Replace) -> None:
    names = line.paths
    start = names.index(action.paths[0]) if action.paths and action.paths[0] in names else len(names)
    covered: list[str] = []
    for number in range(start, len(names)):
        if len(covered) >= len(action.paths) or (number > start and not line.is_contiguous[number]):
            break
        covered += line.segments[number].paths
    if not covered or covered != action.paths:
        raise SurgeryError(
            f"{', '.join(action.paths) or '(none)'} are no span: they do not follow each other directly",
            "`shoal trace` lists the chain.",
        )
