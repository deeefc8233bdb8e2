"""The chain of segments that spans are made of, in execution order.

In a residual network a segment is a block. A network without blocks (a VGG, an MLP) is split into layers: each
convolution or linear layer with the norms and the activation that follow it. A module without weights in between
(pooling) is a segment that a span may contain, but not begin or end with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from weakref import WeakKeyDictionary

from torch import nn

from shoal.blocks import BlockGraph
from shoal.blocks.additions import entering_values
from shoal.blocks.hooks import has_forward_hooks, hook_reason
from shoal.blocks.shortcut_modules import main_output
from shoal.blocks.template import TensorRef, tensor_refs
from shoal.blocks.trace import ModuleCall, Trace
from shoal.plan import Tail
from shoal.replace.output_format import PLAIN, OutputFormat, infer_format
from shoal.replace.post_activation import activation_of, post_activation

_WEIGHTED = (nn.Conv2d, nn.Linear)
_ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish)
# No effect in eval mode.
_IDLE = (nn.modules.dropout._DropoutNd, nn.Identity)
_FOLLOWERS = (nn.modules.batchnorm._BatchNorm, *_ACTIVATIONS, *_IDLE)


@dataclass(frozen=True)
class Segment:
    """A residual block, or a layer of a plain network; shapes are of one sample.

    Args:
        path: the name: the path of the (first) module.
        paths: all modules, in order.
        in_shape: shape of the input.
        out_shape: shape of the output.
        residual: whether it is a residual block.
        tail: the activation after the sum, which a replacement applies too.
        can_bound_span: whether a span may begin and end here.
        replaces_output: the sum is followed by something other than an activation (a norm), so that a replacement
            computes the output of the segment, not the sum.
        output_format: how the block takes and returns the stream.
    """

    path: str
    paths: tuple[str, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    residual: bool
    tail: Tail
    can_bound_span: bool = True
    replaces_output: bool = False
    output_format: OutputFormat = PLAIN


@dataclass(frozen=True)
class SegmentChain:
    """The segments in order; `is_contiguous[i]`: segment i is the only reader of the output of segment i - 1."""

    segments: tuple[Segment, ...]
    is_contiguous: tuple[bool, ...]

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The names of the segments."""
        return tuple(segment.path for segment in self.segments)

    def segment(self, path: str) -> Segment:
        """The segment of this name.

        Raises:
            KeyError: there is none.
        """
        return self._by_path[path]

    @cached_property
    def _by_path(self) -> dict[str, Segment]:
        return {segment.path: segment for segment in reversed(self.segments)}

    def module(self, model: nn.Module, path: str) -> nn.Module:
        """The module that computes a segment."""
        modules = [model.get_submodule(part) for part in self.segment(path).paths]
        return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


_CHAINS: WeakKeyDictionary[BlockGraph, SegmentChain] = WeakKeyDictionary()


def build_segments(graph: BlockGraph) -> SegmentChain:
    """Every removable block that takes the stream first or by keyword and returns it; of a plain network, its layers.

    They are computed once for each graph.
    """
    if graph not in _CHAINS:
        _CHAINS[graph] = _build_chain(graph)
    return _CHAINS[graph]


def _build_chain(graph: BlockGraph) -> SegmentChain:
    if any(block.units for block in graph.chain):
        formats = {
            block.path: output_format
            for block in graph.chain
            if (output_format := _format_of(graph, block.path)) is not None
        }
        segments = [_block_segment(graph, path, output_format) for path, output_format in formats.items()]
        groups = [[graph.calls[path]] for path in formats]
        outputs = [output_value(graph, path) for path in formats]
        inputs = [form.entering(graph.calls[path].args, graph.calls[path].kwargs) for path, form in formats.items()]
    else:
        groups = _layers(graph.trace)
        segments = [_layer_segment(graph.trace, group) for group in groups]
        outputs = [group[-1].output.value for group in groups]
        inputs = [group[0].args[0] for group in groups]
    pairs = zip(outputs[:-1], (group[0] for group in groups[1:]), inputs[1:], strict=True)
    is_contiguous = [False] + [
        read.value == value and _reads_alone(graph.trace, value, reader) for value, reader, read in pairs
    ]
    return SegmentChain(tuple(segments), tuple(is_contiguous[: len(segments)]))


def output_value(graph: BlockGraph, path: str) -> int:
    """The stream that a block returns, as a value of the trace."""
    return main_output(graph.trace, graph.calls[path], list(graph.additions[path]))


