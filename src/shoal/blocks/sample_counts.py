"""Other numbers of samples: does a network compute the same with them, and does its code decide by them?

A trace shows only what was done with the number of samples traced. So a network is run on shapes alone, on torch's
`meta` device, where any number costs nothing. And sizes note what they are compared with, through arithmetic too: those
that follow the number of samples are found by laying two traces side by side.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.blocks.template import TensorRef
from shoal.blocks.trace import Trace, TraceRecorder, attribute_name
from shoal.errors import ShoalError
from shoal.intake import held_tensors, on_other_tensors
from shoal.offloaded import is_offloaded
from shoal.preserve import evaluating

_READS = frozenset(["shape", "size", "__len__", "numel", "nelement"])
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_ARITHMETIC = """
    add radd sub rsub mul rmul floordiv rfloordiv mod rmod pow rpow lshift rlshift rshift rrshift neg abs
""".split()

_Origin = tuple[int, int]  # a value of the trace and an axis of it; -1: the number of all its elements


@dataclass(frozen=True)
class SizeComparison:
    """What a size was compared with, and in which module.

    Args:
        origins: the sizes that it was computed from.
        exact: whether it is such a size itself.
        operator: of the comparison.
        bound: the other side.
        bound_origins: the sizes that the other side was computed from.
        path: of the module.
    """

    origins: frozenset[_Origin]
    exact: bool
    operator: str
    bound: Any
    bound_origins: frozenset[_Origin]
    path: str

    @property
    def is_settled(self) -> bool:
        """Whether it comes out alike for all numbers of samples above one; a single one is traced by itself."""
        if not self.exact or not isinstance(self.bound, (int, float)):
            return False
        return self.bound <= (2 if self.operator in ("<", ">=") else 1)

    def depends_on(self, varying: set[_Origin]) -> bool:
        """Whether one side follows the number of samples and the other does not."""
        return bool(self.origins & varying) != bool(self.bound_origins & varying)


class ShapeRuns:
    """Runs of a network on shapes alone, on a copy that has its code and no numbers.

    Args:
        model: the network; it is left as it was.
        example: an input of one sample or more.
    """

    def __init__(self, model: nn.Module, example: Batch) -> None:
        self.example = example
        self.real: dict[int, Tensor] = {}
        self.traces: dict[int, Trace | None] = {}
        self.hollow: nn.Module | None = None
        if not is_offloaded(model):
            with suppress(Exception):  # what cannot be copied is not looked at
                self.hollow = on_other_tensors(model, {id(held): self._hollow(held) for held in held_tensors(model)})

    def _hollow(self, tensor: Tensor) -> Tensor:
        empty = torch.empty_like(tensor, device="meta", requires_grad=False)
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, requires_grad=False)
        self.real[id(empty)] = tensor
        return empty

    def trace(self, count: int) -> Trace | None:
        """The run on so many samples; None where it needs numbers, or does not take so many."""
        if self.hollow is None:
            return None
        if count not in self.traces:
            self.traces[count] = self._run(ShapeRecorder(self.hollow, self.real), count)
        return self.traces[count]

    def decision(self) -> str | None:
        """How the code decides by the number of samples; None where it is not seen to."""
        run, alone = self.trace(3), self.trace(1)
        if self.hollow is None or run is None:
            return None
        varying = _varying_sizes(run, alone)
        watch = SizeWatch(self.hollow, self.real)
        self._run(watch, 3)
        for comparison in watch.comparisons:
            if comparison.depends_on(varying) and not comparison.is_settled:
                where = f" in '{comparison.path}'" if comparison.path else ""
                compared = f"{comparison.operator} {comparison.bound}{where}"
                return f"the network decides in Python by the number of samples ({compared})"
        return None

    def _run(self, recorder: "ShapeRecorder", count: int) -> Trace | None:
        example = self.example.resized(count).to("meta")
        model = recorder.model
        with evaluating(model), recorder.hooked():
            recorder.trace.inputs.extend(recorder.new_value(tensor, "input").value for tensor in example.tensors)
            try:
                with torch.device("meta"), recorder:
                    output = call(model, example, clone=False)
                recorder.trace.output = recorder.template(output)
            except (ShoalError, RuntimeError, NotImplementedError):
                return None
        return recorder.trace


class ShapeRecorder(TraceRecorder):
    """A trace on shapes, in which constants have their numbers.

    Args:
        model: a copy without numbers.
        real: the tensors that those of the copy stand for, by identity.
    """

    def __init__(self, model: nn.Module, real: dict[int, Tensor]) -> None:
        super().__init__(model)
        self.real = real

    def _constant(self, tensor: Tensor, *, hidden: bool) -> TensorRef:
        ref = super()._constant(tensor, hidden=hidden)
        if id(tensor) in self.real:
            self.trace.constants[ref.value] = self.real[id(tensor)].detach()
        elif tensor.is_meta:  # its numbers are not known
            self.trace.untracked.append(ref.value)
        return ref


def _varying_sizes(run: Trace, alone: Trace | None) -> set[_Origin]:
    """The sizes that differ between two traces; the first ones of the inputs where the traces are not of one kind."""
    if alone is None or [op.name for op in run.ops] != [op.name for op in alone.ops]:
        return {(value, axis) for value in run.inputs for axis in (0, -1)}
    varying: set[_Origin] = set()
    for first, second in zip(run.values, alone.values, strict=False):
        axes = [axis for axis, sizes in enumerate(zip(first.shape, second.shape, strict=False)) if len({*sizes}) > 1]
        varying.update((first.index, axis) for axis in (*axes, *([-1] if axes else [])))
    return varying


class SizeWatch(ShapeRecorder):
    """A trace in which sizes are `WatchedSize`; `comparisons` fill as it runs."""

    def __init__(self, model: nn.Module, real: dict[int, Tensor]) -> None:
        super().__init__(model, real)
        self.comparisons: list[SizeComparison] = []

    def note(self, size: "WatchedSize", name: str, bound: Any) -> None:
        """Write a comparison down."""
        path = self.trace.calls[self.stack[-1]].path if self.stack else ""
        other = bound.origins if isinstance(bound, WatchedSize) else frozenset[_Origin]()
        plain = int(bound) if isinstance(bound, WatchedSize) else bound
        self.comparisons.append(SizeComparison(size.origins, size.exact, name, plain, other, path))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if attribute_name(func) not in _READS or not args or not isinstance(args[0], Tensor):
            return result
        with torch._C.DisableTorchFunction():
            value, rank = self.value_of(args[0]).value, args[0].dim()
            if isinstance(result, torch.Size):
                return torch.Size([WatchedSize.of(size, self, value, axis) for axis, size in enumerate(result)])
        if attribute_name(func) == "size":
            axis = args[1] if len(args) > 1 else (kwargs or {}).get("dim", 0)
            return WatchedSize.of(result, self, value, axis % rank)
        return WatchedSize.of(result, self, value, 0 if attribute_name(func) == "__len__" else -1)


class WatchedSize(int):
    """A size of a tensor that notes what it is compared with; what is computed from it does so too."""

    watch: SizeWatch
    origins: frozenset[_Origin]
    exact: bool

    @classmethod
    def of(cls, size: int, watch: SizeWatch, value: int, axis: int) -> "WatchedSize":
        """The size of a value along an axis."""
        return cls._made(size, watch, frozenset([(value, axis)]), exact=True)

    @classmethod
    def _made(cls, size: int, watch: SizeWatch, origins: frozenset[_Origin], *, exact: bool) -> "WatchedSize":
        made = cls(size)
        made.watch, made.origins, made.exact = watch, origins, exact
        return made

    def __hash__(self) -> int:
        self.watch.note(self, "looked up in", "a table")
        return int.__hash__(self)

    def __bool__(self) -> bool:
        self.watch.note(self, "!=", 0)
        return int.__bool__(self)

    def __repr__(self) -> str:
        self.watch.note(self, "written as", "text")
        return int.__repr__(self)

    def __format__(self, form: str) -> str:
        self.watch.note(self, "written as", "text")
        return int.__format__(self, form)

    def __reduce__(self) -> Any:  # whoever copies it gets a number
        return int, (int(self),)


def _comparison(name: str) -> Callable[[WatchedSize, Any], Any]:
    plain = getattr(int, f"__{name}__")

    def compare(self: WatchedSize, other: Any) -> Any:
        self.watch.note(self, _COMPARISONS[name], other)
        return plain(self, other)

    return compare


def _operation(name: str) -> Callable[..., Any]:
    plain = getattr(int, f"__{name}__")

    def compute(self: WatchedSize, *others: Any) -> Any:
        result = plain(self, *others)
        if type(result) is not int:
            return result
        origins = self.origins.union(*(other.origins for other in others if isinstance(other, WatchedSize)))
        return WatchedSize._made(result, self.watch, origins, exact=False)

    return compute


for _name in _COMPARISONS:
    setattr(WatchedSize, f"__{_name}__", _comparison(_name))
for _name in _ARITHMETIC:
    setattr(WatchedSize, f"__{_name}__", _operation(_name))
