"""PRACTISE's way of choosing blocks: how well could the rest of the stage make good for the one that is removed?

Source: Wang and Wu 2023, arXiv:2202.07861; own implementation. Without the block, a 1 x 1 convolution is put behind
every earlier convolution of its stage and before every later one; only these learn, batch norms as they are, from the
squared error of the features in front of the pooling. What is left of it, for each per cent of latency saved, is the
score; the blocks with the least go first. The adaptors serve the score alone. There each block gets 1000 or 2000
steps; here `Ground.adaptor_steps`, 100 by default.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rivals.ground import Ground, share_of
from rivals.made import Made, Unreached
from rivals.prefixes import shortest_prefix
from shoal.batches import Batch, call
from shoal.files.writing import write_text
from shoal.preserve import evaluating
from shoal.recover.train_step import capture_outputs
from shoal.surgery import remove_blocks

RATE, BATCH = 0.02, 64
_SECONDS = 1.0
_LEAST_CUT = 0.05  # per cent of latency: what is less is noise


def practise(ground: Ground, target: float) -> Made:
    """The shortest beginning of the order that meets `target`, from the original weights, not tuned yet."""
    folder = ground.folder / "practise"
    folder.mkdir(parents=True, exist_ok=True)
    scores = _scores(ground, folder / "scores.json")
    order = sorted(scores, key=lambda path: scores[path])
    if not order:
        raise Unreached(None, "no block but the first of its stage can be removed")
    return shortest_prefix(ground, order, target, folder)


def rate_at(spent: float, highest: float = RATE) -> float:
    """A tenth after each 40 % of the steps, as there."""
    return highest * 0.1 ** int(spent / 0.4)


def halves(batches: Iterable[Batch], size: int = BATCH) -> Iterator[Batch]:
    """Mini-batches of at most so many samples."""
    for batch in batches:
        rest = batch
        while rest.size > size:
            yield rest.take(size)
            rest = rest.rest(size)
        yield rest


def last_block(ground: Ground) -> str:
    """The block whose output is pooled and classified."""
    return ground.graph.chain.blocks[-1].path


def _scores(ground: Ground, path: Path) -> dict[str, float]:
    """The score of every candidate, from the file as far as it stands there."""
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if kept.get("steps") != ground.adaptor_steps:
        kept = {"steps": ground.adaptor_steps, "errors": {}, "cuts": {}}
    candidates = _candidates(ground)
    example, errors = ground.timed.take(2), kept["errors"]
    cuts = {path: remove_blocks(ground.model, example, [path]).eval() for path in candidates}
    if set(kept["cuts"]) != set(candidates):
        ground.progress("timing the removal of each block", 0, 1)
        times = ground.times(cuts, _SECONDS)
        kept["cuts"] = {path: 100 * (1 - share_of(times[path])) for path in candidates}
    targets = [block for block in candidates if block not in errors] and _targets(ground)
    for index, block in enumerate(candidates):
        if block not in errors:
            ground.progress(f"adaptors of {block}", index, len(candidates))
            errors[block] = _remaining_error(ground, cuts[block], block, targets)
            write_text(path, json.dumps(kept, indent=1) + "\n")
    return {block: errors[block] / max(_LEAST_CUT, kept["cuts"][block]) for block in candidates}


def _candidates(ground: Ground) -> list[str]:
    """The removable blocks but the first of each stage."""
    seen: set[int] = set()
    paths = []
    for block in ground.graph.chain:
        if block.stage in seen and block.removable:
            paths.append(block.path)
        seen.add(block.stage)
    return paths


def _targets(ground: Ground) -> list[tuple[Batch, Tensor]]:
    """A mini-batch for each step, and the original's features on it."""
    last, targets = last_block(ground), []
    with evaluating(ground.model):
        for batch in islice(cycle([*halves(ground.fit_on)]), ground.adaptor_steps):
            with capture_outputs(ground.model, [last]) as features:
                call(ground.model, batch)
            targets.append((batch, features[last]))
    return targets


def _remaining_error(ground: Ground, cut: nn.Module, removed: str, targets: Sequence[tuple[Batch, Tensor]]) -> float:
    """The squared error that adaptors leave, the mean over the last tenth of the steps."""
    cut.requires_grad_(requires_grad=False)
    last = last_block(ground)
    adaptors, handles = _adapted_(ground, cut, removed)
    learning = [adaptor.weight for adaptor in adaptors]
    optimizer = torch.optim.SGD(learning, lr=RATE, momentum=0.9) if learning else None
    errors = []
    try:
        for step, (batch, expected) in enumerate(targets):
            with capture_outputs(cut, [last]) as features:
                call(cut, batch)
            loss = (features[last] - expected).square().mean()
            errors.append(float(loss.detach()))
            if optimizer is not None:
                optimizer.param_groups[0]["lr"] = rate_at(step / len(targets))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    finally:
        for handle in handles:
            handle.remove()
    tail = errors[-max(1, len(errors) // 10) :]
    return sum(tail) / len(tail)


def _adapted_(ground: Ground, cut: nn.Module, removed: str) -> tuple[list[Any], list[Any]]:
    """Adaptors that do nothing yet, hooked to the other convolutions of the stage; and the hooks' handles."""
    chain = ground.graph.chain
    places = chain.paths
    adaptors: list[Any] = []
    handles: list[Any] = []
    for block in chain:
        if block.stage != chain[removed].stage or block.path == removed:
            continue
        earlier = places.index(block.path) < places.index(removed)
        for path in block.branch:
            layer = cut.get_submodule(path)
            if not isinstance(layer, nn.Conv2d | nn.Linear):
                continue
            adaptor = _adaptor(layer, len(layer.weight) if earlier else layer.weight[0].shape[0] * _groups(layer))
            adaptors.append(adaptor)
            if earlier:
                handles.append(layer.register_forward_hook(lambda _, args, y, adaptor=adaptor: adaptor(y)))
            else:
                handles.append(layer.register_forward_pre_hook(lambda _, args, adaptor=adaptor: (adaptor(args[0]),)))
    return adaptors, handles


def _groups(layer: nn.Module) -> int:
    return int(getattr(layer, "groups", 1))


def _adaptor(layer: nn.Module, channels: int) -> Any:
    """The identity, as a 1 x 1 convolution or a linear layer without a bias."""
    made = (
        nn.Conv2d(channels, channels, 1, bias=False)
        if isinstance(layer, nn.Conv2d)
        else nn.Linear(channels, channels, bias=False)
    )
    with torch.no_grad():
        made.weight.copy_(torch.eye(channels).reshape(made.weight.shape))
    return made.to(layer.weight.device, layer.weight.dtype)
