"""How outputs are read, and what damage to them is."""

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import shoal
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import DataError, NonFiniteError, UsageError
from shoal.measure import compare, paired_predictions
from shoal.measure.output_reading import Spread, inferred, reading_of
from shoal.record import metric_drop
from shoal.scanning import removal_sweep

FAST = shoal.CompressConfig(latency_seconds=0.02)


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))


@dataclass
class Both:
    early: torch.Tensor
    late: torch.Tensor


class Heads(nn.Module):
    """Blocks with an answer halfway and one at the end, which `pack` puts together."""

    def __init__(self, pack, depth=4, width=8, classes=3):
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(depth))
        self.early, self.late, self.pack = nn.Linear(width, classes), nn.Linear(width, classes), pack

    def forward(self, x):
        x = self.stem(x)
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number == 1:
                early = self.early(x)
        return self.pack(early, self.late(x))


PACKS = {
    "tuple": lambda early, late: (early, late),
    "list": lambda early, late: [early, [late]],
    "dict": lambda early, late: {"early": early, "late": late},
    "dataclass": Both,
}


def made(pack=PACKS["tuple"], seed=0):
    torch.manual_seed(seed)
    return Heads(pack).eval(), torch.randn(12, 6)


def relative(before, after):
    return (before - after).double().square().flatten(1).mean(1) / variance(before)


def variance(values):
    """Of vectors the mean variance of a number."""
    return values.double().var(0, correction=0).mean() if values.dim() == 2 else values.double().var(correction=0)


def without(net, path):
    block = net.get_submodule(path)
    kept = block.b.weight.data.clone(), block.b.bias.data.clone()
    with torch.no_grad():
        block.b.weight.zero_()
        block.b.bias.zero_()
    return kept


@pytest.mark.parametrize("pack", PACKS.values(), ids=PACKS)
@given(seed=st.integers(0, 2**16))
@settings(max_examples=5, deadline=None)
def test_worths_of_several_outputs_are_those_of_whole_forwards(pack, seed):
    net, x = made(pack, seed)
    plain, _ = made(PACKS["tuple"], seed)
    found = removal_sweep(analyze(net, Batch((x,))), [x[:5], x[5:]], [f"blocks.{k}" for k in range(4)])
    with torch.no_grad():
        whole = plain(x)
        for one in found:
            block = plain.get_submodule(one.path)
            kept = without(plain, one.path)
            parts = [relative(a, b) for a, b in zip(whole, plain(x), strict=True)]
            block.b.weight.copy_(kept[0])
            block.b.bias.copy_(kept[1])
            assert one.damage == pytest.approx(float(torch.stack(parts).mean()), rel=1e-4)
            assert one.damage > 0


@given(seed=st.integers(0, 2**16))
@settings(max_examples=10, deadline=None)
def test_the_order_of_outputs_does_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    outputs = [torch.randn(4, size, generator=generator) for size in (3, 5, 2, 7)]
    others = [one + torch.randn(one.shape, generator=generator) for one in outputs]
    order = torch.randperm(4, generator=generator).tolist()
    batch = Batch((torch.zeros(4, 1),))

    def damage(before, after):
        return inferred(None, before, batch).scaled_by(before, batch).damage(before, after, batch)

    shuffled = damage([outputs[k] for k in order], [others[k] for k in order])
    assert torch.equal(damage(outputs, others), shuffled)


def test_a_common_shift_is_damage_to_values():
    before = torch.rand(4, 3, 5, 5)
    batch = Batch((before,))
    reading = inferred(None, before, batch).scaled_by(before, batch)
    assert reading.damage(before, before + 1, batch).tolist() == pytest.approx([1 / float(before.var())] * 4, rel=0.02)
    assert (reading.damage(before, before.clone(), batch) == 0).all()


INT = torch.arange(6) % 3


@pytest.mark.parametrize(
    ("output", "target", "tasks"),
    [
        (torch.randn(6, 3), INT, ["classes"]),
        (torch.randn(6, 3), INT.float(), ["classes"]),
        (torch.randn(6, 3), INT[:, None], ["classes"]),
        (torch.randn(6, 3), None, ["values"]),
        (torch.randn(6, 1), INT, ["values"]),
        (torch.randn(6), torch.randn(6), ["values"]),
        (torch.randn(6, 3), torch.randn(6, 3), ["values"]),
        (torch.randn(6, 3), torch.softmax(torch.randn(6, 3), 1), ["classes"]),
        (torch.randn(6, 3, 4, 4), torch.zeros(6, 4, 4).long(), ["classes"]),
        (torch.randn(6, 3, 4, 4), None, ["values"]),
        (torch.randn(6, 3, 4, 4), INT, ["values"]),
        (torch.randn(6, 5, 7), torch.zeros(6, 5).long(), ["classes"]),
        ((torch.randn(6, 3), torch.randn(6, 3)), INT, ["classes", "classes"]),
        ({"logits": torch.randn(6, 3), "emb": torch.randn(6, 8)}, INT, ["classes", "values"]),
        ((torch.randn(6, 3), torch.randn(6, 8)), INT, ["values", "values"]),
        ((torch.randn(6, 3), torch.arange(6)), INT, ["classes", "exact"]),
    ],
)
def test_classes_only_where_labels_say_so(output, target, tasks):
    found = inferred(None, output, Batch((torch.zeros(6, 1),), target=target))
    assert [one.task for one in found.outputs] == tasks
    assert all(one.why for one in found.outputs)


