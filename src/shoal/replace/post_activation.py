"""The activation after the sum of a span: read from a trace, and built as a module."""

from collections.abc import Callable
from typing import get_args

from torch import nn

from shoal.blocks import BlockGraph
from shoal.blocks.shortcut_modules import main_output
from shoal.blocks.trace import OpRecord, Trace
from shoal.plan import Tail

POST_ACTIVATIONS: dict[Tail, Callable[[], nn.Module]] = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "hardswish": nn.Hardswish,
}


def post_activation_module(tail: Tail) -> nn.Module:
    """The module for a tail."""
    return POST_ACTIVATIONS[tail]()


def post_activation(graph: BlockGraph, path: str) -> Tail | None:
    """What follows the last addition of a block: "identity", or an activation of the table; None for anything else."""
    additions = list(graph.additions[path])
    output, last = main_output(graph.trace, graph.calls[path], additions), additions[-1]
    if output == last.result:
        return "identity"
    op = _producer(graph.trace, output)
    return activation_of(op) if op is not None and op.inputs == [last.result] else None


def activation_of(op: OpRecord) -> Tail | None:
    """The activation of the table that an operation computes; None where it has settings that no module there has."""
    name = op.name.rstrip("_")
    settings = {key: value for key, value in op.kwargs.items() if key not in ("input", "inplace")}
    approximate = settings.pop("approximate", "none")
    plain = not settings and not [arg for arg in op.args[1:] if not isinstance(arg, bool)]
    if not plain or name not in get_args(Tail):
        return None
    if name == "gelu":
        return "gelu" if approximate == "none" else "gelu_tanh"
    return name  # type: ignore[return-value]


def _producer(trace: Trace, value: int) -> OpRecord | None:
    producer = trace.values[value].producer
    return trace.ops[producer] if producer >= 0 else None
