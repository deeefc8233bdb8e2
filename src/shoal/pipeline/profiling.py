"""Time modules where they stand, inside the running network.

A module that is timed alone, over and over on the same input, finds everything in the cache and is too fast; its place
in a plan is between others. So the segments are timed in the original, and replacements in *packed layouts*: the same
network with as many of them in place as fit without overlap. All times are shares of the whole network's time in the
same round, so that a machine that is busy for a while favours none of them.
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

# Rounds, and the seconds after which no new round begins once there are enough to take a median of.
_ROUNDS, _MIN_ROUNDS, _SECONDS = 8, 3, 20.0


@dataclass(frozen=True)
class PlacedModule:
    """A module that may take the place of others: at the first place it runs, the others pass their input through.

    `formats` are those in which each of the replaced modules returns the stream; without them `module` does so itself.
    """

    module: nn.Module
    shape: tuple[int, ...]
    paths: tuple[str, ...]
    formats: tuple[OutputFormat, ...] = ()

    @property
    def forwards(self) -> list[tuple[str, Any]]:
        """The function to call in the place of each module."""
        formats = self.formats or (PLAIN,) * len(self.paths)
        functions: list[Any] = [self.module.forward, *[_passthrough] * (len(self.paths) - 1)]
        return [
            (path, output_format.wrap_forward(function))
            for path, output_format, function in zip(self.paths, formats, functions, strict=True)
        ]


def latency_shares(
    model: nn.Module,
    segments: SegmentChain,
    candidates: Mapping[str, PlacedModule],
    batch: Batch,
    *,
    channels_last: bool = False,
) -> tuple[dict[str, float], dict[str, float]]:
    """The shares of the segments, and of the candidates by key, in the time of the whole network; medians over rounds.

    Args:
        model: the original; it is left as it was.
        segments: of the network.
        candidates: one module of each kind that is to be timed.
        batch: the mini-batch.
        channels_last: time a copy with the channels last in memory.
    """
    if channels_last:
        model, candidates = copy.deepcopy((model, dict(candidates)))
        model.to(memory_format=torch.channels_last)
        for candidate in candidates.values():
            candidate.module.to(memory_format=torch.channels_last)
        batch = batch.to(device_of(model), torch.channels_last)
    original = {
        segment.path: [(path, model.get_submodule(path).forward) for path in segment.paths]
        for segment in segments.segments
    }
    layouts = [{key: candidates[key].forwards for key in keys} for keys in pack(candidates)]
    # Apart: a candidate may have the name of a segment.
    segment_shares: dict[str, list[float]] = {}
    candidate_shares: dict[str, list[float]] = {}
    with evaluating(model), torch.inference_mode():
        started = time.perf_counter()
        for index in range(_ROUNDS + 1):
            if index > _MIN_ROUNDS and time.perf_counter() - started > _SECONDS:
                break
            segment_seconds = _run(model, original, batch)
            whole = segment_seconds.pop(_WHOLE)
            segment_seconds[_REST] = max(0.0, whole - sum(segment_seconds.values()))
            candidate_seconds: dict[str, float] = {}
            for layout in layouts:
                candidate_seconds |= _run(model, layout, batch)
            candidate_seconds.pop(_WHOLE, None)
            if index:  # the first round warms up
                _add_shares(segment_shares, segment_seconds, whole)
                _add_shares(candidate_shares, candidate_seconds, whole)
    segment_medians, candidate_medians = _medians(segment_shares), _medians(candidate_shares)
    # On a busy machine nearly every run is interrupted, each part of it rarely: a part's median then knows of no
    # interruption, while the run that it is a share of does. All parts together are the whole.
    total = sum(segment_medians.values())
    del segment_medians[_REST]
    return _scaled(segment_medians, 1 / total), _scaled(candidate_medians, 1 / total)


_WHOLE, _REST = "", "the rest"


def _scaled(shares: Mapping[str, float], factor: float) -> dict[str, float]:
    return {key: share * factor for key, share in shares.items()}


def _add_shares(shares: dict[str, list[float]], spent: Mapping[str, float], whole: float) -> None:
    for key, seconds in spent.items():
        shares.setdefault(key, []).append(seconds / whole)


def _medians(shares: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {key: statistics.median(values) for key, values in shares.items()}


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

    forwards = {
        model.get_submodule(path): timed(key, forward) for key, placed in layout.items() for path, forward in placed
    }
    with patched(forwards):
        start = now()
        call(model, batch)
        spent[_WHOLE] = now() - start
    return spent


def pack(candidates: Mapping[str, PlacedModule]) -> list[list[str]]:
    """The keys in few groups, first fit, such that no module is covered twice in a group."""
    groups: list[tuple[set[str], list[str]]] = []
    for key, candidate in candidates.items():
        free = next((group for group in groups if not group[0] & set(candidate.paths)), None)
        if free is None:
            free = (set(), [])
            groups.append(free)
        free[0].update(candidate.paths)
        free[1].append(key)
    return [keys for _, keys in groups]


def _passthrough(x: Any, *args: Any, **kwargs: Any) -> Any:
    return x
