"""Run a network many times on one mini-batch, each time only from the first changed module on.

One forward caches what every *segment* returned: the blocks, and the largest modules that contain no block. A later
run in which block i does something else takes the outputs of all segments before it from the cache; functional code
between the segments runs as it stands. The result is bitwise that of a whole forward.

A deep network is run again from `MAX_PLACES` evenly spaced segments only, so that looking for them takes time linear in
the depth, and the cache holds the outputs in front of these: memory is that of so many outputs of one mini-batch.

Code may pass values along outside the outputs of its modules: in a dict, a list, an attribute, a buffer, through a
hook. A module that is not run does not pass them on, and whoever reads them later would find those of another run, or
none. So each segment has a restart point, itself or an earlier one: the data flow of the trace is checked, and, since
Python sees more than a trace, the network itself: every restart is tried once on a few samples, after a run on other
values, and must reproduce the whole network.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from shoal.batches import Batch, call
from shoal.blocks.graph import BlockGraph
from shoal.blocks.input_variants import other_values
from shoal.blocks.template import Opaque, TensorRef, leaves, tensor_refs
from shoal.blocks.trace import ModuleCall, Trace
from shoal.errors import ModelRaisedError
from shoal.outputs import read_outputs
from shoal.preserve import patched

Forward = Callable[..., Any]

MAX_PLACES = 64
"""From how many segments a network is run again at most: runs are longer by 1/64 of the whole than they could be."""

# Samples on which restarts are tried.
_SAMPLES = 2


class PrefixCache:
    """The cached run of one mini-batch; `base`: forwards that stay replaced in every run (blocks removed before)."""

    def __init__(self, graph: BlockGraph, base: Mapping[str, Forward] | None = None) -> None:
        self.model = graph.model
        self.base = {self.model.get_submodule(path): forward for path, forward in (base or {}).items()}
        self.segments = _find_segments(graph)
        self.order = {segment.path: segment.index for segment in self.segments}
        self.overwritten = _overwritten_segments(graph, self.segments)
        self.dispensable = _dispensable_segments(graph.trace, self.segments)
        self.outputs: dict[str, Any] = {}
        self._stubs: dict[str, dict[nn.Module, Forward]] = {}
        self.batch: Batch | None = None
        self.trace, self.restarts = graph.trace, graph.restarts

    def record(self, batch: Batch) -> Any:
        """Run the whole network once and cache what every segment returns; returns the network's output.

        The first time for a network, it is found out on a few samples from where it may be run again.
        """
        self.find_restarts(batch)
        return self._run_recorded(batch)

    def record_behind(self, former: "PrefixCache", changed: Sequence[str]) -> Any:
        """As `record`, of the mini-batch of another record that knows all that lies in front of what changed since.

        Args:
            former: of the same network; it has recorded a mini-batch.
            changed: the modules that run otherwise by now, at least one.
        """
        first = min((self.segment_of(path) for path in changed), key=self.order.__getitem__)
        return self._run_recorded(former.batch or Batch(), former.stubs_before(self.restarts[first]))

    def _run_recorded(self, batch: Batch, stubs: Mapping[nn.Module, Forward] | None = None) -> Any:
        self.outputs, self.batch, self._stubs = {}, batch, {}
        handles = [
            segment.module.register_forward_hook(self._keeper(segment.path), prepend=True) for segment in self.segments
        ]
        try:
            with patched({**self.base, **(stubs or {})}):
                return call(self.model, batch)
        finally:
            for handle in handles:
                handle.remove()

    def run_from(self, path: str, forwards: Mapping[nn.Module, Forward]) -> Any:
        """The network's output with replaced `forwards`, the first of which runs in the segment at `path`."""
        if self.batch is None:
            raise RuntimeError("record() a mini-batch before run_from()")
        return self._run_from_segment(self.restarts[path], forwards)

    def _run_from_segment(self, path: str, forwards: Mapping[nn.Module, Forward]) -> Any:
        """Run with everything before the segment at `path` taken from the cache."""
        with patched({**self.base, **self.stubs_before(path), **forwards}):
            return call(self.model, self.batch or Batch())

    def stubs_before(self, path: str) -> Mapping[nn.Module, Forward]:
        """Forwards that hand out what was recorded, of everything before the segment at `path`."""
        start = self.order[path]
        if path not in self._stubs:
            self._stubs[path] = {
                segment.module: self._stub(segment.path)
                for segment in self.segments
                if segment.index < start and segment.path in self.outputs
            }
        return self._stubs[path]

    def find_restarts(self, batch: Batch) -> None:
        """Fill `restarts`, unless they are known: for each segment the last, or itself, that reproduces a whole run."""
        if self.restarts:
            return
        sample = batch.take(_SAMPLES)
        try:
            whole = _tensors(self._run_recorded(sample))
        except ModelRaisedError:  # not every network takes so few
            sample = batch
            whole = _tensors(self._run_recorded(sample))
        with patched(self.base):
            exact = same_tensors(_tensors(call(self.model, sample)), whole)
            with suppress(ModelRaisedError):  # what modules keep is then that of another input
                call(self.model, other_values(sample))
        paths = [segment.path for segment in self.segments]
        places = paths[:: _stride(len(paths))]

        def restart(number: int) -> list[Tensor] | None:
            with suppress(ModelRaisedError):
                return _tensors(self._run_from_segment(places[number], {}))
            return None

        agreeing = reproduces(restart, whole, len(places), exact=exact)
        sound = {place for place, agrees in zip(places, agreeing, strict=True) if agrees}
        last = paths[0] if paths else ""
        for path, visible in zip(paths, has_no_hidden_reads(self.trace, self.segments), strict=True):
            last = path if visible and path in sound else last
            self.restarts[path] = last
        self.outputs, self.batch, self._stubs = {}, None, {}

    def run_without(self, path: str, shortcut: nn.Module) -> Any:
        """The network's output with the block at `path` reduced to its shortcut."""
        return self.run_from(self.segment_of(path), {self.model.get_submodule(path): shortcut.forward})

    def segment_of(self, path: str) -> str:
        """The segment in which the module at `path` runs; the first inside it, where it is split up itself."""
        around = path
        while around and around not in self.order:
            around = around.rpartition(".")[0]
        return around or next(segment for segment in self.order if segment.startswith(path + "."))

    def _keeper(self, path: str) -> Callable[..., None]:
        def keep(module: nn.Module, args: Any, output: Any) -> None:
            if path in self.dispensable:
                self.outputs[path] = _map_nested(output, _placeholder)
            else:
                self.outputs[path] = _map_nested(output, _clone) if path in self.overwritten else output

        return keep

    def _stub(self, path: str) -> Forward:
        kept = self.outputs[path]
        if path in self.overwritten:
            return lambda *args, **kwargs: _map_nested(kept, _clone)
        return lambda *args, **kwargs: kept


