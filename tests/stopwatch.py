"""Latency without a clock: so much a multiplication, so much a module. Plans made with it are the same every time."""

import torch
from torch import nn

from shoal.batches import Batch
from shoal.measure import cost
from shoal.record import Latency, LatencyRatio


def milliseconds(module, batch):
    """What the fake clock says of one forward."""
    leaves = sum(1 for one in module.modules() if not list(one.children()) and not isinstance(one, nn.Identity))
    return 1e-5 * cost(module, batch.take(1)).macs + 1e-3 * leaves


def latency(models, batch, *, channels_last=False, **_):
    """In the place of `shoal.measure.latency`."""
    return {name: taking(milliseconds(model, batch), batch.size) for name, model in models.items()}


def turns(models, batch, **_):
    """In the place of `shoal.measure.turns`."""
    return {name: [milliseconds(model, batch)] for name, model in models.items()}


def ratios(models, batch, *, reference, **_):
    """In the place of `shoal.measure.latency_ratios`."""
    times = {name: milliseconds(model, batch) for name, model in models.items()}
    return {name: exactly(ms / times[reference]) for name, ms in times.items() if name != reference}


def beside(models, batch, *, reference, channels_last=False, **_):
    """In the place of `shoal.measure.latency_beside`."""
    times = latency(models, batch)
    compared = ratios(models, batch, reference=reference)
    return {
        name: one.model_copy(update={"ratio": compared.get(name), "channels_last": channels_last})
        for name, one in times.items()
    }


def exactly(ratio, batch=None):
    """A ratio without doubt."""
    return LatencyRatio(ratio=ratio, low=ratio, high=ratio, batch=batch)


def shares_in_place(model, line, others, batch, *, channels_last=False):
    """In the place of `shoal.pipeline.profiling.latency_shares`: nothing takes longer in the network."""
    whole = milliseconds(model, batch)
    steps = {step.path: on_zeros(line.module(model, step.path), step.in_shape) / whole for step in line.segments}
    return steps, {key: on_zeros(one.module, one.shape) / whole for key, one in others.items()}


def on_zeros(module, shape):
    """What the fake clock says of a module alone on one sample of this shape."""
    like = next(module.parameters(), torch.zeros(()))
    return milliseconds(module, Batch((torch.zeros((1, *shape), dtype=like.dtype, device=like.device),)))


def taking(ms, batch=1):
    """A record of so many milliseconds."""
    return Latency(
        batch=batch,
        median_ms=ms,
        q1_ms=ms,
        q3_ms=ms,
        runs=5,
        device="cpu",
        dtype="float32",
        threads=1,
        channels_last=False,
    )


def install(monkeypatch):
    """Time everything of a compression by the fake clock."""
    monkeypatch.setattr("shoal.pipeline.latency_backends.latency", latency)
    monkeypatch.setattr("shoal.pipeline.outcome.latency_beside", beside)
    monkeypatch.setattr("shoal.pipeline.latency_backends.interleaved_latency", turns)
    monkeypatch.setattr("shoal.pipeline.latency_backends.latency_ratios", ratios)
    monkeypatch.setattr("shoal.pipeline.kind_timing.latency_shares", shares_in_place)


class FakeClock:
    """A latency backend for `PlanSearch` and `CostModel` that asks `milliseconds` and remembers what it was asked."""

    measures = True

    def __init__(self, batch, source="fake"):
        self.batch, self.source = batch, source
        self.asked = []

    @property
    def batch_size(self):
        return self.batch.size

    def time_modules(self, group, shape):
        self.asked += [("module", shape, module) for module in group.values()]
        return {key: on_zeros(module, shape) for key, module in group.items()}

    def time_models(self, group, *, precise=False):
        self.asked += [("longer" if precise else "network", name, one) for name, one in group.items()]
        return {name: milliseconds(one, self.batch) for name, one in group.items()}

    def time_ratios(self, group, effort="short"):
        times = self.time_models(group, precise=effort != "short")
        return {name: exactly(ms / times["whole"], self.batch_size) for name, ms in times.items() if name != "whole"}
