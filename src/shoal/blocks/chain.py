"""A network as a chain of residual blocks: the frozen value that the rest of Shoal works on."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any

from shoal.blocks.additions import ShortcutKind
from shoal.errors import UnknownBlockError, did_you_mean
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
        tail: set where the activation after the addition may go too: the premise under which it does nothing.
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
    tail: str | None = None

    def record(self, **found: Any) -> BlockRecord:
        """What it is, for the record, and what was `found` out about it: further fields of `BlockRecord`."""
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
            **found,
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
        for block in self.blocks:
            if block.path == path:
                return block
        raise UnknownBlockError(f"no residual block called '{path}'", did_you_mean(path, self.paths))

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
            if not block.removable and (whole or len(block.units) < 2):
                continue
            wanted = not include or any(fnmatchcase(block.path, pattern) for pattern in include)
            if wanted and not any(fnmatchcase(block.path, pattern) for pattern in exclude):
                chosen.append(block)
        return tuple(chosen)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"blocks": [asdict(block) for block in self.blocks], "note": self.note}