def test_a_named_output_is_read_alone():
    batch = Batch((torch.zeros(6, 1),), target=INT)
    output = (torch.randn(6, 3), torch.randn(6, 8))
    found = inferred(None, output, batch, ("[0]",))
    assert [(one.name, one.task) for one in found.outputs] == [("[0]", "classes")]
    assert found.view(output) is output[0]
    with pytest.raises(UsageError, match="no output 'nose'"):
        inferred(None, output, batch, ("nose",))


def test_the_class_of_a_network_of_transformers_says_what_its_logits_are():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    config = transformers.ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=3)
    batch = Batch((), {"pixel_values": torch.randn(2, 3, 8, 8)})
    classifier = transformers.ViTForImageClassification(config).eval()
    assert [one.task for one in reading_of(classifier, [batch]).outputs] == ["classes"]
    classifier.config.problem_type = "regression"
    assert [one.task for one in reading_of(classifier, [batch]).outputs] == ["values"]
    encoder = reading_of(transformers.ViTModel(config).eval(), [batch])
    assert [(one.name, one.task) for one in encoder.outputs] == [
        ("last_hidden_state", "values"),
        ("pooler_output", "values"),
    ]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_spread_of_a_stream_is_the_variance_of_all(sizes, seed):
    sizes = [*sizes, 2]
    values = 100 + torch.randn(sum(sizes), 3, generator=torch.Generator().manual_seed(seed))
    spread = Spread()
    for part in values.split(sizes):
        spread.add(part)
    assert spread.scale == pytest.approx(float(values.double().var(0, correction=0).mean()), rel=1e-6)


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 4)), min_size=2, max_size=4), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_spread_of_texts_of_many_lengths_is_the_variance_of_all(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    shapes = [*shapes, (2, 1 + max(length for _, length in shapes))]
    parts = [100 + torch.randn(*shape, generator=generator) for shape in shapes]
    spread = Spread()
    for part in parts:
        spread.add(part)
    values = torch.cat([part.flatten() for part in parts]).double()
    assert spread.scale == pytest.approx(float(values.var(correction=0)), rel=1e-6)


def test_numbers_of_other_means_do_not_hide_what_is_lost():
    """A price and a share: the variance of both together is that between their means."""
    values = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 1e4])
    spread = Spread()
    spread.add(values)
    assert spread.scale == pytest.approx(1.0, rel=0.3)
    constant = torch.cat([values, torch.full((50, 1), 7.0)], 1)
    spread = Spread()
    spread.add(constant)
    assert spread.scale == pytest.approx(2 / 3, rel=0.3)


@pytest.mark.parametrize(("value", "scale"), [(0.0, 1.0), (3.0, 9.0)])
def test_a_constant_output_has_a_scale_too(value, scale):
    spread = Spread()
    spread.add(torch.full((4, 2), value))
    assert spread.scale == pytest.approx(scale)


def test_masked_scores_do_no_damage_and_must_stay_masked():
    logits = torch.randn(6, 3)
    mask = torch.tensor([False, True, False])
    masked = logits.masked_fill(mask, -torch.inf)
    labels = torch.zeros(6).long()
    for target in (labels, None):
        batch = Batch((torch.zeros(6, 1),), target=target)
        reading = inferred(None, masked, batch).scaled_by(masked, batch)
        assert (reading.damage(masked, masked.clone(), batch) == 0).all()
        damage = reading.damage(masked, (logits * 2).masked_fill(mask, -torch.inf), batch)
        assert torch.isfinite(damage).all()
        assert (damage > 0).all()
        with pytest.raises(NonFiniteError, match="-Inf at other places"):
            reading.damage(masked, logits, batch)