def restart_notes(graph: BlockGraph) -> list[str]:
    """Notes for a record on runs that started earlier than at the changed module; none where all started there."""
    paths, stride = list(graph.restarts), _stride(len(graph.restarts))
    moved = sum(graph.restarts[path] != paths[number - number % stride] for number, path in enumerate(paths))
    if not moved:
        return []
    return [
        f"modules of this network hand values on beside their outputs: with a change in any of {moved} of its "
        f"{len(graph.restarts)} parts it was run from in front of those that do, or whole (slower, the same figures)"
    ]


def _tensors(output: Any) -> list[Tensor]:
    """A copy of every tensor of an output: a module may keep the original."""
    return [tensor.clone() for tensor in read_outputs(output).tensors.values()]


def _find_segments(graph: BlockGraph) -> list[ModuleCall]:
    """The blocks and the largest modules without blocks, if they are called once, in execution order.

    A Sequential outside the blocks is split up too, so that a plain chain has a segment for each of its layers.
    """
    trace = graph.trace
    blocks = {module_call.index for module_call in graph.calls.values()}
    holders = {outer.index for block in graph.calls.values() for outer in trace.enclosing(block.parent)}
    segments = []
    for module_call in trace.calls:
        if not module_call.path:
            holders.add(module_call.index)
        if module_call.parent not in holders or module_call.index in holders:
            continue
        if isinstance(module_call.module, nn.Sequential) and module_call.index not in blocks:
            holders.add(module_call.index)
        elif len(trace.calls_of(module_call.module)) == 1:
            segments.append(module_call)
    return segments


def _overwritten_segments(graph: BlockGraph, segments: list[ModuleCall]) -> frozenset[str]:
    """The segments whose output is changed in place later; if a block is among them, every block."""
    last_change = graph.trace.last_change
    paths = {
        segment.path
        for segment in segments
        if any(last_change.get(value, -1) >= segment.stop for value in segment.outputs)
    }
    blocks = {segment.path for segment in segments if segment.path in graph.calls}
    # A removed block hands its predecessor's output through: what overwrites one block's output may then hit another's.
    return frozenset(paths | blocks if paths & blocks else paths)


