"""A network as a value: the computation it does, with everything that cannot matter taken away.

Two networks with the same canonical form are the same function by construction, whatever their modules are called.
Taken away are: additions of a branch that is statically zero, ReLUs of what is never negative, dropout in eval mode,
copies and in-place forms. Weights enter by content.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shoal.blocks import Anatomy
from shoal.blocks.additions import add_operands
from shoal.blocks.operations import DROPOUT, plain_name
from shoal.blocks.signs import non_negative_values
from shoal.blocks.template import Opaque, Ref
from shoal.blocks.trace import Op, Trace
from shoal.blocks.zeros import zero_values
from shoal.offloaded import real, weights

_COPIES = frozenset(["contiguous", "clone", "alias", "detach"])
_RANDOM = frozenset(
    [
        "rand",
        "randn",
        "rand_like",
        "randn_like",
        "bernoulli",
        "multinomial",
        "normal",
        "uniform",
        "randint",
        "randperm",
    ]
)


class Canonical:
    """The canonical form of one traced network, by a digest for each value; `premises` fills as digests are made."""

    def __init__(self, anatomy: Anatomy) -> None:
        self.trace: Trace = anatomy.trace
        self.model = anatomy.model
        self.zeros = zero_values(anatomy.trace, anatomy.model)
        self.signs = non_negative_values(anatomy.trace, self.zeros)
        self.tensors: dict[str, Tensor] = _named_tensors(anatomy.model)
        self.contents: dict[str, str] = {}
        self.digests: dict[int, str] = {}
        self.premises: dict[str, None] = {}

    @property
    def output(self) -> str:
        """The digest of everything the network returns."""
        return _digest("output", self._written(self.trace.output))

    def obstacle(self) -> str | None:
        """Why nothing can be said by construction, or None."""
        if self.trace.escapes:
            return f"the network decides in Python by the values of tensors ({self.trace.escapes[0]})"
        if self.trace.unseen:
            return "a tensor appears in the run that no torch function made"
        random = next((op.name for op in self.trace.ops if _draws(op)), None)
        return f"the network draws random numbers ({random})" if random else None

    def of(self, value: int) -> str:
        """The digest of one value of the run."""
        pending = [value]
        while pending:  # no recursion: a deep network would exceed Python's stack
            current = pending[-1]
            missing = [one for one in self._needs(current) if one not in self.digests]
            if missing and current not in self.digests:
                pending.extend(missing)
                continue
            pending.pop()
            if current not in self.digests:
                self.digests[current] = self._make(current)
        return self.digests[value]

    def _needs(self, value: int) -> list[int]:
        info = self.trace.values[value]
        if value in self.zeros or info.origin != "op":
            return []
        op = self.trace.ops[info.producer]
        same = self._same_as(op, value)
        return [same] if same is not None else [*op.inputs, *_overwritten(op, value)]

    def _make(self, value: int) -> str:
        info = self.trace.values[value]
        if value in self.zeros:
            return _digest("zero", repr((info.shape, info.dtype)))
        if info.origin == "input":
            return _digest("input", repr((self.trace.inputs.index(value), info.shape, info.dtype)))
        if info.origin != "op":
            return self._content(value)
        op = self.trace.ops[info.producer]
        same = self._same_as(op, value)
        if same is not None:
            self._say(op, same)
            return self.digests[same]
        name, args, kwargs = _normalised(op)
        before = [self.digests[one] for one in _overwritten(op, value)]
        return _digest(name, self._written((args, kwargs)), str(op.outputs.index(value)), *before)

    def _same_as(self, op: Op, value: int) -> int | None:
        """The input that this operation hands through unchanged, if it does."""
        name = plain_name(op.name)
        if op.outputs[0] != value or len(set(op.outputs) - {value}) > 0:
            return None
        operands = add_operands(op)
        if operands is not None:
            return self._unchanged_by_zero(operands, value)
        if name == "relu" and op.inputs and op.inputs[0] in self.signs:
            return op.inputs[0]
        idle = name in _COPIES or (name in DROPOUT and not _training(op))
        return op.inputs[0] if idle and op.inputs else None

    def _unchanged_by_zero(self, operands: tuple[int, int], value: int) -> int | None:
        result = self.trace.values[value]
        for stream, branch in (operands, operands[::-1]):
            kept = self.trace.values[stream]
            if branch in self.zeros and stream not in self.zeros:
                return stream if (kept.shape, kept.dtype) == (result.shape, result.dtype) else None
        return None

    def _say(self, op: Op, same: int) -> None:
        where = self.trace.calls[op.call].path if op.call >= 0 else ""
        name = plain_name(op.name)
        if name == "add":
            branch = next(value for value in (*op.inputs, same) if value in self.zeros)
            self.premises[f"the branch added in '{where}' is zero: {self.zeros[branch]}"] = None
        elif name == "relu":
            self.premises[f"the ReLU in '{where}' does nothing: its input is never negative"] = None

    def _content(self, value: int) -> str:
        info = self.trace.values[value]
        name = info.name or f"constant {value}"
        if name not in self.contents:
            tensor = self._tensor(info.name) if info.name else self.trace.constants[value]
            self.contents[name] = content_digest(tensor)
        return self.contents[name]

    def _tensor(self, name: str) -> Tensor:
        return real(self.model, name, self.tensors[name])

    def _written(self, item: Any) -> str:
        if isinstance(item, Ref):
            return self.of(item.value)
        if isinstance(item, Mapping):
            return "{" + ",".join(f"{key}:{self._written(part)}" for key, part in sorted(item.items(), key=str)) + "}"
        if isinstance(item, (tuple, list)):
            return "(" + ",".join(self._written(part) for part in item) + ")"
        if isinstance(item, slice):
            return "slice" + self._written((item.start, item.stop, item.step))
        if isinstance(item, Opaque):
            return item.kind
        return getattr(item, "__qualname__", None) or repr(item)


def _overwritten(op: Op, value: int) -> list[int]:
    """What stood in the memory of `value` before an operation on another tensor changed it, if one did."""
    position = op.outputs.index(value)
    changed = op.changed[position : position + 1]
    return [one for one in changed if one not in op.inputs]


def content_digest(tensor: Tensor) -> str:
    """A digest of a tensor's dtype, shape and numbers; -0 counts as +0."""
    plain = tensor.detach().to("cpu")
    if plain.is_floating_point():
        plain = plain + 0.0
    flat = plain.contiguous().flatten().view(torch.uint8) if plain.numel() else torch.empty(0, dtype=torch.uint8)
    head = repr((str(tensor.dtype), tuple(tensor.shape))).encode()
    return hashlib.sha256(head + flat.numpy().tobytes()).hexdigest()


def model_digest(model: nn.Module) -> str:
    """A digest of all weights and buffers of a network, names included."""
    found = {name: content_digest(tensor) for name, tensor in weights(model)}
    return _digest(*(f"{name}={digest}" for name, digest in sorted(found.items())))


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _normalised(op: Op) -> tuple[str, Any, Any]:
    """Name and arguments without what only says whether memory is reused."""
    name = plain_name(op.name)
    module = getattr(op.func, "__module__", None) or "torch"
    if not module.startswith("torch"):  # a stranger's function that happens to be called like one of torch's
        name = f"{module}.{getattr(op.func, '__qualname__', name)}"
    kwargs = {key: part for key, part in op.kwargs.items() if key not in ("inplace", "out")}
    args = op.args[:1] if name == "relu" else op.args
    return name, args, kwargs


def _draws(op: Op) -> bool:
    name = plain_name(op.name)
    return name in _RANDOM or (name in DROPOUT and _training(op))


def _training(op: Op) -> bool:
    flag = op.kwargs.get("training", op.args[2] if len(op.args) > 2 else True)
    return bool(flag)


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()
