"""Record activations while a network runs: the input and the sum of each segment, and what a replacement computes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from shoal.blocks import BlockGraph
from shoal.blocks.interception import intercept_additions
from shoal.replace.output_format import PLAIN, OutputFormat
from shoal.replace.segments import Segment, build_segments, last_active_call, segment_calls


class Recording:
    """Activations of the last mini-batch by segment: `inputs`, and `sums` before the tail.

    `outputs` holds the output of the segments whose replacement computes that (`Segment.replaces_output`).
    """

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}

    def target(self, path: str) -> Tensor:
        """What a replacement for a span that ends with this segment has to compute, before its tail."""
        return self.outputs[path] if path in self.outputs else self.sums[path]


@contextmanager
def recording(graph: BlockGraph, paths: Sequence[str]) -> Iterator[Recording]:
    """Every run of the network inside the context overwrites the recording."""
    record = Recording()
    blocks = [graph.chain[path] for path in paths if path in graph.additions]
    layers = [path for path in paths if path not in graph.additions]
    last = {block.path: len(block.units) - 1 for block in blocks}
    segments = {segment.path: segment for segment in build_segments(graph).segments}

    def record_sum(path: str, unit: int, stream: Tensor, branch: Tensor) -> None:
        if unit == last[path]:
            record.sums[path] = stream + branch

    with ExitStack() as stack:
        for path in paths:
            copied = path not in graph.calls or _overwritten(graph, path)
            module = graph.model.get_submodule(path)
            form = segments[path].output_format if path in segments else PLAIN
            hook = _record_input(record.inputs, path, form, copied=copied)
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
        for path in layers:
            stack.callback(_record_layer(graph, segments[path], record.sums))
        for block in blocks:
            if block.path in segments and segments[block.path].replaces_output:
                stack.callback(_record_output(graph, segments[block.path], record.outputs))
        if blocks:
            stack.enter_context(intercept_additions(graph.model, blocks, record_sum))
        yield record


def _record_input(inputs: dict[str, Tensor], path: str, form: OutputFormat = PLAIN, *, copied: bool) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        stream = form.entering(args, kwargs)
        inputs[path] = stream.clone() if copied else stream

    return hook


def _record_layer(graph: BlockGraph, segment: Segment, sums: dict[str, Tensor]) -> Callable[[], None]:
    """Record the input of a plain layer's activation, or the layer's output where there is none."""
    last = last_active_call(segment_calls(graph, segment))
    module = graph.model.get_submodule(last.path)
    if segment.tail != "identity":
        hook_before = _record_input(sums, segment.path, copied=True)
        return module.register_forward_pre_hook(hook_before, with_kwargs=True).remove

    def hook(module: nn.Module, args: Any, output: Tensor) -> None:
        sums[segment.path] = output.clone()  # the next operation may work in place

    return module.register_forward_hook(hook).remove


def _record_output(graph: BlockGraph, segment: Segment, outputs: dict[str, Tensor]) -> Callable[[], None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        outputs[segment.path] = segment.output_format.stream(output).clone()  # the next operation may work in place

    return graph.model.get_submodule(segment.path).register_forward_hook(hook).remove


def _overwritten(graph: BlockGraph, path: str) -> bool:
    """Whether the block's input is changed in place later, by the block itself or after it."""
    call = graph.calls[path]
    return any(graph.trace.last_change.get(value, -1) >= call.start for value in call.inputs)