def test_outputs_that_cannot_be_paired_are_named():
    batch = Batch((torch.zeros(6, 1),))
    before = {"scores": torch.randn(6, 2), "boxes": torch.randn(4, 4)}
    reading = inferred(None, before, batch).scaled_by(before, batch)
    with pytest.raises(DataError, match=r"'boxes' is of shape \(4, 4\) and, with the change, \(3, 4\)"):
        reading.damage(before, {**before, "boxes": torch.randn(3, 4)}, batch)


def test_max_drop_counts_the_output_that_lost_most():
    net, x = made()
    with torch.no_grad():
        for block in net.blocks[2:]:
            block.b.weight.mul_(20)
    data = [(x, net(x)[1].argmax(1))]
    record = shoal.compress(net, data, shoal.MaxDrop(1.0), config=FAST).record
    assert not {"blocks.2", "blocks.3"} & set(record.removed)
    assert [one.output for one in record.comparison.outputs] == ["[0]", "[1]"]
    assert record.certificate.outputs == ["[0]", "[1]"]
    assert [one.task for one in record.outputs.outputs] == ["classes", "classes"]
    assert any("2 outputs that count" in warning for warning in record.warnings)
    only_early = shoal.compress(
        net, data, shoal.MaxDrop(1.0), config=shoal.CompressConfig.of(FAST, output="[0]")
    ).record
    assert {"blocks.2", "blocks.3"} <= set(only_early.removed)
    assert only_early.certificate.verdict == "different"


def test_a_damage_of_the_user_gets_what_the_networks_return():
    net, x = made()
    with torch.no_grad():
        net.blocks[2].b.weight.zero_()
        net.blocks[2].b.bias.zero_()
    whole, seen = net(x), []

    def own(original, other, batch):
        seen.append((original, other))
        return (original[1] - other[1]).square().mean(1)

    record = shoal.compress(net, [x], shoal.RemoveBlocks(1), config=shoal.CompressConfig.of(FAST, damage=own)).record
    assert record.removed == ["blocks.2"]
    assert torch.equal(seen[0][0][1], whole[1])
    assert "own" in record.outputs.damage
    shoal.compress(
        net,
        [x],
        shoal.RemoveBlocks(1),
        config=shoal.CompressConfig.of(FAST, damage=lambda a, b, batch: (a - b).abs().mean(1), output="[1]"),
    )


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (lambda a, b, batch: (a[0] - b[0]).abs().mean(), r"returned Tensor of shape \(\)"),
        (lambda a, b, batch: 1.0, "returned float"),
        (lambda a, b: 1.0, "raised TypeError"),
        (lambda a, b, batch: a.nose, "raised AttributeError"),
    ],
)
def test_a_damage_that_is_none_is_refused(own, said):
    net, x = made()
    with pytest.raises(UsageError, match=said):
        shoal.compress(net, [x], shoal.RemoveBlocks(1), config=shoal.CompressConfig.of(FAST, damage=own))


def test_labels_that_start_at_one_are_refused_before_anything_is_measured():
    net, x = made(lambda early, late: late)
    with pytest.raises(DataError, match=r"label 3 does not fit .* 3 classes(.|\n)*seem to start at 1"):
        shoal.compress(net, [(x, torch.arange(12) % 3 + 1)], shoal.RemoveBlocks(1), config=FAST)


def test_an_original_no_better_than_chance_is_said():
    net, x = made(lambda early, late: late)
    wrong = (net(x).argmax(1) + 1) % 3
    record = shoal.compress(net, [(x, wrong)], shoal.RemoveBlocks(1), config=FAST).record
    assert any("no better than chance: 0 of 12" in warning for warning in record.warnings)
    assert any("no better than chance" in note for note in shoal.scan(net, [(x, wrong)]).notes)


def test_labels_of_the_test_data_alone_are_used_and_said():
    net, x = made(lambda early, late: late)
    record = shoal.compress(net, [x], shoal.RemoveBlocks(1), test=[(x, net(x).argmax(1))], config=FAST).record
    assert record.original.quality.top1 == 1.0
    assert any("the calibration data has no labels" in warning for warning in record.warnings)


def test_a_scan_of_several_outputs_counts_them_all():
    net, x = made(PACKS["dict"])
    record = shoal.scan(net, [x])
    assert record.metric == "mse"
    assert all(block.ablations["block"].kl > 0 for block in record.blocks)
    only = shoal.scan(net, [x], config=shoal.ScanConfig(output="early"))
    assert [block.ablations["block"].kl > 0 for block in only.blocks] == [True, True, False, False]


def with_prediction(early, late):
    return early, late.argmax(1)


