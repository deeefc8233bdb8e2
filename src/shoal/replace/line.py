"""The line: the steps of a network that a span may be made of, in the order they run.

In a residual network a step is a block. A network without any (a VGG, an MLP) is cut into layers: each convolution or
linear layer with the norms and the activation behind it; what has no weights of its own in between (pooling) is a step
that a span may contain, but not begin or end with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from shoal.blocks import Anatomy
from shoal.blocks.template import Ref, refs
from shoal.blocks.trace import Call, Trace
from shoal.plan import Tail
from shoal.replace.tails import activation_of, tail_of

_WEIGHTED = (nn.Conv2d, nn.Linear)
_ACTIVATIONS = (nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish)
# What does nothing in eval mode.
_IDLE = (nn.modules.dropout._DropoutNd, nn.Identity)
_FOLLOWERS = (nn.modules.batchnorm._BatchNorm, *_ACTIVATIONS, *_IDLE)


@dataclass(frozen=True)
class Step:
    """One step of the line; shapes are of one sample.

    Args:
        path: its name: the path of its (first) module.
        paths: all its modules, in order.
        in_shape: of what enters it.
        out_shape: of what leaves it.
        residual: whether it is a residual block.
        tail: what follows its sum; None: something a stand-in cannot carry.
        ends: whether a span may begin and end with it.
    """

    path: str
    paths: tuple[str, ...]
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    residual: bool
    tail: Tail | None
    ends: bool = True


@dataclass(frozen=True)
class Line:
    """The steps in order, and whether each takes exactly what the one before it returned, and nobody else does."""

    steps: tuple[Step, ...]
    follows: tuple[bool, ...]

    @property
    def paths(self) -> tuple[str, ...]:
        """The names of the steps."""
        return tuple(step.path for step in self.steps)

    def step(self, path: str) -> Step:
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


def line_of(anatomy: Anatomy) -> Line:
    """Every removable block whose stream is its first argument and all it returns; of a plain network, its layers."""
    if any(block.units for block in anatomy.chain):
        calls = [anatomy.calls[block.path] for block in anatomy.chain if _is_block(anatomy, block.path)]
        steps = [_block_step(anatomy, call) for call in calls]
        groups = [[call] for call in calls]
    else:
        groups = _layers(anatomy.trace)
        steps = [_layer_step(anatomy.trace, group) for group in groups]
    follows = [False] + [_feeds(anatomy.trace, before[-1], after[0]) for before, after in pairwise(groups)]
    return Line(tuple(steps), tuple(follows[: len(steps)]))


def _is_block(anatomy: Anatomy, path: str) -> bool:
    call = anatomy.calls.get(path)
    if call is None or path not in anatomy.remainders:
        return False
    if not call.args or not isinstance(call.args[0], Ref) or not isinstance(call.output, Ref):
        return False
    # Masks, position embeddings, caches may come along; the stream comes first.
    return anatomy.trace.depends(anatomy.additions[path][0].origin, call.args[0].value)


def _is_plain(call: Call) -> bool:
    """Whether a module takes one tensor and returns one."""
    one_in = len(call.args) == 1 and isinstance(call.args[0], Ref) and not refs(call.kwargs)
    return one_in and isinstance(call.output, Ref)


def _block_step(anatomy: Anatomy, call: Call) -> Step:
    block = anatomy.chain[call.path]
    shapes = block.in_shape, block.out_shape
    return Step(block.path, (block.path,), *shapes, residual=True, tail=tail_of(anatomy, block.path))


def _layers(trace: Trace) -> list[list[Call]]:
    """The innermost module calls of a plain network, grouped: a layer and what belongs to it."""
    parents = {one.parent for one in trace.calls}
    groups: list[list[Call]] = []
    for call in trace.calls:
        innermost = call.index not in parents and len(trace.calls_of(call.module)) == 1 and call.path
        if not innermost or not _is_plain(call):
            continue
        joins = groups and isinstance(call.module, _FOLLOWERS) and _feeds(trace, groups[-1][-1], call)
        if joins:
            groups[-1].append(call)
        else:
            groups.append([call])
    return groups


def _layer_step(trace: Trace, group: Sequence[Call]) -> Step:
    first, last = group[0], group[-1]
    shapes = trace.values[first.args[0].value].shape[1:], trace.values[last.output.value].shape[1:]
    paths = tuple(call.path for call in group)
    return Step(
        first.path,
        paths,
        *shapes,
        residual=False,
        tail=_layer_tail(trace, group),
        ends=isinstance(first.module, _WEIGHTED),
    )


def _layer_tail(trace: Trace, group: Sequence[Call]) -> Tail:
    last = active(group)
    if not isinstance(last.module, _ACTIVATIONS):
        return "identity"
    ops = trace.ops[last.start : last.stop]
    found = activation_of(ops[0]) if len(ops) == 1 else None
    return found or "identity"


def active(group: Sequence[Call]) -> Call:
    """The last call of a layer that does something in eval mode."""
    return next((one for one in reversed(group) if not isinstance(one.module, _IDLE)), group[0])


def _feeds(trace: Trace, before: Call, after: Call) -> bool:
    value = before.output.value
    if after.args[0].value != value or value in refs(trace.output):
        return False
    # What does nothing hands the very tensor through: who reads it behind that reads what comes out of it.
    handed = value in after.outputs
    return all(after.holds(op) or (handed and op >= after.stop) for op in trace.readers.get(value, []))
