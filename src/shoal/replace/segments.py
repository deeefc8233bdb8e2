"""The line: the steps of a network that a span may be made of, in the order they run.

In a residual network a step is a block. A network without any (a VGG, an MLP) is cut into layers: each convolution or
linear layer with the norms and the activation behind it; what has no weights of its own in between (pooling) is a step
that a span may contain, but not begin or end with.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from shoal.blocks import BlockGraph
from shoal.blocks.hooks import has_forward_hooks, hook_reason
from shoal.blocks.shortcut_modules import main_output
from shoal.blocks.template import TensorRef, tensor_refs
from shoal.blocks.trace import ModuleCall, Trace
from shoal.plan import Tail
from shoal.replace.output_format import ALONE, OutputFormat, infer_format
from shoal.replace.post_activation import activation_of, post_activation

_WEIGHTED = (nn.Conv2d, nn.Linear)
_ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish)
# What does nothing in eval mode.
_IDLE = (nn.modules.dropout._DropoutNd, nn.Identity)
_FOLLOWERS = (nn.modules.batchnorm._BatchNorm, *_ACTIVATIONS, *_IDLE)


@dataclass(frozen=True)
class Segment:
    """One step of the line; shapes are of one sample.

    Args:
        path: its name: the path of its (first) module.
        paths: all its modules, in order.
        in_shape: of what enters it.
        out_shape: of what leaves it.
        residual: whether it is a residual block.
        tail: what follows its sum, for a stand-in to carry.
        ends: whether a span may begin and end with it.
        whole: what follows its sum is nothing a stand-in can carry (a norm), so one computes all that leaves it.
        form: in which it gives the stream back.
    """

    path: str
    paths: tuple[str, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    residual: bool
    tail: Tail
    ends: bool = True
    whole: bool = False
    form: OutputFormat = ALONE


@dataclass(frozen=True)
class SegmentChain:
    """The steps in order, and whether each takes exactly what the one before it returned, and nobody else does."""

    steps: tuple[Segment, ...]
    follows: tuple[bool, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The names of the steps."""
        return tuple(step.path for step in self.steps)

    def step(self, path: str) -> Segment:
        """The step of a name.

        Raises:
            KeyError: there is none.
        """
        for one in self.steps:
            if one.path == path:
                return one
        raise KeyError(path)

    def module(self, model: nn.Module, path: str) -> nn.Module:
        """The module that does what a step does."""
        modules = [model.get_submodule(one) for one in self.step(path).paths]
        return modules[0] if len(modules) == 1 else nn.Sequential(*modules)


def build_segments(anatomy: BlockGraph) -> SegmentChain:
    """Every removable block whose stream is its first argument and its one result; of a plain network, its layers."""
    if any(block.units for block in anatomy.chain):
        forms = {block.path: form for block in anatomy.chain if (form := _form(anatomy, block.path)) is not None}
        steps = [_block_step(anatomy, path, form) for path, form in forms.items()]
        groups = [[anatomy.calls[path]] for path in forms]
        leaving = [output_value(anatomy, path) for path in forms]
    else:
        groups = _layers(anatomy.trace)
        steps = [_layer_step(anatomy.trace, group) for group in groups]
        leaving = [group[-1].output.value for group in groups]
    pairs = zip(leaving[:-1], (group[0] for group in groups[1:]), strict=True)
    follows = [False] + [_feeds(anatomy.trace, value, after) for value, after in pairs]
    return SegmentChain(tuple(steps), tuple(follows[: len(steps)]))


def output_value(anatomy: BlockGraph, path: str) -> int:
    """The stream that leaves a block, as a value of the trace."""
    return main_output(anatomy.trace, anatomy.calls[path], list(anatomy.additions[path]))


def _form(anatomy: BlockGraph, path: str) -> OutputFormat | None:
    """The form in which a block that may be in a span gives the stream back; None of any other."""
    call = anatomy.calls.get(path)
    if call is None or path not in anatomy.shortcut_modules or not call.args or not isinstance(call.args[0], TensorRef):
        return None
    if has_forward_hooks(call.module):  # its shortcut would carry them, no stand-in does
        return None
    # Masks, position embeddings, caches may come along; the stream comes first. A declared block has no additions.
    if not anatomy.additions[path] or not anatomy.trace.depends(anatomy.additions[path][0].origin, call.args[0].value):
        return None
    return infer_format(call.output, output_value(anatomy, path), call.inputs)


def _is_plain(call: ModuleCall) -> bool:
    """Whether a module takes one tensor and returns one."""
    one_in = len(call.args) == 1 and isinstance(call.args[0], TensorRef) and not tensor_refs(call.kwargs)
    return one_in and isinstance(call.output, TensorRef)


def _block_step(anatomy: BlockGraph, path: str, form: OutputFormat) -> Segment:
    block, tail = anatomy.chain[path], post_activation(anatomy, path)
    return Segment(
        path,
        (path,),
        block.in_shape,
        block.out_shape,
        residual=True,
        tail=tail or "identity",
        whole=tail is None,
        form=form,
    )


def _layers(trace: Trace) -> list[list[ModuleCall]]:
    """The innermost module calls of a plain network, grouped: a layer and what belongs to it."""
    parents = {one.parent for one in trace.calls}
    groups: list[list[ModuleCall]] = []
    for call in trace.calls:
        innermost = call.index not in parents and len(trace.calls_of(call.module)) == 1 and call.path
        if not innermost or not _is_plain(call) or hook_reason(call.module, call.path) is not None:
            continue
        joins = groups and isinstance(call.module, _FOLLOWERS) and _feeds(trace, groups[-1][-1].output.value, call)
        if joins:
            groups[-1].append(call)
        else:
            groups.append([call])
    return groups


def _layer_step(trace: Trace, group: Sequence[ModuleCall]) -> Segment:
    first, last = group[0], group[-1]
    shapes = trace.values[first.args[0].value].shape[1:], trace.values[last.output.value].shape[1:]
    paths = tuple(call.path for call in group)
    return Segment(
        first.path,
        paths,
        *shapes,
        residual=False,
        tail=_layer_tail(trace, group),
        ends=isinstance(first.module, _WEIGHTED),
    )


def _layer_tail(trace: Trace, group: Sequence[ModuleCall]) -> Tail:
    last = last_active_call(group)
    if not isinstance(last.module, _ACTIVATIONS):
        return "identity"
    ops = trace.ops[last.start : last.stop]
    found = activation_of(ops[0]) if len(ops) == 1 else None
    return found or "identity"


def last_active_call(group: Sequence[ModuleCall]) -> ModuleCall:
    """The last call of a layer that does something in eval mode."""
    return next((one for one in reversed(group) if not isinstance(one.module, _IDLE)), group[0])


def _feeds(trace: Trace, value: int, after: ModuleCall) -> bool:
    """Whether `value` is what `after` takes, and nobody else reads it."""
    if after.args[0].value != value or value in tensor_refs(trace.output):
        return False
    # What does nothing hands the very tensor through: who reads it behind that reads what comes out of it.
    handed = value in after.outputs
    return all(after.holds(op) or (handed and op >= after.stop) for op in trace.readers.get(value, []))