def _format_of(graph: BlockGraph, path: str) -> OutputFormat | None:
    """How a block takes and returns the stream; None where it cannot be in a span."""
    call = graph.calls.get(path)
    # A declared block has no additions. The shortcut of one with hooks would carry them, a replacement does not.
    if (
        call is None
        or path not in graph.shortcut_modules
        or not graph.additions[path]
        or has_forward_hooks(call.module)
    ):
        return None
    # Masks, position embeddings and caches may follow; the stream comes first, or by a keyword.
    first = {None: call.args[0]} if call.args else call.kwargs
    names = {item.value: name for name, item in first.items() if isinstance(item, TensorRef)}
    additions = graph.additions[path]
    streams = entering_values(graph.trace, additions[0].origin, list(names))
    if len(streams) != 1:
        return None
    returned = output_value(graph, path)
    # A block of two streams: a replacement would map one to the other, and return no other.
    leaving = entering_values(graph.trace, additions[-1].stream, call.inputs)
    if streams[0] not in leaving or any(
        _is_read_behind(graph.trace, call, value) for value in call.outputs if value != returned
    ):
        return None
    return infer_format(call.output, returned, call.inputs, names[streams[0]])


def _is_read_behind(trace: Trace, call: ModuleCall, value: int) -> bool:
    """Whether a value that a call makes is read after it."""
    if value in call.inputs:
        return False
    return value in tensor_refs(trace.output) or any(op >= call.stop for op in trace.readers.get(value, []))


def _is_plain(call: ModuleCall) -> bool:
    """Whether a module takes one tensor and returns one."""
    single_input = len(call.args) == 1 and isinstance(call.args[0], TensorRef) and not tensor_refs(call.kwargs)
    return single_input and isinstance(call.output, TensorRef)


def _block_segment(graph: BlockGraph, path: str, output_format: OutputFormat) -> Segment:
    block, tail = graph.chain[path], post_activation(graph, path)
    return Segment(
        path,
        (path,),
        block.in_shape,
        block.out_shape,
        residual=True,
        tail=tail or "identity",
        replaces_output=tail is None,
        output_format=output_format,
    )


def _layers(trace: Trace) -> list[list[ModuleCall]]:
    """The innermost module calls of a plain network, grouped into a layer and its followers."""
    groups: list[list[ModuleCall]] = []
    for call in trace.calls:
        innermost = call.index not in trace.parents and len(trace.calls_of(call.module)) == 1 and call.path
        if not innermost or not _is_plain(call) or hook_reason(call.module, call.path) is not None:
            continue
        value = groups[-1][-1].output.value if groups and isinstance(call.module, _FOLLOWERS) else None
        if value is not None and call.args[0].value == value and _reads_alone(trace, value, call):
            groups[-1].append(call)
        else:
            groups.append([call])
    return groups


def _layer_segment(trace: Trace, group: Sequence[ModuleCall]) -> Segment:
    first, last = group[0], group[-1]
    shapes = trace.values[first.args[0].value].shape[1:], trace.values[last.output.value].shape[1:]
    paths = tuple(call.path for call in group)
    return Segment(
        first.path,
        paths,
        *shapes,
        residual=False,
        tail=_layer_tail(trace, group),
        can_bound_span=isinstance(first.module, _WEIGHTED),
    )


def _layer_tail(trace: Trace, group: Sequence[ModuleCall]) -> Tail:
    last = last_active_call(group)
    if not isinstance(last.module, _ACTIVATIONS):
        return "identity"
    ops = trace.ops[last.start : last.stop]
    activation = activation_of(ops[0]) if len(ops) == 1 else None
    return activation or "identity"


def segment_calls(graph: BlockGraph, segment: Segment) -> list[ModuleCall]:
    """The calls of the modules of a segment of a plain network, in order."""
    modules = (graph.model.get_submodule(path) for path in segment.paths)
    return [call for module in modules for call in graph.trace.calls_of(module)]


def last_active_call(group: Sequence[ModuleCall]) -> ModuleCall:
    """The last call of a layer that has an effect in eval mode."""
    return next((call for call in reversed(group) if not isinstance(call.module, _IDLE)), group[0])


def _reads_alone(trace: Trace, value: int, reader: ModuleCall) -> bool:
    """Whether `reader` is the only reader of `value`."""
    if value in tensor_refs(trace.output):
        return False
    # A no-op returns the very tensor it was given: a later reader of that tensor reads the output of the no-op.
    passed_through = value in reader.outputs
    return all(reader.holds(op) or (passed_through and op >= reader.stop) for op in trace.readers.get(value, []))
