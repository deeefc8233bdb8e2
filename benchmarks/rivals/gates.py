"""TinyFusion's way of choosing blocks: which ones can go is learnt, together with the weights that make good for them.

Source: Fang et al. 2024, TinyFusion, arXiv:2412.01199; own implementation, at small scale. Blocks are grouped; in each
group of M blocks N stay. One categorical gate per group ranges over all masks with N of M blocks; a mask is drawn for
each sample (Gumbel-softmax, hard, straight-through, temperature from 4 to 0.1), and a block's output counts where its
mask is 1, what remains of it without its branch where it is 0. Gates (Adam at 1e-3, their logits scaled by 100) and
weights learn together from KL(original || student), as recovery does later; the most likely mask of each group is kept,
with the *original's* weights, and recovered as every other cut.

What differs from the paper: all weights learn (SGD at 0.01) instead of low-rank updates, since convolutions are small;
a group is a stage, so that N can follow the budget; the data are the calibration images and their blends.
"""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, cycle

import torch
from torch import Tensor, nn

from rivals.baselines import alike
from rivals.ground import Ground
from rivals.made import Made
from rivals.practise import BATCH, halves
from rivals.prefixes import fewest, without
from shoal.batches import Batch, call, logits_of
from shoal.measure import kl_per_sample
from shoal.pipeline.data_splits import with_mixup
from shoal.preserve import evaluating
from shoal.recover.train_step import set_train_mode_

_WARMEST, _COLDEST = 4.0, 0.1
_SCALE, _SPREAD = 100.0, 0.02
_GATE_RATE, _WEIGHT_RATE, _MAX_NORM = 1e-3, 0.01, 1.0
_MAX_MASKS = 2000
_MIN_NORM_BATCH = 2


@dataclass(frozen=True)
class Group:
    """Blocks of a stage, of which `keep` stay."""

    paths: tuple[str, ...]
    keep: int

    def masks(self) -> Tensor:
        """All choices of `keep` blocks, shape (masks, blocks): 1 where a block stays."""
        rows = [
            [float(index in chosen) for index in range(len(self.paths))]
            for chosen in combinations(range(len(self.paths)), self.keep)
        ]
        return torch.tensor(rows)


def gated(ground: Ground, target: float) -> Made:
    """The network whose gates, learnt for the numbers of blocks that meet `target`, say what stays."""
    folder = ground.folder / "tinyfusion"
    folder.mkdir(parents=True, exist_ok=True)
    paths, stages = alike(ground), ground.graph.chain
    by_stage = list(split_evenly([(path, stages[path].stage) for path in paths]))
    patterns = list(thinned([len(group) for group in by_stage]))
    # Blocks of a stage cost the same, so that any of them stand for the pattern.
    removals = [
        [path for group, keep in zip(by_stage, pattern, strict=True) for path in group[keep:]] for pattern in patterns
    ]
    pattern = patterns[fewest(ground, removals, target, folder)]
    groups = [Group(tuple(group), keep) for group, keep in zip(by_stage, pattern, strict=True)]
    removed, likely = learn(ground, groups)
    done = {"pattern": [f"{group.keep}:{len(group.paths)}" for group in groups], "probabilities": likely}
    return without(ground, removed, steps=ground.gate_steps, **done)


def split_evenly(staged: Sequence[tuple[str, int]]) -> Iterator[list[str]]:
    """The paths by stage; a stage with too many masks in halves."""
    for stage in dict.fromkeys(stage for _, stage in staged):
        yield from _in_parts([path for path, own_stage in staged if own_stage == stage])