@given(seed=st.integers(0, 2**16))
@settings(max_examples=5, deadline=None)
def test_worths_of_integer_outputs_are_the_share_that_differs(seed):
    net, x = made(with_prediction, seed)
    worths = removal_sweep(analyze(net, Batch((x,))), [x[:5], x[5:]], [f"blocks.{k}" for k in range(4)])
    with torch.no_grad():
        early, predicted = net(x)
        for worth in worths:
            block = net.get_submodule(worth.path)
            kept = without(net, worth.path)
            changed = net(x)
            block.b.weight.copy_(kept[0])
            block.b.bias.copy_(kept[1])
            parts = [relative(early, changed[0]), (predicted != changed[1]).double()]
            assert worth.damage == pytest.approx(float(torch.stack(parts).mean()), rel=1e-4)


@pytest.mark.parametrize(
    "pack",
    [
        with_prediction,
        lambda early, late: (early, late > 0),
        lambda early, late: {"scores": early, "best": late.argmax(1).to(torch.int32)},
        lambda early, late: (early, late.argmax()),
        lambda early, late: late.argmax(1),
        lambda early, late: late > 0,
    ],
)
def test_max_drop_keeps_what_only_an_integer_output_needs(pack):
    net, x = made(pack)
    with torch.no_grad():
        for block in net.blocks[2:]:
            block.b.weight.mul_(20)
    record = shoal.compress(net, [x], shoal.MaxDrop(0), config=FAST).record
    assert not {"blocks.2", "blocks.3"} & set(record.removed)
    assert record.comparison.differing == 0.0
    assert any("share of elements that differ" in warning for warning in record.warnings)
    assert record.outputs.outputs[-1].task == "exact"
    removed = shoal.compress(net, [x], shoal.Blocks(["blocks.2", "blocks.3"]), config=FAST).record
    assert 0 < removed.comparison.differing <= 1
    assert metric_drop(removed.comparison) >= removed.comparison.differing


def test_integer_outputs_leave_top1_and_agreement_as_they_are():
    scores, x = made(lambda early, late: late)
    both, _ = made(lambda early, late: (late, (late > 0)))
    data = [(x, scores(x).argmax(1))]
    alone = shoal.compress(scores, data, shoal.Blocks(["blocks.3"]), config=FAST).record.comparison
    together = shoal.compress(both, data, shoal.Blocks(["blocks.3"]), config=FAST).record.comparison
    names = ("agreement", "agreement_interval", "top1_drop", "top1_drop_interval", "p_value", "lost", "won")
    assert [getattr(alone, name) for name in names] == [getattr(together, name) for name in names]
    assert (alone.differing, together.mse) == (None, None)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_large_integers_and_padding_count_exactly(dtype):
    big = 2**40 if dtype == torch.int64 else 0
    before = torch.tensor([[0, 1, 1], [1, 0, 0]]).to(dtype) + big
    after = before.clone()
    after[0, 2] = before[0, 0]
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    for batch, damage in ((Batch((mask,)), 1 / 3), (Batch((), {"attention_mask": mask}), 0.0)):
        reading = inferred(None, before, batch)
        assert reading.damage(before, after, batch).tolist() == pytest.approx([damage, 0.0])


def test_a_scan_counts_integer_outputs():
    net, x = made(with_prediction)
    record = shoal.scan(net, [x])
    assert record.metric == "damage"
    assert [output.task for output in record.outputs.outputs] == ["values", "exact"]


def test_a_recovery_leaves_integer_outputs_out_and_says_so():
    net, x = made(with_prediction)
    goal, recovery = shoal.RemoveBlocks(1), shoal.RecoveryConfig(3)
    record = shoal.compress(net, [x], goal, validation=[x.clone()], recovery=recovery, config=FAST).record
    assert any("'[1]'" in warning or "[1] is not learned from" in warning for warning in record.warnings)
    assert record.recovery is not None
    only, x = made(lambda early, late: late.argmax(1))
    with pytest.raises(DataError, match="no gradient to learn from"):
        shoal.compress(only, [x], goal, validation=[x.clone()], recovery=recovery, config=FAST)
    optional = shoal.RecoveryConfig(3, required=False)
    record = shoal.compress(only, [x], goal, validation=[x.clone()], recovery=optional, config=FAST).record
    assert any("not recovered: all outputs" in warning for warning in record.warnings)


def test_the_squared_error_of_a_comparison_is_relative_to_the_variance_as_it_was_read():
    net, x = made(lambda early, late: late)
    net.late.weight.data *= 10
    data, changed = [x[:5], x[5:]], copy.deepcopy(net)
    without(changed, "blocks.3")
    reading = reading_of(net, data)
    part = compare(*paired_predictions([net, changed], data, reading=reading), "test")
    with torch.no_grad():
        expected = (net(x) - changed(x)).double().square().mean() / variance(net(x))
    assert part.mse == pytest.approx(float(expected), rel=1e-4)
    assert part.kl == part.mse
