"""Time modules where they stand, inside the running network.

A module that is timed alone, over and over on the same input, finds everything in the cache and is too fast; its place
in a plan is between others. So the steps are timed in the original, and stand-ins in *mosaics*: the same network with
as many of them in place as fit beside each other. Everything comes as a share of the whole network's time in the same
round, so that a machine that is busy for a while does not favour anybody.
"""

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shoal.batches import Batch, call, device_of
from shoal.preserve import evaluating, patched
from shoal.replace import PLAIN, OutputFormat, SegmentChain

# Rounds, and the seconds after which no new one is begun once there are enough to take a median of.
_ROUNDS, _FEWEST, _SECONDS = 8, 3, 20.0


@dataclass(frozen=True)
class PlacedModule:
    """Something that may take the place of modules: the first runs it, the others hand their input through.

    `forms` say how each of the modules gives the stream back; without them the module does that itself.
    """

    module: nn.Module
    shape: tuple[int, ...]
    paths: tuple[str, ...]
    forms: tuple[OutputFormat, ...] = ()

    @property
    def forwards(self) -> list[tuple[str, Any]]:
        """What is to be called in the place of each module."""
        forms = self.forms or (PLAIN,) * len(self.paths)
        forward: list[Any] = [self.module.forward, *[_handed_through] * (len(self.paths) - 1)]
        return [(path, form.wrap_forward(one)) for path, form, one in zip(self.paths, forms, forward, strict=True)]


def latency_shares(
    model: nn.Module,
    line: SegmentChain,
    others: Mapping[str, PlacedModule],
    batch: Batch,
    *,
    channels_last: bool = False,
) -> tuple[dict[str, float], dict[str, float]]:
    """The share of each step, and of each of `others` by key, in the time of the whole network; medians over rounds.

    Args:
        model: the original; it is left as it was.
        line: its steps.
        others: one of each kind that is to be timed.
        batch: the mini-batch.
        channels_last: time a copy with the channels last in memory.
    """
    given = batch
    if channels_last:
        model, others = copy.deepcopy((model, dict(others)))
        model.to(memory_format=torch.channels_last)
        for one in others.values():
            one.module.to(memory_format=torch.channels_last)
        given = batch.to(device_of(model), torch.channels_last)
    steps = {step.path: [(path, model.get_submodule(path).forward) for path in step.paths] for step in line.segments}
    mosaics = [{key: others[key].forwards for key in keys} for keys in _mosaics(others)]
    found: dict[str, list[float]] = {}
    found_others: dict[str, list[float]] = {}  # by themselves: one may have the name of a step
    with evaluating(model), torch.inference_mode():
        started = time.perf_counter()
        for number in range(_ROUNDS + 1):
            if number > _FEWEST and time.perf_counter() - started > _SECONDS:
                break
            own = _run(model, steps, given)
            whole = own.pop(_WHOLE)
            spent: dict[str, float] = {}
            for mosaic in mosaics:
                spent |= _run(model, mosaic, given)
            spent.pop(_WHOLE, None)
            if number:  # the first round warms up
                _note(found, own, whole)
                _note(found_others, spent, whole)
    return _medians(found), _medians(found_others)


_WHOLE = ""


def _note(found: dict[str, list[float]], spent: Mapping[str, float], whole: float) -> None:
    for key, seconds in spent.items():
        found.setdefault(key, []).append(seconds / whole)


def _medians(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {key: statistics.median(values) for key, values in found.items()}


def _run(model: nn.Module, layout: Mapping[str, Sequence[tuple[str, Any]]], batch: Batch) -> dict[str, float]:
    """Seconds of each key of a layout in one run, and of the run."""
    spent: dict[str, float] = dict.fromkeys(layout, 0.0)
    on_gpu = any(tensor.is_cuda for tensor in batch.tensors)

    def now() -> float:
        if on_gpu:  # it works while Python goes on
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(key: str, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            start = now()
            result = forward(*args, **kwargs)
            spent[key] += now() - start
            return result

        return run

    forwards = {model.get_submodule(path): timed(key, one) for key, tiles in layout.items() for path, one in tiles}
    with patched(forwards):
        start = now()
        call(model, batch)
        spent[_WHOLE] = now() - start
    return spent


def _mosaics(others: Mapping[str, PlacedModule]) -> list[list[str]]:
    """The keys in as few groups as come easily, such that no module is covered twice in a group."""
    groups: list[tuple[set[str], list[str]]] = []
    for key, one in others.items():
        free = next((group for group in groups if not group[0] & set(one.paths)), None)
        if free is None:
            free = (set(), [])
            groups.append(free)
        free[0].update(one.paths)
        free[1].append(key)
    return [keys for _, keys in groups]


def _handed_through(x: Any, *args: Any, **kwargs: Any) -> Any:
    return x
