"""A task through scan and compress: damage, drop, record, recovery."""

import pytest
import torch

import shoal
from networks_by_task import Encoder, Restorer, Segmenter, images, made, seeded
from shoal.errors import UsageError
from shoal.report.comparison import before_after
from shoal.report.text import headline
from shoal.tasks import Metric, Task

QUICK = {"latency_seconds": 0.01}


def test_a_drop_in_decibels_is_held_on_validation():
    model = made(Restorer)
    x = images(24)
    with torch.no_grad():
        data = [(x, model(x) + 0.01 * torch.rand(x.shape, generator=seeded(1)))]
    tight, loose = (
        shoal.compress(model, data, shoal.MaxDrop(points), validation=data, config=shoal.CompressConfig(**QUICK))
        for points in (0.0, 100.0)
    )
    assert len(tight.record.removed) < len(loose.record.removed) == 4
    [psnr, _] = loose.record.comparison.metrics
    assert psnr.unit == "dB"
    assert loose.record.outputs.task == "restoration"
    drop = loose.record.validation.metrics[0].drop
    within = shoal.compress(
        model, data, shoal.MaxDrop(drop - 1e-6), validation=data, config=shoal.CompressConfig(**QUICK)
    )
    assert len(within.record.removed) < 4
    assert any(row.label == "PSNR" and row.original.value.endswith("dB") for row in before_after(loose.record))
    assert "PSNR" in headline(loose.record)


def test_embeddings_lose_direction_not_length():
    model = made(Encoder)
    with torch.no_grad():
        model.trunk.blocks[2].conv2.weight.zero_()
        model.trunk.blocks[2].conv2.bias.zero_()
    record = shoal.scan(model, [images(8)], config=shoal.ScanConfig(layers=False, task="embedding"))
    damage = {block.path: block.ablations["block"].kl for block in record.blocks if "block" in block.ablations}
    assert damage["trunk.blocks.2"] == pytest.approx(0.0, abs=1e-12)
    assert all(value > 1e-6 for path, value in damage.items() if path != "trunk.blocks.2")
    config = shoal.CompressConfig(task="embedding", **QUICK)
    result = shoal.compress(model, [images(8)], shoal.RemoveBlocks(2), config=config)
    with torch.no_grad():
        before, after = (network(images(8)).double() for network in (model, result.model))
    cosine = torch.cosine_similarity(before, after).mean()
    assert result.record.comparison.cosine_distance == pytest.approx(1 - float(cosine), abs=1e-9)
    assert result.record.comparison.metrics[0].name == "neighbours"


def test_recovery_learns_directions():
    model = made(Encoder)
    config = shoal.CompressConfig(task="embedding", **QUICK)
    data = [images(16, seed=1), images(16, seed=2)]
    result = shoal.compress(
        model, data, shoal.RemoveBlocks(2), validation=[images(16, seed=3)], recovery=30, config=config
    )
    recovery = result.record.recovery
    assert recovery.divergence_after < recovery.divergence_before


def test_a_metric_of_the_users_decides():
    def rows(output, reference, batch):
        return (output["out"].argmax(1) == reference.value["out"].argmax(1)).double().mean((1, 2)).tolist()

    mine = Task("pixels", (Metric("same", "Same pixels", rows, lambda rows: sum(rows) / len(rows), "%", perfect=1.0),))
    config = shoal.CompressConfig(task=mine, **QUICK)
    data = [images(8)]
    result = shoal.compress(made(Segmenter), data, shoal.MaxDrop(5.0), validation=data, config=config)
    [metric] = result.record.comparison.metrics
    assert metric.label == "Same pixels"
    assert metric.drop <= 0.05 + 1e-9
    assert result.record.outputs.task == "pixels"


@pytest.mark.parametrize("rows", [lambda *_: [1.0], lambda *_: 1 / 0, lambda *_: None])
def test_a_metric_that_fails_is_named(rows):
    bad = Task("bad", (Metric("bad", "Bad", rows, sum, perfect=1.0),))
    config = shoal.CompressConfig(task=bad, **QUICK)
    with pytest.raises(UsageError, match="the metric Bad"):
        shoal.compress(made(Encoder), [images(8)], shoal.RemoveBlocks(1), config=config)


def test_a_damage_that_reads_values_is_unchanged_without_a_task():
    """What is recognised from labels alone changes no damage."""
    x, y = images(8), torch.randn(8, 8, generator=seeded())
    by_labels = shoal.scan(made(Encoder), [(x, y)], config=shoal.ScanConfig(layers=False, scores=False))
    plain = shoal.scan(made(Encoder), [x], config=shoal.ScanConfig(layers=False, scores=False))
    assert [block.ablations["block"].kl for block in by_labels.blocks] == [
        block.ablations["block"].kl for block in plain.blocks
    ]
