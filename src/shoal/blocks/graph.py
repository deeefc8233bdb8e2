"""The blocks of a network as frozen values: units, blocks, the chain they form, and the graph that surgery works on.

A network without residual blocks gets a note on what it has in their place: recurrence, concatenation, gates.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from typing import Any

from torch import nn

from shoal.batches import Batch
from shoal.blocks.additions import Addition, ShortcutKind
from shoal.blocks.operations import plain_name
from shoal.blocks.template import tensor_refs
from shoal.blocks.trace import ModuleCall, OpRecord, Trace
from shoal.errors import UnknownBlockError, did_you_mean
from shoal.plan import Remove
from shoal.record import BlockRecord


@dataclass(frozen=True)
class Unit:
    """One residual addition of a block (a transformer block has two: attention, MLP).

    Args:
        path: the module whose forward holds the whole unit.
        shortcut: what carries the stream past the branch.
        branch: paths of the modules with parameters in the branch, in the order they ran.
        addition: the number of this addition among all additions that run inside the block, from 0.
        stream_first: whether the stream is the first operand.
    """

    path: str
    shortcut: ShortcutKind
    branch: tuple[str, ...]
    addition: int
    stream_first: bool


@dataclass(frozen=True)
class Block:
    """One residual block; shapes are those of one sample.

    Args:
        path: its module path; the name by which it is called everywhere.
        kind: the name of its class.
        stage: from 1; a new stage begins where the shape of the stream changes.
        units: its residual additions.
        branch: paths of the modules with parameters in its branches, in the order they ran.
        shortcut: 'identity', 'reshape' (no parameters), 'projection', or 'declared' by an adapter; None for a sibling
            without an addition.
        activation: what follows the last addition, or None.
        in_shape: shape of the stream before it.
        out_shape: shape of the stream behind it.
        params: number of parameters in it.
        removable: whether it can be taken out, down to its shortcut and the activation after the addition.
        reason: why not.
        removable_activation_assumption: under which the activation after the addition does nothing and may go too; else
            None.
        parallel: the branches that its one addition joins with the stream, x + (A + M), each a unit; else empty.
    """

    path: str
    kind: str
    stage: int
    units: tuple[Unit, ...]
    branch: tuple[str, ...]
    shortcut: ShortcutKind | None
    activation: str | None
    in_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    params: int
    removable: bool
    reason: str | None
    removable_activation_assumption: str | None = None
    parallel: tuple[Unit, ...] = ()

    @property
    def removable_units(self) -> tuple[Unit, ...]:
        """What may be taken out of it alone: its units, or the parallel branches of its only one."""
        return self.parallel or self.units

    def unit_names(self, number: int | None) -> tuple[str, ...]:
        """What patterns may call a unit: its block, `layer.3#1`, and the modules of its branch with those around them.

        None is the whole of a block without units.
        """
        if number is None:
            return (self.path,)
        names = [self.path, Remove(path=self.path, unit=number).name]
        for path in self.removable_units[number].branch:
            parts = path.removeprefix(f"{self.path}.").split(".")
            names += [".".join((self.path, *parts[:depth])) for depth in range(1, len(parts) + 1)]
        return tuple(dict.fromkeys(names))

    def record(self, **results: Any) -> BlockRecord:
        """Its entry in a record, with measured `results`: further fields of `BlockRecord`."""
        return BlockRecord(
            path=self.path,
            stage=self.stage,
            kind=self.kind,
            shortcut=self.shortcut or "none",
            activation=self.activation,
            in_shape=list(self.in_shape),
            out_shape=list(self.out_shape),
            params=self.params,
            removable=self.removable,
            reason=self.reason,
            **results,
        )


@dataclass(frozen=True)
class Chain:
    """The residual blocks of a network in the order they run."""

    blocks: tuple[Block, ...]
    note: str | None = None

    def __iter__(self) -> Iterator[Block]:
        return iter(self.blocks)

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, path: str) -> Block:
        """The block called `path`.

        Raises:
            UnknownBlockError: with near matches.
        """
        if path not in self._by_path:
            raise UnknownBlockError(f"no residual block called '{path}'", did_you_mean(path, self.paths))
        return self._by_path[path]

    @cached_property
    def _by_path(self) -> dict[str, Block]:
        return {block.path: block for block in reversed(self.blocks)}  # of several with one path the first

    @property
    def paths(self) -> list[str]:
        """All block paths, in order."""
        return [block.path for block in self.blocks]

    @property
    def removable(self) -> tuple[Block, ...]:
        """The blocks that can be removed."""
        return tuple(block for block in self.blocks if block.removable)

    def select(
        self, include: Iterable[str] = (), exclude: Iterable[str] = (), *, whole: bool = True
    ) -> tuple[Block, ...]:
        """Removable blocks that match one of the `include` patterns (all without any) and none of `exclude`.

        Patterns are shell-style (`layer3.*`). Without `whole` also those of which only single units might go.

        Raises:
            UnknownBlockError: a pattern matches no block at all.
        """
        include, exclude = list(include), list(exclude)
        for pattern in (*include, *exclude):
            if not any(fnmatchcase(path, pattern) for path in self.paths):
                raise UnknownBlockError(
                    f"the pattern '{pattern}' matches no residual block", did_you_mean(pattern, self.paths)
                )
        chosen = []
        for block in self.blocks:
            if not block.removable and (whole or len(block.removable_units) < 2):
                continue
            included = not include or any(fnmatchcase(block.path, pattern) for pattern in include)
            if included and not any(fnmatchcase(block.path, pattern) for pattern in exclude):
                chosen.append(block)
        return tuple(chosen)

    def select_units(self, include: Iterable[str] = (), exclude: Iterable[str] = ()) -> dict[str, tuple[int, ...]]:
        """By block the numbers of its units that match one of `include` (all without any) and none of `exclude`.

        A pattern is about a block (`layers.3`), a unit by its name (`layers.3#1`) or by the modules of its branch
        (`*.mlp`, `*.self_attn.*`). Blocks without a selected unit are left out; a declared block has none.

        Raises:
            UnknownBlockError: a pattern matches nothing.
        """
        include, exclude = list(include), list(exclude)
        names: dict[tuple[str, int | None], tuple[str, ...]] = {}
        for block in self:
            numbers = range(len(block.removable_units)) if block.units else [None]
            names |= {(block.path, number): block.unit_names(number) for number in numbers}
        for pattern in (*include, *exclude):
            if not any(_matches(known, pattern) for known in names.values()):
                raise UnknownBlockError(
                    f"the pattern '{pattern}' matches no residual block and no unit of one",
                    did_you_mean(pattern, sorted({name for known in names.values() for name in known})),
                )
        selected: dict[str, tuple[int, ...]] = {}
        for (path, number), known in names.items():
            included = not include or any(_matches(known, pattern) for pattern in include)
            if included and not any(_matches(known, pattern) for pattern in exclude):
                selected[path] = (*selected.get(path, ()), *([number] if number is not None else []))
        return selected

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        blocks = []
        for block in self.blocks:
            plain = asdict(block)
            if not block.parallel:
                del plain["parallel"]
            plain["tail"] = plain.pop("removable_activation_assumption")  # its name in files and in `trace --json`
            blocks.append(plain)
        return {"blocks": blocks, "note": self.note}


@dataclass(frozen=True, eq=False)
class BlockGraph:
    """A traced network: its chain, and for every removable block its shortcut, the module that stays without branches.

    Args:
        model: the network.
        trace: the recorded run.
        chain: its blocks.
        shortcut_modules: by block path; they share parameters with `model`, surgery copies them.
        additions: of each block, in the order they ran.
        parallel: of a block with one addition of parallel branches, an addition for each of these.
        calls: of each block's module.
        shortcuts_without_norms: shortcuts without the norms after the additions, for blocks that have such norms.
        example: one sample, on which changes are tried.
        unit_stub_cache: replacements for single units, as far as they were requested (see `module_replacements`).
        restarts: for each module, from which one on the network may be run again (see `prefix_cache`).
    """

    model: nn.Module
    trace: Trace
    chain: Chain
    shortcut_modules: dict[str, nn.Module]
    additions: dict[str, tuple[Addition, ...]]
    calls: dict[str, ModuleCall] = field(default_factory=dict)
    shortcuts_without_norms: dict[str, nn.Module] = field(default_factory=dict)
    example: Batch | None = None
    unit_stub_cache: dict[tuple[str, frozenset[int]], dict[str, nn.Module]] = field(default_factory=dict)
    restarts: dict[str, str] = field(default_factory=dict)
    parallel: dict[str, tuple[Addition, ...]] = field(default_factory=dict)

    def unit_additions(self, path: str) -> tuple[Addition, ...]:
        """The additions of the units of a block that may be taken out alone."""
        return self.parallel.get(path) or self.additions[path]


def _matches(names: Iterable[str], pattern: str) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def without_removable(graph: BlockGraph, reasons: dict[str, str]) -> BlockGraph:
    """The graph with these blocks marked as not removable, each with its reason."""
    if not reasons:
        return graph
    blocks = tuple(
        replace(block, removable=False, reason=reasons[block.path]) if block.path in reasons else block
        for block in graph.chain
    )
    shortcut_modules = {path: module for path, module in graph.shortcut_modules.items() if path not in reasons}
    shortcuts_without_norms = {
        path: module for path, module in graph.shortcuts_without_norms.items() if path not in reasons
    }
    chain = Chain(blocks, note_of(list(blocks), graph.trace))
    return replace(
        graph, chain=chain, shortcut_modules=shortcut_modules, shortcuts_without_norms=shortcuts_without_norms
    )


def note_of(blocks: list[Block], run: Trace) -> str | None:
    """Why a network has no block that can be removed; None where it has one."""
    if not any(block.units or block.shortcut == "declared" for block in blocks):
        reason = "no residual block: no addition of this network joins a branch and a shortcut"
        return f"{reason}; {explain_no_residuals(run)}"
    if not any(block.removable for block in blocks):
        return "no removable block: see the reason of each"
    return None


_RECURRENT = frozenset(
    ["lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"]
)
_JOINS = frozenset(["cat", "concat", "concatenate", "hstack", "dstack"])
_MIXES = frozenset(["lerp", "where"])


def explain_no_residuals(run: Trace) -> str:
    """One sentence on what a network has instead of residual additions."""
    recurrent = [op for op in run.ops if plain_name(op.name) in _RECURRENT]
    if recurrent:
        return (
            f"it is recurrent ({_describe_ops(run, recurrent)}): a layer's state is fed back to it, it is not a block"
        )
    concatenations = [op for op in run.ops if plain_name(op.name) in _JOINS and _joins_paths(run, op)]
    if concatenations:
        return (
            f"its paths are joined by concatenation ({_describe_ops(run, concatenations)}): without a block its "
            "channels would be missing where they are read"
        )
    mixes = [op for op in run.ops if plain_name(op.name) in _MIXES]
    if mixes:
        joined = _describe_ops(run, mixes)
        return f"it mixes paths by {joined}: an adapter can say what is left of a block (docs/adapters.md)"
    return "its layers follow each other; spans of them can be replaced by plan"


def _joins_paths(run: Trace, op: OpRecord) -> bool:
    """Whether at least two of the parts were computed from the network's input."""
    parts = {value for value in tensor_refs(op.args[:1]) if any(run.depends(value, source) for source in run.inputs)}
    return len(parts) >= 2


def _describe_ops(run: Trace, ops: list[OpRecord]) -> str:
    """`3 x cat, first in 'features.block1'`."""
    name, _ = Counter(plain_name(op.name) for op in ops).most_common(1)[0]
    call = ops[0].call
    where = run.calls[call].path if call >= 0 else ""
    return f"{len(ops)} x {name}, first in '{where}'" if where else f"{len(ops)} x {name}"
