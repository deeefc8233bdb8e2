"""Watch a network run: what enters every step of its line, the sum at its end, and what a stand-in has to compute."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from shoal.blocks import BlockGraph
from shoal.blocks.interception import intercept_additions
from shoal.replace.segments import Segment, build_segments, last_active_call


class Recording:
    """Of the last mini-batch: `inputs[path]` entering each step, `sums[path]` before its tail.

    `leaving[path]` is what leaves a step whose sum is followed by more than a stand-in can carry.
    """

    def __init__(self) -> None:
        self.inputs: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.leaving: dict[str, Tensor] = {}

    def target(self, path: str) -> Tensor:
        """What a stand-in for a span that ends with this step has to compute, before its tail."""
        return self.leaving[path] if path in self.leaving else self.sums[path]


@contextmanager
def recording(anatomy: BlockGraph, paths: Sequence[str]) -> Iterator[Recording]:
    """While the context lasts, every run of the network fills the recording; nothing is kept from run to run."""
    found = Recording()
    blocks = [anatomy.chain[path] for path in paths if path in anatomy.additions]
    layers = [path for path in paths if path not in anatomy.additions]
    last = {block.path: len(block.units) - 1 for block in blocks}

    def look(path: str, unit: int, stream: Tensor, branch: Tensor) -> None:
        if unit == last[path]:
            found.sums[path] = stream + branch

    with ExitStack() as stack:
        for path in paths:
            copied = path not in anatomy.calls or _overwritten(anatomy, path)
            module = anatomy.model.get_submodule(path)
            handle = module.register_forward_pre_hook(_entering(found.inputs, path, copied=copied))
            stack.callback(handle.remove)
        steps = {step.path: step for step in build_segments(anatomy).steps}
        for path in layers:
            stack.callback(_watch_layer(anatomy, steps[path], found.sums))
        for block in blocks:
            if block.path in steps and steps[block.path].whole:
                stack.callback(_watch_leaving(anatomy, steps[block.path], found.leaving))
        if blocks:
            stack.enter_context(intercept_additions(anatomy.model, blocks, look))
        yield found


def _entering(inputs: dict[str, Tensor], path: str, *, copied: bool) -> Any:
    def hook(module: nn.Module, args: Any) -> None:
        inputs[path] = args[0].clone() if copied else args[0]

    return hook


def _watch_layer(anatomy: BlockGraph, step: Segment, sums: dict[str, Tensor]) -> Callable[[], None]:
    """Keep what the activation of a plain layer reads, or what the layer returns where there is none."""
    last = last_active_call([one for one in anatomy.trace.calls if one.path in step.paths])
    module = anatomy.model.get_submodule(last.path)
    if step.tail != "identity":
        return module.register_forward_pre_hook(_entering(sums, step.path, copied=True)).remove

    def leaving(module: nn.Module, args: Any, output: Tensor) -> None:
        sums[step.path] = output.clone()  # whatever comes next may work in place

    return module.register_forward_hook(leaving).remove


def _watch_leaving(anatomy: BlockGraph, step: Segment, leaving: dict[str, Tensor]) -> Callable[[], None]:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        leaving[step.path] = step.form.stream(output).clone()  # whatever comes next may work in place

    return anatomy.model.get_submodule(step.path).register_forward_hook(hook).remove


def _overwritten(anatomy: BlockGraph, path: str) -> bool:
    """Whether what enters the block is changed in place later, by the block itself or behind it."""
    call = anatomy.calls[path]
    return any(set(call.inputs) & set(op.changed) for op in anatomy.trace.ops[call.start :])
