"""A network as a value: the computation it does, with everything that cannot matter taken away.

Two networks with the same canonical form are the same function by construction, whatever their modules are called.
Taken away are: additions of a branch that is statically zero, ReLUs of what is never negative, dropout in eval mode,
copies and in-place forms. Weights enter by content.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from shoal.blocks import BlockGraph
from shoal.blocks.operations import DROPOUT, OpSignature, known_name
from shoal.blocks.sign_analysis import non_negative_values
from shoal.blocks.template import Opaque, TensorRef, leaves, tensor_refs
from shoal.blocks.trace import OpRecord, Trace
from shoal.blocks.zero_analysis import zero_values
from shoal.offloaded import real, weights

_COPIES = frozenset(["contiguous", "clone", "alias", "detach", "data"])
# They read memory by its layout, which no digest of numbers tells.
_BY_LAYOUT = frozenset(["as_strided", "set_", "resize_", "as_strided_", "resize_as_", "empty_strided"])
# How much they return depends on the numbers that come in.
_BY_VALUE = frozenset(
    """
    nonzero argwhere masked_select unique unique_consecutive bincount histc one_hot to_sparse to_sparse_coo
    to_sparse_csr to_sparse_csc coalesce _pack_padded_sequence
    """.split()
)
# The same, where the second argument is a tensor; and functions in Python, which take tensors for sizes.
_CUT_BY_TENSOR = frozenset(["repeat_interleave", "tensor_split"])
_UNTYPED_SIZES = frozenset("pad interpolate upsample split".split())
# They tell -0 from 0, which an addition of zero or a ReLU does not hand on.
_BY_SIGN_OF_ZERO = frozenset("copysign signbit atan2 arctan2 angle".split())


class CanonicalForm:
    """The canonical form of one traced network, by a digest for each value; `assumptions` fill as digests are made."""

    def __init__(self, graph: BlockGraph) -> None:
        self.trace: Trace = graph.trace
        self.model = graph.model
        self.zeros = zero_values(graph.trace, graph.model)
        self.signs = non_negative_values(graph.trace, self.zeros)
        self.tensors: dict[str, Tensor] = _named_tensors(graph.model)
        self.contents: dict[str, str] = {}
        self.digests: dict[int, str] = {}
        self.assumptions: dict[str, None] = {}

    @property
    def output(self) -> str:
        """The digest of everything the network returns."""
        return _digest("output", self._serialize(self.trace.output))

    def unprovable_reason(self) -> str | None:
        """Why nothing can be said by construction, or None."""
        trace = self.trace
        if trace.data_escapes:
            return f"the network decides in Python by the values of tensors ({trace.data_escapes[0]})"
        if trace.untracked:
            return "a tensor appears in the run that no torch function made"
        if trace.drew_random:
            return "the network draws random numbers"
        if trace.written:
            return f"the network changes {sorted(trace.written)[0]} as it runs"
        kind = next((part.kind for part in leaves(trace.output) if isinstance(part, Opaque)), "Cache")
        if not kind.endswith("Cache"):  # what is handed back to the network in its next call is no output
            return f"the network returns a {kind}, which cannot be compared"
        reason = next((reason for op in trace.ops if (reason := self._unreadable(op)) is not None), None)
        by_sign = next((op.name for op in trace.ops if _tells_minus_zero(op)), None)
        if reason is None and by_sign is not None and self.output and self.assumptions:
            return f"{by_sign} tells -0 from 0, and what was taken away made 0 of -0"
        return reason

    def _unreadable(self, op: OpRecord) -> str | None:
        """Why two runs of an operation cannot be compared by what it was called with, or None."""
        if known_name(op.func) is None:
            return f"'{op.name}' is no function of torch, so what it computes is not known"
        if op.name in _BY_LAYOUT:
            return f"{op.name} reads memory by its layout"
        index = op.args[1:] if op.name == "__getitem__" else ()
        chosen = any(self.trace.values[value].dtype in (torch.bool, torch.uint8) for value in tensor_refs(index))
        if chosen or op.name in _BY_VALUE or self._sized_by_tensor(op) or _is_nonzero(op):
            return f"the size of what {op.name} returns depends on the numbers, and Python may decide by it"
        kind = next((item.kind for item in leaves((op.args, op.kwargs)) if isinstance(item, Opaque)), None)
        return f"{op.name} is called with a {kind}, which cannot be compared" if kind is not None else None

    def _sized_by_tensor(self, op: OpRecord) -> bool:
        """Whether a tensor stands where torch expects a number, which it takes out unseen: `torch.arange(x.max())`."""
        if op.name in _CUT_BY_TENSOR:
            return len(op.inputs) > 1
        if op.name == "__getitem__":  # an index picks, the bound of a slice cuts
            indices = op.args[1] if isinstance(op.args[1], tuple) else (op.args[1],)
            places: list[Any] = [index for index in indices if isinstance(index, slice)]
        elif op.signature is None:  # where torch's own signatures fit, a tensor stands for no number
            places = [op.args, op.kwargs]
        else:
            places = [op.args[1:], op.kwargs] if op.name in _UNTYPED_SIZES else []
        numbers = (self.trace.values[value] for value in tensor_refs(places))
        return any(info.origin in ("op", "input") and math.prod(info.shape) == 1 for info in numbers)

    def digest(self, value: int) -> str:
        """The digest of one value of the run."""
        pending = [value]
        while pending:  # no recursion: a deep network would exceed Python's stack
            current = pending[-1]
            missing = [needed for needed in self._needs(current) if needed not in self.digests]
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
        same = self._passed_through(op, value)
        return [same] if same is not None else [*op.inputs, *_overwritten_memory(op, value)[0]]

    def _make(self, value: int) -> str:
        info = self.trace.values[value]
        if value in self.zeros:
            return _digest("zero", repr((info.shape, info.dtype)))
        if info.origin == "input":
            return _digest("input", repr((self.trace.inputs.index(value), info.shape, info.dtype)))
        if info.origin != "op":
            return self._content(value)
        op = self.trace.ops[info.producer]
        same = self._passed_through(op, value)
        if same is not None:
            self.note_assumption(op, same)
            return self.digests[same]
        before, places = _overwritten_memory(op, value)
        which = _result_position(op, value) if not before else f"{places}"
        made = repr((info.shape, info.dtype))
        return _digest(self._computed(op), which, made, *(self.digests[index] for index in before))

    def _computed(self, op: OpRecord) -> str:
        """What an operation computes, in one form for all its spellings; else as it was called."""
        signature = op.signature
        if signature is None:
            kwargs = {key: item for key, item in op.kwargs.items() if key != "inplace"}
            return f"{op.name} {id(op.func)} {self._serialize((op.args, kwargs))}"
        return f"{signature.name} {self._serialize(signature.arguments)}"

    def _passed_through(self, op: OpRecord, value: int) -> int | None:
        """The input that this operation hands through unchanged, if it does."""
        signature = op.signature
        if signature is None or op.value != value or len(set(op.outputs) - {value}) > 0:
            return None
        stream = signature.tensor("input")
        if signature.name in ("add", "sub"):
            stream = self._operand_next_to_zero(signature)
        elif signature.name == "relu":
            stream = stream if stream in self.signs else None
        elif signature.name in DROPOUT:
            stream = stream if not signature.get("training", True) else None
        elif signature.name not in _COPIES:
            return None
        before, after = (self.trace.values[index] if index is not None else None for index in (stream, value))
        if before is None or after is None or stream in self.zeros:
            return None
        return stream if (before.shape, before.dtype) == (after.shape, after.dtype) else None

    def _operand_next_to_zero(self, signature: OpSignature) -> int | None:
        """The operand of a sum that is left when the other is zero."""
        first, second = signature.get("input"), signature.get("other")
        if self._is_zero(second):
            return signature.tensor("input")
        plain = signature.name == "add" and signature.get("alpha") == 1
        return signature.tensor("other") if plain and self._is_zero(first) else None

    def _is_zero(self, item: object) -> bool:
        if isinstance(item, TensorRef):
            return item.value in self.zeros
        return isinstance(item, (int, float)) and item == 0

    def note_assumption(self, op: OpRecord, same: int) -> None:
        """Write down what has to hold for an operation to hand its input through."""
        where = self.trace.calls[op.call].path if op.call >= 0 else ""
        name = op.signature.name if op.signature is not None else op.name
        if name in ("add", "sub"):
            branch = next((value for value in op.inputs if value in self.zeros), None)
            if branch is not None:
                self.assumptions[f"the branch added in '{where}' is zero: {self.zeros[branch]}"] = None
        elif name == "relu":
            self.assumptions[f"the ReLU in '{where}' does nothing: its input is never negative"] = None

    def _content(self, value: int) -> str:
        info = self.trace.values[value]
        name = info.name or f"constant {value}"
        if name not in self.contents:
            tensor = self._tensor(info.name) if info.name else self.trace.constants[value]
            self.contents[name] = content_digest(tensor)
        return self.contents[name]

    def _tensor(self, name: str) -> Tensor:
        return real(self.model, name, self.tensors[name])

    def _serialize(self, item: Any) -> str:
        if isinstance(item, TensorRef):
            return self.digest(item.value)
        if isinstance(item, Mapping):
            return "{" + ",".join(sorted(f"{key!r}:{self._serialize(part)}" for key, part in item.items())) + "}"
        if isinstance(item, (tuple, list)):
            return "(" + ",".join(self._serialize(part) for part in item) + ")"
        if isinstance(item, slice):
            return "slice" + self._serialize((item.start, item.stop, item.step))
        if isinstance(item, Opaque):  # among arguments an obstacle; of the output it is a cache, which is not compared
            return item.kind
        return f"{item!r} {id(item)}" if callable(item) else repr(item)


def _result_position(op: OpRecord, value: int) -> str:
    """Which of the tensors that an operation returned or changed is meant."""
    returned = tensor_refs(op.result)
    return f"result {returned.index(value)}" if value in returned else f"changed {op.outputs.index(value)}"


def _tells_minus_zero(op: OpRecord) -> bool:
    reads_bits = op.name == "view" and op.signature is not None and op.signature.get("dtype") is not None
    return op.name in _BY_SIGN_OF_ZERO or reads_bits


def _is_nonzero(op: OpRecord) -> bool:
    """`torch.where(condition)` is `nonzero`."""
    return op.name == "where" and len(op.args) + len(op.kwargs) == 1


def _overwritten_memory(op: OpRecord, value: int) -> tuple[list[int], tuple[str, str] | None]:
    """What stood in the memory of `value` before an operation on another tensor changed it, and where both lie."""
    position = op.outputs.index(value)
    if position >= len(op.changed) or value in tensor_refs(op.result):
        return [], None
    return [op.changed[position]], (op.places[0], op.places[position])


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
    digests = {name: content_digest(tensor) for name, tensor in weights(model)}
    return _digest(*(f"{name}={digest}" for name, digest in sorted(digests.items())))


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()
