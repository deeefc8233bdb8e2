"""What all methods share: the original, the same calibration tokens, and a walk along its layers."""

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ZERO_UNITS = ("self_attn", "mlp")


class NoAttention(nn.Module):
    """In place of an attention that was removed."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """Nothing is added."""
        return torch.zeros_like(hidden_states), None


class MappedAttention(nn.Module):
    """In place of an attention that gave way to a linear map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_attn = nn.Linear(width, width, bias=False)

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor, None]:
        """The map."""
        return self.linear_attn(hidden_states), None


class NoMlp(nn.Module):
    """In place of an MLP that was removed."""

    def forward(self, x: Tensor) -> Tensor:
        """Nothing is added."""
        return torch.zeros_like(x)


def shared_copy(model: nn.Module) -> Any:
    """A copy with modules of its own and the parameters of the original: one set of weights in memory."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


def without_layers(model: nn.Module, removed: Sequence[int]) -> Any:
    """A copy without these layers, its caches and configuration in order."""
    cut = shared_copy(model)
    kept = [layer for index, layer in enumerate(cut.model.layers) if index not in removed]
    for index, layer in enumerate(kept):
        layer.self_attn.layer_idx = index
    cut.model.layers = nn.ModuleList(kept)
    cut.config.num_hidden_layers = len(kept)
    return cut


def without_units(model: nn.Module, units: Sequence[tuple[int, str]]) -> Any:
    """A copy whose layers have lost single units, `self_attn` or `mlp`."""
    cut = shared_copy(model)
    for index, name in units:
        setattr(cut.model.layers[index], name, NoAttention() if name == "self_attn" else NoMlp())
    return cut


def cut_as_noted(model: nn.Module, note: Mapping[str, Any]) -> Any:
    """A copy that has lost what the note of a cell says: the structure of that network, with other weights.

    Of a span that became one folded map the first layer stays.
    """
    units = set()
    for name in note["removed"]:
        layer, _, unit = str(name).removeprefix("model.layers.").replace("#", ".").partition(".")
        wanted = ZERO_UNITS if not unit else [ZERO_UNITS[int(unit)] if unit.isdigit() else unit]
        units |= {(int(layer), each) for each in wanted}
    for span in note.get("replaced", []):
        _, *gone = span.split(" + ")
        units |= {(int(path.rpartition(".")[2]), each) for path in gone for each in ZERO_UNITS}
    whole = {index for index, _ in units if all((index, each) in units for each in ZERO_UNITS)}
    parts = [(index, each) for index, each in sorted(units) if index not in whole]
    cut = without_units(model, parts)
    for path in note.get("linear", []):
        cut.set_submodule(path, MappedAttention(cut.config.hidden_size))
    return without_layers(cut, sorted(whole))


def units_left(model: Any) -> tuple[int, int, int]:
    """How many attentions, maps in the place of one, and MLPs a network has."""
    layers = model.model.layers
    maps = sum(isinstance(layer.self_attn, MappedAttention) for layer in layers)
    attentions = sum(not isinstance(layer.self_attn, NoAttention) for layer in layers) - maps
    return attentions, maps, sum(not isinstance(layer.mlp, NoMlp) for layer in layers)


def rows_of(tokenizer: Any, path: Path, count: int, length: int, pieces: int = 1) -> Tensor:
    """The first documents that are long enough, of each at most so many pieces from its beginning, (count, length)."""
    rows: list[list[int]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        ids = tokenizer(json.loads(line)["text"]).input_ids
        starts = range(0, len(ids) - length + 1, length)
        rows += [ids[start : start + length] for start in starts[:pieces]]
        if len(rows) >= count:
            return torch.tensor(rows[:count])
    raise SystemExit(f"{path} has {len(rows)} pieces of {length} tokens, expected {count}")


@dataclass
class Ground:
    """The original and its calibration tokens.

    Args:
        model: a decoder with `model.layers`, in eval mode.
        tokenizer: its own.
        fit: token ids that maps are fitted on and layers trained on.
        choice: token ids that layers are chosen on.
        lessons: token ids that cut networks are recovered on.
    """

    model: Any
    tokenizer: Any
    fit: Tensor
    choice: Tensor
    lessons: Tensor
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = len(self.model.model.layers)

    def start(self, ids: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The embedded tokens, and what every layer takes besides."""
        hidden = self.model.model.embed_tokens(ids)
        places = torch.arange(ids.shape[1], device=ids.device)[None]
        rotary = self.model.model.rotary_emb(hidden, places)
        return hidden, {"position_embeddings": rotary, "attention_mask": None, "position_ids": places}

    def layer(self, index: int, hidden: Tensor, more: dict[str, Any], model: Any = None) -> Tensor:
        """One layer."""
        output = (model or self.model).model.layers[index](hidden, **more)
        return output[0] if isinstance(output, tuple) else output

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head says."""
        return self.model.lm_head(self.model.model.norm(hidden))

    @cached_property
    def states(self) -> list[Tensor]:
        """The stream of the fitting tokens before every layer and behind the last, on 16 rows at a time."""
        parts = []
        with torch.no_grad():
            for ids in self.fit.split(16):
                hidden, more = self.start(ids)
                walk = [hidden]
                for index in range(self.count):
                    walk.append(self.layer(index, walk[-1], more))
                parts.append(walk)
        return [torch.cat(rows) for rows in zip(*parts, strict=True)]

    def mlp_parts(self, index: int) -> tuple[Tensor, Tensor]:
        """Of layer `index` on the fitting tokens: what its MLP adds, and the stream that this is added to."""
        layer, added = self.model.model.layers[index], []
        handle = layer.mlp.register_forward_hook(lambda _m, _a, output: added.append(output))
        with torch.no_grad():
            for ids, hidden in zip(self.fit.split(16), self.states[index].split(16), strict=True):
                _, more = self.start(ids[:1])
                self.layer(index, hidden, more)
        handle.remove()
        branch = torch.cat(added)
        return branch, self.states[index + 1] - branch


def windows(count: int, length: int) -> Iterator[int]:
    """Where a span of so many layers may start: never at the first layer, never with the last."""
    return iter(range(1, count - length))
