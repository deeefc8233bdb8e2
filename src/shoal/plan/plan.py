"""The plan: what to do to which network, as plain data that can be replayed on a fresh copy."""

import math
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from shoal.arguments import as_path
from shoal.errors import PlanError
from shoal.files.reading import parse_json, read_text, refusing
from shoal.plugins import discover
from shoal.record import FrozenModel

# Version 2 added `unit` and `norms` to the removal of a block; plans of version 1 are read as they are.
SCHEMA_VERSION: Literal[2] = 2

# A plan may come from anywhere: what it describes must not take more memory than networks do.
LARGEST_INPUT, _LARGEST_MAP = 2**28, 2**31


CONSTANT = "constant"
"""The dtype of an input that is no tensor."""


class InputSpec(FrozenModel):
    """One input of the network: a tensor or a constant, and its keyword (None: positional).

    Of a tensor `shape` is that without the batch axis. With the dtype `constant` the input is `constant` itself, as
    False for `use_cache`.
    """

    shape: list[int]
    dtype: str
    keyword: str | None = None
    constant: bool | int | float | str | None = None

    @property
    def is_constant(self) -> bool:
        """Whether it is no tensor."""
        return self.dtype == CONSTANT

    @model_validator(mode="after")
    def _limit_size(self) -> "InputSpec":
        if any(size < 0 for size in self.shape) or math.prod(self.shape) > LARGEST_INPUT:
            raise ValueError(f"an input of shape {self.shape[:8]}: at most {LARGEST_INPUT} values, none below 0")
        return self


class NetworkSignature(FrozenModel):
    """How a network is recognised: the names, dtypes and shapes of its state dict, and its traced chain.

    `state` maps a name to 'float32[64,3,7,7]'; `chain` holds one line a block.
    """

    state: dict[str, str]
    chain: list[str]


Norms = Literal["keep", "drop"]
_UNIT, _BARE = "#", "+norms"


class Remove(FrozenModel):
    """Take the block at `path` out, down to its shortcut and the activation after the addition; or a part of it.

    Args:
        path: of the block.
        unit: only this one of its additions, from 0: attention or MLP alone.
        norms: whether the norms behind its additions (LN(x + F)) stay or go with it.
    """

    kind: Literal["remove"] = "remove"
    path: str
    unit: int | None = Field(default=None, ge=0)
    norms: Norms = "keep"

    @model_validator(mode="after")
    def _norms_of_whole_blocks(self) -> "Remove":
        if self.unit is not None and self.norms == "drop":
            raise ValueError("the norm behind the addition of a single unit stays, give norms 'keep'")
        return self

    @property
    def name(self) -> str:
        """`layer.3`, its unit 1 `layer.3#1`, the block with its norms `layer.3+norms`."""
        if self.unit is not None:
            return f"{self.path}{_UNIT}{self.unit}"
        return self.path + (_BARE if self.norms == "drop" else "")

    @classmethod
    def named(cls, name: str) -> "Remove":
        """The removal that `name` says, as the property writes it; anything else is a path."""
        path, sign, unit = name.rpartition(_UNIT)
        if sign and unit.isdigit():
            return cls(path=path, unit=int(unit))
        return cls(path=name.removesuffix(_BARE), norms="drop" if name.endswith(_BARE) else "keep")


Tail = Literal["identity", "relu", "silu", "gelu", "gelu_tanh", "hardswish"]


class Inner(FrozenModel):
    """Features inside a block that are fewer than they were; paths are those of the original network.

    The layers at `writers` make them, those at `keepers` (batch norms, depthwise convolutions) work on each alone, and
    the layers at `readers` are the only ones that see them; `width` of them are left.
    """

    writers: tuple[str, ...]
    keepers: tuple[str, ...] = ()
    readers: tuple[str, ...]
    width: int = Field(ge=1)


class TokenMap(FrozenModel):
    """A linear map without bias of what a module inside a block is given, in the place of that module.

    Args:
        module: its path in the original network.
        argument: what is mapped: the number of a positional argument, or a keyword.
        outputs: how long the tuple is that the module returns, the tensor first; None where it returns the tensor.
    """

    module: str
    argument: Annotated[int, Field(ge=0)] | str = 0
    outputs: int | None = Field(default=None, ge=1, le=16)


_KINDS = ("identity", "scale", "linear", "conv", "lowrank", "block", "narrow", "folded", "linear_attention")
_OF_BLOCKS = ("block", "narrow", "folded", "linear_attention")