def _stride(segments: int) -> int:
    """Every which segment the network may be run from again."""
    return -(-segments // MAX_PLACES) or 1


def _dispensable_segments(trace: Trace, segments: Sequence[ModuleCall]) -> frozenset[str]:
    """The segments whose outputs no run needs: read only in segments that do not run where this one does not."""
    stride, returned = _stride(len(segments)), set(tensor_refs(trace.output))
    group = {
        op: number // stride for number, segment in enumerate(segments) for op in range(segment.start, segment.stop)
    }

    def is_dispensable(number: int, segment: ModuleCall) -> bool:
        plain = all(isinstance(leaf, TensorRef) for leaf in leaves(segment.output))
        later = {op for value in segment.outputs for op in trace.readers.get(value, []) if op >= segment.stop}
        inside = all(group.get(op) == number // stride for op in later)
        return plain and inside and not returned & set(segment.outputs)

    return frozenset(segment.path for number, segment in enumerate(segments) if is_dispensable(number, segment))


def _clone(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.preserve_format)


def _placeholder(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that takes no memory, for code that hands it on and never reads it."""
    return torch.zeros((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape)


def _map_nested(item: Any, change: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(item, Tensor):
        return change(item)
    if isinstance(item, tuple):
        parts = [_map_nested(part, change) for part in item]
        return type(item)(*parts) if hasattr(item, "_fields") else tuple(parts)
    if isinstance(item, list):
        return [_map_nested(part, change) for part in item]
    if isinstance(item, dict):
        return {key: _map_nested(part, change) for key, part in item.items()}
    return item


# Where two whole runs differ already (kernels that add in any order): deviation as a share of the largest value.
_ROUNDING = 1e-4


def has_no_hidden_reads(trace: Trace, segments: Sequence[ModuleCall]) -> list[bool]:
    """For each segment, whether nothing from it on reads values that an earlier segment made but did not return.

    Args:
        trace: the run.
        segments: calls that follow each other, in order.
    """
    place: dict[int, int] = {
        op: number for number, segment in enumerate(segments) for op in range(segment.start, segment.stop)
    }
    hidden = [0] * (len(segments) + 1)  # by how much the count of values read in secret changes at each segment
    returned = [set(segment.outputs) for segment in segments]
    opaque = [any(isinstance(leaf, Opaque) for leaf in leaves(segment.output)) for segment in segments]
    for op in trace.ops:
        last = place.get(op.index, len(segments) - 1)
        for value in op.inputs:
            maker = place.get(trace.values[value].producer, last)
            if maker < last and value not in returned[maker] and not opaque[maker]:
                hidden[maker + 1] += 1
                hidden[last + 1] -= 1
    return [count == 0 for count in accumulate(hidden[:-1])]


def reproduces(
    restart: Callable[[int], list[Tensor] | None], whole: Sequence[Tensor], count: int, *, exact: bool
) -> list[bool]:
    """For each of `count` places, whether a run from there on reproduces the outputs of the whole network.

    The last place comes first: a run rewrites only what is handed on from its place on, so what the places before it
    handed on stays that of the run on other values.

    Args:
        restart: runs the network from a place on and returns its tensors, None where it raises.
        whole: the tensors the network returned on the same samples.
        count: of the places.
        exact: whether the network gives the same numbers each time, to the bit.
    """
    sound = [False] * count
    for number in reversed(range(count)):
        rerun = restart(number)
        sound[number] = rerun is not None and same_tensors(rerun, whole, exact=exact)
    return sound


def same_tensors(first: Sequence[Tensor], second: Sequence[Tensor], *, exact: bool = True) -> bool:
    """Whether two sequences of tensors are equal, bitwise or up to rounding; NaN equals NaN."""
    return len(first) == len(second) and all(map(_equal if exact else _close, first, second))


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | ((a != a) & (b != b))).all())


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or not a.is_floating_point():
        return _equal(a, b)
    scale = float(b.abs().nan_to_num(posinf=0).max()) if b.numel() else 0.0
    return torch.allclose(a, b, rtol=_ROUNDING, atol=_ROUNDING * scale, equal_nan=True)
