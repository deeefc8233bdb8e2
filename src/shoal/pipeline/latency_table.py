"""Latencies of one network on one device, as a file: made where the network is to run, used where there is data."""

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from shoal.batches import Batch, device_of, like_of
from shoal.blocks import analyze
from shoal.measure import machine
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.candidate_table import LONGEST, Progress, timed_modules
from shoal.pipeline.costs import CostModel
from shoal.pipeline.latency_backends import MeasuredLatency
from shoal.replace import REPLACEMENTS, build_segments
from shoal.workers import Workers


@dataclass(frozen=True)
class LatencyTable:
    """Milliseconds of every kind of segment and replacement at one batch size, by `shape_key`."""

    device: str
    batch: int
    dtype: str
    threads: int
    channels_last: bool
    whole_ms: float
    entries: dict[str, dict[str, Any]]
    machine: dict[str, Any]

    def to_json(self) -> str:
        """For `compress --latency-from FILE`."""
        return json.dumps({"latency_table_version": 1, **asdict(self)}, indent=1)


def latency_table(
    model: nn.Module,
    batch: Batch,
    *,
    channels_last: bool = False,
    longest: int = LONGEST,
    progress: Progress = lambda stage, done, total: None,
    workers: Workers | None = None,
) -> LatencyTable:
    """Time every kind of segment, shortcut and replacement of a network; weights and data do not matter.

    Args:
        model: the network, on the device to time.
        batch: the mini-batch to time with.
        channels_last: time images with the channels last in memory.
        longest: segments in the longest span.
        progress: called with (stage, done, total).
        workers: of a cluster, who time too, where their nodes are machines like this one; by default this process.

    Raises:
        ModelRaisedError, TraceError: the network does not take the batch.
    """
    graph = analyze(model, batch.take(2))
    segments, like = build_segments(graph), like_of(model)
    backend = MeasuredLatency(like, batch, channels_last=channels_last)
    costs = CostModel(graph, segments, batch, backend, MeasurementCache(None, {}), workers)
    progress("timing every kind of block", 0, 1)
    costs.measure(timed_modules(graph, segments, tuple(REPLACEMENTS), longest))
    entries = {key: {"ms": ms, "what": costs.labels.get(key, "")} for key, ms in costs.latencies().items()}
    return LatencyTable(
        device=str(device_of(model)),
        batch=batch.size,
        dtype=str(like.dtype).removeprefix("torch."),
        threads=torch.get_num_threads(),
        channels_last=channels_last,
        whole_ms=costs.whole.latency_ms,
        entries=entries,
        machine=machine(device_of(model)).model_dump(mode="json"),
    )