class Replacement(FrozenModel):
    """What stands in for a span: one map of the kind named, then the tail; or a student.

    `layout` tells where the channels are; `kernel`, `stride` and `dilation` are those of a convolution. With `shortcut`
    the map is added to what enters; `rank` is that of a low-rank map. A student ('block', 'narrow') is a row of copies
    of the original's blocks at `copies`, which bring their own shortcuts and tails; the inner features of a narrow one
    are fewer, as `inner` says. A map that is 'folded' has no module of its own: it is in the last linear layer of the
    span's first block, which is the one copied and stays; the others go. With 'linear_attention' the only block of the
    span stays, but for its attention, as `attention` says. Any other kind is that of an installed distribution (entry
    points `shoal.replacements`).
    """

    kind: str
    layout: Literal["channels_first", "channels_last"]
    in_channels: int = Field(ge=1)
    out_channels: int = Field(ge=1)
    kernel: int = Field(default=1, ge=1)
    stride: int = Field(default=1, ge=1)
    dilation: int = Field(default=1, ge=1)
    rank: int | None = Field(default=None, ge=1)
    shortcut: bool = False
    tail: Tail = "identity"
    copies: tuple[str, ...] = ()
    inner: tuple[Inner, ...] = ()
    attention: TokenMap | None = None

    @property
    def student(self) -> bool:
        """Whether it is made of blocks of the original."""
        return bool(self.copies)

    @property
    def folded(self) -> bool:
        """Whether it is the first block of the span, with other weights in its last linear layer."""
        return self.kind == "folded"

    @property
    def keeps_block(self) -> bool:
        """Whether the first block of the span stays where it is, with something else inside."""
        return self.folded or self.attention is not None

    @property
    def depth(self) -> int:
        """How many blocks it counts as: an identity as none, a map as one."""
        return len(self.copies) or int(self.kind != "identity")

    @model_validator(mode="after")
    def _limit_size(self) -> "Replacement":
        if self.in_channels * self.out_channels * self.kernel**2 > _LARGEST_MAP:
            raise ValueError(f"a map of {self.in_channels} to {self.out_channels} channels is too large")
        return self

    @field_validator("kind")
    @classmethod
    def _kind_is_known(cls, kind: str) -> str:
        if kind not in _KINDS and kind not in discover("shoal.replacements", ()):
            offered = f"built in are {', '.join(_KINDS)}, and no installed distribution offers it"
            raise ValueError(f"there is no replacement '{kind}': {offered}")
        return kind

    @model_validator(mode="after")
    def _copies_fit(self) -> "Replacement":
        if self.student != (self.kind in _OF_BLOCKS):
            raise ValueError(f"copies of blocks belong to {', '.join(map(repr, _OF_BLOCKS))}, and to nothing else")
        if (self.kind == "linear_attention") != (self.attention is not None):
            raise ValueError("an attention that a map replaces belongs to 'linear_attention', and to nothing else")
        if self.keeps_block and len(self.copies) != 1:
            raise ValueError(f"'{self.kind}' changes one block, the first of its span")
        if self.attention is not None and not self.attention.module.startswith(f"{self.copies[0]}."):
            raise ValueError(f"the attention '{self.attention.module}' is not in the block '{self.copies[0]}'")
        if bool(self.inner) != (self.kind == "narrow"):
            raise ValueError("inner features belong to 'narrow', and to nothing else")
        if self.student and (self.shortcut or self.tail != "identity"):
            raise ValueError("a student has the shortcuts and tails of its blocks, and none besides")
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> "Replacement":
        same = self.in_channels == self.out_channels and self.stride == 1
        if not same and (self.shortcut or self.kind in ("identity", "scale", "lowrank", "linear_attention")):
            raise ValueError(f"a stand-in '{self.kind}' keeps the shape, this one has other channels or a stride")
        if self.kind == "identity" and self.shortcut:
            raise ValueError("an identity beside a shortcut would be the input twice")
        if self.layout == "channels_last" and (self.kind == "conv" or self.kernel > 1 or self.stride > 1):
            raise ValueError("channels_last has no neighbours: no convolution, no kernel, no stride")
        if self.kind in _KINDS and (self.rank is not None) != (self.kind == "lowrank"):
            raise ValueError("a rank belongs to 'lowrank', and to nothing else")
        if self.kernel % 2 == 0 or (self.kernel > 1 and self.kind in _KINDS and self.kind not in ("conv", "lowrank")):
            raise ValueError(f"kernel {self.kernel} for '{self.kind}', expected an odd one, 1 but for convolutions")
        return self


class Replace(FrozenModel):
    """Put a stand-in in the place of consecutive blocks or layers; it stands at the first of `paths`."""

    kind: Literal["replace"] = "replace"
    paths: list[str]
    stand_in: Replacement


class FoldStep(FrozenModel):
    """One fold: what was at `path` is gone or idle, and the layers at `into` do its work.

    batch_norm: a batch norm into the layer before or behind it. linear: a layer into the one before it. constant: a
    block that adds a constant, into every later reader of the stream.
    """

    kind: Literal["batch_norm", "linear", "constant"]
    path: str
    into: list[str]


class Fold(FrozenModel):
    """Exact algebra, after everything else: exactly these folds, in order."""

    kind: Literal["fold"] = "fold"
    folds: list[FoldStep]