def _in_parts(paths: list[str]) -> Iterator[list[str]]:
    if math.comb(len(paths), len(paths) // 2) <= _MAX_MASKS:
        yield paths
    else:
        yield from _in_parts(paths[: len(paths) // 2])
        yield from _in_parts(paths[len(paths) // 2 :])


def thinned(sizes: Sequence[int]) -> Iterator[list[int]]:
    """How many blocks stay in each group, one fewer each time, taken from the group of which most is left."""
    keep = list(sizes)
    while any(keep):
        fullest = max(range(len(keep)), key=lambda index: (keep[index] / sizes[index], index))
        keep[fullest] -= 1
        yield list(keep)


def learn(ground: Ground, groups: Sequence[Group]) -> tuple[list[str], list[float]]:
    """The blocks that go, and how likely the gates are about each group."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = copy.deepcopy(ground.model).requires_grad_(requires_grad=True)
        gates = [Gate(group) for group in groups]
        handles = [handle for gate in gates for handle in gate.attach_(student, ground)]
        weights = torch.optim.SGD(student.parameters(), lr=_WEIGHT_RATE, momentum=0.9)
        logits = torch.optim.Adam([gate.logits for gate in gates], lr=_GATE_RATE)
        samples = cycle(list(halves(with_mixup(ground.fit_on), BATCH)))
        try:
            for step in range(ground.gate_steps):
                ground.progress("learning gates", step, ground.gate_steps)
                temperature = _WARMEST + (_COLDEST - _WARMEST) * step / max(1, ground.gate_steps - 1)
                with torch.autocast(ground.timed.tensors[0].device.type, torch.bfloat16, enabled=ground.mixed):
                    loss = _loss(ground.model, student, gates, next(samples), temperature)
                loss.backward()
                nn.utils.clip_grad_norm_(student.parameters(), _MAX_NORM)
                for optimizer in (weights, logits):
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
        finally:
            for handle in handles:
                handle.remove()
    return [path for gate in gates for path in gate.removed()], [gate.confidence() for gate in gates]


def _loss(model: nn.Module, student: nn.Module, gates: Sequence["Gate"], batch: Batch, temperature: float) -> Tensor:
    """KL(original || student) with masks drawn anew."""
    with evaluating(model):
        expected = logits_of(call(model, batch)).float().log_softmax(-1)
    for gate in gates:
        gate.draw_(batch.size, temperature)
    set_train_mode_(student, batch.size, _MIN_NORM_BATCH)
    outputs = logits_of(call(student, batch)).float().log_softmax(-1)
    return kl_per_sample(expected, outputs).mean()


class Gate:
    """A categorical gate over the masks of a group."""

    def __init__(self, group: Group) -> None:
        self.group, self.masks = group, group.masks()
        self.logits = nn.Parameter(_SPREAD * torch.randn(len(self.masks)))
        self.drawn = torch.empty(0)

    def draw_(self, samples: int, temperature: float) -> None:
        """A mask for each sample; the gradient reaches the logits as if the choice were soft."""
        scaled = (_SCALE * self.logits).expand(samples, -1)
        self.drawn = nn.functional.gumbel_softmax(scaled, tau=temperature, hard=True) @ self.masks

    def attach_(self, student: nn.Module, ground: Ground) -> list[torch.utils.hooks.RemovableHandle]:
        """Let the masks decide about the blocks of the student; the handles of the hooks."""

        def hook(index: int, rest: nn.Module) -> object:
            def switch(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                mask = self.drawn[:, index].reshape(-1, *[1] * (output.dim() - 1))
                return mask * output + (1 - mask) * rest(args[0])

            return switch

        return [
            student.get_submodule(path).register_forward_hook(hook(index, ground.graph.shortcut_modules[path]))  # type: ignore[arg-type]
            for index, path in enumerate(self.group.paths)
        ]

    def removed(self) -> list[str]:
        """The blocks that the most likely mask takes out."""
        best = self.masks[int(self.logits.argmax())]
        return [path for path, keeps in zip(self.group.paths, best.tolist(), strict=True) if not keeps]

    def confidence(self) -> float:
        """The probability of the most likely mask."""
        return float((_SCALE * self.logits.detach()).softmax(0).max())
