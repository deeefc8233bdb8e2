"""The methods: each takes the ground and a number of layers, and returns a cut model with a note on what was cut.

Short implementations from the descriptions of their papers; what differs from these is said at each.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from decoders.ground import ZERO_UNITS, Ground, shared_copy, windows, without_layers, without_units

Made = tuple[Any, dict[str, Any]]


def influences(ground: Ground) -> list[float]:
    """Block influence of every layer: 1 - cos of the stream before and behind it (arXiv:2403.03853)."""
    pairs = zip(ground.states, ground.states[1:], strict=False)
    return [1 - float(torch.cosine_similarity(before, behind, dim=-1).mean()) for before, behind in pairs]


def span_start(ground: Ground, length: int) -> int:
    """The span whose ends are the most alike by angle (arXiv:2403.17887)."""
    distance = {
        start: float(
            torch.cosine_similarity(ground.states[start], ground.states[start + length], dim=-1)
            .clamp(-1, 1)
            .acos()
            .mean()
        )
        for start in windows(ground.count, length)
    }
    return min(distance, key=distance.__getitem__)


def shortgpt(ground: Ground, count: int, work: Path) -> Made:
    """ShortGPT: the layers of least block influence go."""
    scores = influences(ground)
    removed = sorted(sorted(range(ground.count), key=scores.__getitem__)[:count])
    return without_layers(ground.model, removed), {"removed": removed}


def contiguous(ground: Ground, count: int, work: Path) -> Made:
    """The span of layers whose ends are the most alike goes (arXiv:2403.17887), without training."""
    start = span_start(ground, count)
    removed = list(range(start, start + count))
    return without_layers(ground.model, removed), {"removed": removed}


def last_layers(ground: Ground, count: int, work: Path) -> Made:
    """The last layers go (arXiv:2411.15558); recovery then tunes the head and the last three that stay."""
    removed = list(range(ground.count - count, ground.count))
    return without_layers(ground.model, removed), {"removed": removed}


class Greedy:
    """Units or layers taken out one by one by the loss of what is left.

    As in SLEB (arXiv:2402.09025) and BlockPruner (arXiv:2406.10594).
    Only what lies behind a candidate is run again, which changes no answer.
    """

    def __init__(self, ground: Ground, names: tuple[str, ...]) -> None:
        self.ground, self.names = ground, names
        self.places = [(index, name) for index in range(ground.count) for name in names]

    def order(self, count: int, file: Path, note: Callable[[str], None]) -> list[tuple[int, str]]:
        """The first `count` to go; each is kept in `file` when it is known."""
        kept = [tuple(line.split()) for line in file.read_text().splitlines()] if file.exists() else []
        removed = [(int(index), name) for index, name in kept]
        while len(removed) < count:
            removed.append(self._next(removed))
            file.write_text("".join(f"{index} {name}\n" for index, name in removed))
            note(f"{file.stem}: {removed[-1]} is number {len(removed)}")
        return removed[:count]

    @torch.no_grad()
    def _next(self, removed: list[tuple[int, str]]) -> tuple[int, str]:
        ground = self.ground
        hidden, more = ground.start(ground.choice)
        losses = {}
        for index in range(ground.count):
            for name in self.names:
                if (index, name) not in removed:
                    losses[index, name] = self._loss(hidden, index, [*removed, (index, name)], more)
            hidden = self._layer(index, hidden, removed, more)
        return min(losses, key=losses.__getitem__)

    def _loss(self, hidden: Tensor, start: int, removed: list[tuple[int, str]], more: dict[str, Any]) -> float:
        for index in range(start, self.ground.count):
            hidden = self._layer(index, hidden, removed, more)
        logits = self.ground.logits(hidden)[:, :-1]
        return float(nn.functional.cross_entropy(logits.flatten(0, 1), self.ground.choice[:, 1:].flatten()))

    def _layer(self, index: int, hidden: Tensor, removed: list[tuple[int, str]], more: dict[str, Any]) -> Tensor:
        layer = self.ground.model.model.layers[index]
        if (index, "layer") in removed:
            return hidden
        if (index, "self_attn") not in removed:
            hidden = hidden + layer.self_attn(layer.input_layernorm(hidden), **more)[0]
        if (index, "mlp") not in removed:
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return hidden


def sleb(ground: Ground, count: int, work: Path) -> Made:
    """SLEB: layers by the loss, one by one."""
    order = Greedy(ground, ("layer",)).order(count, work / "sleb.txt", print)
    removed = sorted(index for index, _ in order)
    return without_layers(ground.model, removed), {"removed": removed}


def blockpruner(ground: Ground, count: int, work: Path) -> Made:
    """BlockPruner: attention and MLP apart, by the loss; two units count as a layer."""
    units = sorted(Greedy(ground, ZERO_UNITS).order(2 * count, work / "blockpruner.txt", print))
    return without_units(ground.model, units), {"removed": [f"{index}.{name}" for index, name in units]}


def least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, float]:
    """The map T with x T nearest to y, with a ridge towards the identity chosen on a fifth of the rows."""
    held = len(x) // 5
    (x_held, x), (y_held, y) = x.double().split([held, len(x) - held]), y.double().split([held, len(y) - held])
    gram, cross, identity = x.T @ x, x.T @ (y - x), torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
    best = (math.inf, identity, 0.0)
    for ridge in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        change = torch.linalg.solve(gram + ridge * gram.trace() / len(gram) * identity, cross)
        error = float((x_held @ (identity + change) - y_held).square().sum())
        best = min(best, (error, identity + change, ridge), key=lambda item: item[0])
    return best[1], best[2]


def fold_map(ground: Ground, removed: list[int], matrix: Tensor) -> Any:
    """The cut model with the map in the `down_proj` of the layer before the span."""
    cut = without_layers(ground.model, removed)
    down = cut.model.layers[removed[0] - 1].mlp.down_proj
    down.weight = nn.Parameter((matrix.T @ down.weight.double()).to(down.weight.dtype))
    return cut


def replaceme(ground: Ground, count: int, work: Path) -> Made:
    """ReplaceMe by least squares (arXiv:2505.02819): what the MLP before the span adds is mapped, at no parameter."""
    start = span_start(ground, count)
    removed = list(range(start, start + count))
    branch, stream = ground.mlp_parts(start - 1)
    target = ground.states[start + count] - stream
    matrix, ridge = least_squares(branch.flatten(0, 1), target.flatten(0, 1))
    return fold_map(ground, removed, matrix), {"removed": removed, "ridge": ridge}


def replaceme_cosine(ground: Ground, count: int, work: Path) -> Made:
    """ReplaceMe by the cosine distance: Adam from the identity, 10 epochs of mini-batches of 1,024 tokens."""
    start = span_start(ground, count)
    removed = list(range(start, start + count))
    branch, stream = (part.flatten(0, 1) for part in ground.mlp_parts(start - 1))
    target = ground.states[start + count].flatten(0, 1)
    matrix = nn.Parameter(torch.eye(branch.shape[1], device=branch.device))
    optimizer = torch.optim.Adam([matrix], lr=1e-4)
    for epoch in range(10):
        order = torch.randperm(len(branch), generator=torch.Generator().manual_seed(epoch))
        for rows in order.split(1024):
            loss = 1 - torch.cosine_similarity(branch[rows] @ matrix + stream[rows], target[rows], dim=-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return fold_map(ground, removed, matrix.detach().double()), {"removed": removed}


def hadamard(size: int) -> Tensor:
    """An orthogonal matrix of +-1 in blocks of the largest power of two that divides `size`."""
    block = torch.ones(1, 1)
    while size % (2 * len(block)) == 0:
        block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)])
    return torch.block_diag(*[block / math.sqrt(len(block))] * (size // len(block)))


class Patch(nn.Module):
    """A layer, and behind it a fixed linear map of the stream."""

    def __init__(self, layer: nn.Module, matrix: Tensor) -> None:
        super().__init__()
        self.layer, self.matrix = layer, nn.Parameter(matrix)
        self.self_attn = layer.self_attn

    def forward(self, hidden: Tensor, **more: Any) -> Any:
        """The layer, then the map."""
        output = self.layer(hidden, **more)
        return (output[0] @ self.matrix, *output[1:]) if isinstance(output, tuple) else output @ self.matrix


def linearpatch(ground: Ground, count: int, work: Path) -> Made:
    """LinearPatch (arXiv:2505.24680): rotated channels scaled as the span scaled them, without its later training."""
    start = span_start(ground, count)
    removed = list(range(start, start + count))
    turn = hadamard(ground.states[0].shape[-1]).to(ground.fit.device)
    before, behind = ((ground.states[at] @ turn).abs().mean((0, 1)) for at in (start, start + count))
    cut = without_layers(ground.model, removed)
    matrix = turn @ torch.diag(behind / before) @ turn.T
    cut.model.layers[start - 1] = Patch(cut.model.layers[start - 1], matrix)
    return cut, {"removed": removed}


def streamline(ground: Ground, count: int, work: Path) -> Made:
    """LLM-Streamline (arXiv:2403.19135): a span longer by one becomes a single layer, trained on its ends.

    It starts as the first layer of the span; 4 epochs of AdamW on the fitting tokens, squared error. It is trained, so
    it stands with the recovered networks.
    """
    start = span_start(ground, count + 1)
    removed = list(range(start + 1, start + count + 1))
    cut = without_layers(ground.model, removed)
    layer = cut.model.layers[start]
    for module in layer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach().clone()))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=2e-4)
    before, behind = ground.states[start], ground.states[start + count + 1]
    _, more = ground.start(ground.fit[:1])
    for epoch in range(4):
        for rows in torch.randperm(len(before), generator=torch.Generator().manual_seed(epoch)).split(4):
            output = layer(before[rows], **more)
            loss = (output[0] if isinstance(output, tuple) else output).sub(behind[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return cut.eval().requires_grad_(False), {"removed": removed, "trained": start}


def original(ground: Ground, count: int, work: Path) -> Made:
    """The whole network."""
    return shared_copy(ground.model), {"removed": []}