class Plan(FrozenModel):
    """What to do, in order, to the network that `network` describes.

    `model` is the spec of the factory the network came from, or None for a module made by the caller.
    """

    schema_version: Literal[1, 2] = SCHEMA_VERSION
    model: str | None = None
    inputs: list[InputSpec]
    network: NetworkSignature
    actions: list[Annotated[Remove | Replace | Fold, Field(discriminator="kind")]]

    @property
    def removals(self) -> list[Remove]:
        """Every block that goes, whole or in part."""
        return [action for action in self.actions if isinstance(action, Remove)]

    @property
    def removed(self) -> list[str]:
        """The paths of the blocks that are removed whole."""
        return [action.path for action in self.removals if action.unit is None]

    @property
    def folded_away(self) -> list[str]:
        """The paths of the blocks that went into the last linear layer of the one before them."""
        return [path for action in self.replaced if action.stand_in.folded for path in action.paths[1:]]

    @property
    def removed_units(self) -> list[str]:
        """The single units that are removed, `layer.3#1`."""
        return [action.name for action in self.removals if action.unit is not None]

    @property
    def replaced(self) -> list["Replace"]:
        """The spans with a stand-in."""
        return [action for action in self.actions if isinstance(action, Replace)]

    @property
    def folds(self) -> list[FoldStep]:
        """What is folded once the blocks are gone."""
        return [step for action in self.actions if isinstance(action, Fold) for step in action.folds]

    @property
    def linear_attentions(self) -> list[str]:
        """The paths of the attentions of which a linear map is left."""
        return [action.stand_in.attention.module for action in self.replaced if action.stand_in.attention is not None]

    @model_validator(mode="after")
    def _one_action_a_block(self) -> "Plan":
        covered = [path for action in self.replaced for path in action.paths]
        attentions = [action for action in self.replaced if action.stand_in.attention is not None]
        wide = next((action for action in attentions if list(action.stand_in.copies) != action.paths), None)
        if wide is not None:
            raise ValueError(f"'linear_attention' changes one block, not {', '.join(wide.paths)}")
        removed = {action.path for action in self.removals}
        twice = next((path for path in covered if covered.count(path) > 1 or path in removed), None)
        if twice is not None:
            raise ValueError(f"the block '{twice}' is replaced and named once more")
        return self

    @model_validator(mode="after")
    def _folds_last(self) -> "Plan":
        # A fold is found on the network as it is without the removed blocks, so nothing may come after it.
        if any(isinstance(action, Fold) for action in self.actions[:-1]):
            raise ValueError("only the last action may be a fold")
        return self


def read_plan(path: str | Path) -> Plan:
    """The plan in a JSON file.

    Raises:
        UsageError: `path` is none.
        PlanError: no such file, no JSON, or not a plan this version knows.
    """
    path = as_path("path", path)
    with refusing(PlanError, f"cannot read the plan '{path}'", "Give the path of a plan.json."):
        text = read_text(path)
    return parse_plan(text, str(path))


def parse_plan(text: str, origin: str) -> Plan:
    """The plan in a JSON text; `origin` names it in errors.

    Raises:
        PlanError: not a plan this version knows; says which field.
    """
    message = f"'{origin}' is no plan of version {SCHEMA_VERSION}"
    with refusing(PlanError, message, "A plan.json is written by `shoal compress`; its schema is in docs/plan.md."):
        try:
            plan = Plan.model_validate_json(text)
            parse_json(text)  # where two readers could understand it in two ways it is none
            return plan
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the document"
            raise ValueError(f"{where}: {first['msg']}") from error


def _current(line: str, now: str) -> str:
    """A line of a chain as it reads today, where version 0.1.0 had another name for a class of Shoal's own."""
    renamed = line.replace(":Block:", ":DigitsBlock:", 1)
    return renamed if renamed == now else line


def differences(expected: NetworkSignature, found: NetworkSignature, most: int = 5) -> list[str]:
    """What tells two networks apart, as sentences; empty where they are the same to a plan."""
    messages = []
    for name, kind in expected.state.items():
        if name not in found.state:
            messages.append(f"'{name}' {kind} is missing")
        elif found.state[name] != kind:
            messages.append(f"'{name}' is {found.state[name]}, expected {kind}")
    messages += [f"'{name}' is not expected" for name in found.state if name not in expected.state]
    chain = [_current(line, now) for line, now in zip_longest(expected.chain, found.chain, fillvalue="") if line]
    if not messages and chain != found.chain:
        pairs = zip(chain, found.chain, strict=False)
        first = next((f"block '{b}' stands where '{a}' was" for a, b in pairs if a != b), None)
        messages.append(first or f"{len(found.chain)} blocks were traced, expected {len(expected.chain)}")
    hidden = len(messages) - most
    return messages[:most] + ([f"and {hidden} more"] if hidden > 0 else [])


def check_state(plan: Plan, state: dict[str, str]) -> None:
    """Refuse a network whose state dict is another one; needs no trace.

    Raises:
        PlanError: says what differs.
    """
    check_signature(plan, NetworkSignature(state=state, chain=plan.network.chain))


def check_signature(plan: Plan, found: NetworkSignature) -> None:
    """Refuse a network the plan was not made for.

    Raises:
        PlanError: says what differs.
    """
    messages = differences(plan.network, found)
    if messages:
        raise PlanError(
            "the plan was made for another network: " + "; ".join(messages),
            "Give the original network the plan was made from (same factory, same arguments). Where that was this one "
            "with weights in another form (quantised, say), apply it with any_weights=True (--any-weights).",
        )
