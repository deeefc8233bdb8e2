import copy
import json
import threading

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import networks
import shoal
from flat_options import typed
from shoal.blocks import trace
from shoal.errors import (
    DataError,
    ModelRaisedError,
    NonFiniteError,
    NotReachedError,
    ShoalError,
    UnknownBlockError,
    UsageError,
)
from shoal.pipeline import CompressConfig, RunInfo, block_records, compress
from shoal.record import Record
from shoal.surgery import apply

QUICK = CompressConfig(images=64, validation_images=64, latency_seconds=0.001)


def images(n=16, seed=0):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def preact(depth=4, seed=0):
    torch.manual_seed(seed)
    return networks.randomised(networks.PreactNet(6, depth))


def labelled(model, *seeds):
    """Mini-batches whose labels are what the network says: its accuracy is 1."""
    with torch.no_grad():
        return [(images(seed=seed), model(images(seed=seed)).argmax(1)) for seed in seeds]


def quick(model, calibration, **more):
    return compress(model, calibration, **typed(**{"settings": QUICK, **more}))


def snapshot(model):
    """Everything of a network that somebody could notice."""
    hooks = [
        (name, len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
        for name, module in model.named_modules()
    ]
    return {
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "places": [tensor.data_ptr() for tensor in model.state_dict().values()],
        "modes": [module.training for module in model.modules()],
        "gradients": [(p.requires_grad, p.grad) for p in model.parameters()],
        "hooks": hooks,
        "modules": [(name, id(module), sorted(vars(module))) for name, module in model.named_modules()],
        "random": torch.get_rng_state(),
        "grad": torch.is_grad_enabled(),
    }


def same(before, after):
    assert list(before["state"]) == list(after["state"])
    assert all(torch.equal(before["state"][name], after["state"][name]) for name in before["state"])
    assert torch.equal(before["random"], after["random"])
    for name in ("places", "modes", "gradients", "hooks", "modules", "grad"):
        assert before[name] == after[name], name


@pytest.mark.parametrize("goal", [{"remove": 2}, {"max_drop": 50.0}, {"blocks": ["blocks.1"]}, {}])
def test_the_network_given_is_left_as_it_was(goal):
    model = preact()
    data = labelled(model, 0, 1)
    model.train()
    model.blocks[1].eval()
    model.stem.weight.requires_grad_(False)
    model.head.register_forward_hook(lambda *_args: None)
    before = snapshot(model)
    result = quick(model, data, eval=data, validation=data, **goal)
    same(before, snapshot(model))
    mine = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert not mine & {tensor.data_ptr() for tensor in result.model.state_dict().values()}
    assert not result.model.training


class Fragile(networks.PreactNet):
    """Raises at its n-th forward, counted over all copies."""

    left = 0

    def forward(self, x):
        Fragile.left -= 1
        if Fragile.left < 0:
            raise ArithmeticError("no more today")
        return super().forward(x)


def test_the_network_is_left_as_it_was_when_it_raises_half_way():
    torch.manual_seed(0)
    model = networks.randomised(Fragile(6, 3)).train()
    data = [images(4)]
    before = snapshot(model)
    Fragile.left = 10**6
    quick(model, data, remove=2)
    needed = 10**6 - Fragile.left
    assert needed > 40
    for survived in range(0, 20, 2):
        Fragile.left = survived
        # While Shoal tries the network without each block, a failure means that this block cannot go.
        with pytest.raises(ShoalError, match=r"no more today|no removable block"):
            quick(model, data, remove=2)
        same(before, snapshot(model))
    for survived in (24, 32, 40):  # how often it is called while it is timed depends on the machine
        Fragile.left = survived
        with pytest.raises((ShoalError, ArithmeticError), match="no more today"):
            quick(model, data, remove=2)
        same(before, snapshot(model))
    Fragile.left = 0
    with pytest.raises(ModelRaisedError, match=r"raised ArithmeticError on an input of shape \(2, 1, 8, 8\)"):
        quick(model, data, remove=2)


def test_remove_blocks_exact_and_max_drop():
    model = preact()
    data = labelled(model, 0, 1)
    by_count = quick(model, data, remove=2)
    assert len(by_count.record.removed) == 2
    assert by_count.record.goal == {"remove": 2}
    by_name = quick(model, data, blocks=["blocks.2", "blocks.0"])
    assert by_name.record.removed == ["blocks.0", "blocks.2"]
    assert by_name.plan.removed == ["blocks.0", "blocks.2"]
    with torch.no_grad():
        model.blocks[1].conv2.weight.zero_()
        model.blocks[1].conv2.bias.zero_()
    proved = quick(model, data, exact=True)
    assert proved.record.removed == ["blocks.1"]
    assert proved.record.certificate.verdict == "identical"
    assert proved.record.comparison.agreement == 1
    assert torch.equal(proved.model(images()), model(images()))
    anything = quick(model, data, max_drop=100.0)
    assert len(anything.record.removed) == 4
    assert anything.record.reached


def test_without_a_goal_one_point_may_go():
    model = preact()
    data = labelled(model, 0)
    result = quick(model, data)
    assert result.record.goal == {"max_drop": 1.0}
    assert result.record.removed == quick(model, data, max_drop=1.0).record.removed


def test_two_goals_are_refused_before_anything_runs():
    model = preact()
    for goals in (
        {"remove": 1, "max_drop": 1.0},
        {"exact": True, "remove": 1},
        {"blocks": ["blocks.0"], "exact": True},
    ):
        with pytest.raises(UsageError, match="give exactly one of remove, max_drop, blocks, exact"):
            quick(model, None, **goals)
    with pytest.raises(UsageError, match="remove is 0"):
        quick(model, None, remove=0)


def test_more_than_possible_keeps_what_could_be_reached():
    model = preact(3)
    result = quick(model, [images()], remove=9)
    assert not result.record.reached
    assert result.record.removed == ["blocks.0", "blocks.1", "blocks.2"]
    assert "of the 9 asked for" in result.record.message
    assert result.model(images(2)).shape == (2, 10)


def test_a_drop_that_nothing_keeps_gives_the_original_back():
    torch.manual_seed(0)
    model = networks.NumberedNet()
    with torch.no_grad():
        for block in (model.block1, model.block2, model.block3):
            block.fc2.weight.mul_(20)
    x = torch.randn(64, 4)
    with torch.no_grad():
        data = [(x, model(x).argmax(1))]
    result = quick(model, data, max_drop=0.0)
    assert not result.record.reached
    assert result.record.removed == []
    assert "no block can go within 0 points: the first already costs" in result.record.message
    assert torch.equal(result.model(x), model(x))
    assert result.record.certificate.verdict == "identical"
    assert result.record.original.blocks == result.record.compressed.blocks == 3


def test_exact_without_an_identity():
    with pytest.raises(NotReachedError, match=r"no block is a strict identity; the nearest by .*: blocks\.\d \("):
        quick(preact(), [images()], exact=True)


def test_exact_is_refused_where_the_certificate_does_not_say_identical():
    class Deciding(nn.Module):
        """The same numbers, but it looks at them: nothing can be shown by construction."""

        def __init__(self):
            super().__init__()
            self.net = preact()
            nn.init.zeros_(self.net.blocks[1].conv2.weight)
            nn.init.zeros_(self.net.blocks[1].conv2.bias)

        def forward(self, x):
            return self.net(x) + (1.0 if float(x.abs().max()) > 1e9 else 0.0)

    model = Deciding().eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for fold in (False, True):
        with pytest.raises(
            NotReachedError, match=r"not proved to be the same: the certificate says equal \(nothing can"
        ):
            quick(model, [images()], exact=True, fold=fold)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_include_and_exclude():
    result = quick(preact(), [images()], remove=2, exclude=["blocks.0", "blocks.1"])
    assert result.record.removed == ["blocks.2", "blocks.3"]
    assert result.record.goal == {"remove": 2, "exclude": ["blocks.0", "blocks.1"]}
    assert quick(preact(), [images()], remove=1, include=["blocks.3"]).record.removed == ["blocks.3"]
    with pytest.raises(UnknownBlockError, match="layer4"):
        quick(preact(), [images()], remove=1, include=["layer4*"])


def test_the_plan_rebuilds_the_network():
    model = preact()
    result = quick(model, [images()], remove=2)
    again = apply(model, result.plan)
    assert torch.equal(again.eval()(images()), result.model(images()))


def test_what_the_record_says():
    model = preact()
    data = labelled(model, 0, 1)
    seen = labelled(model, 2, 3, 4)
    come_from = RunInfo(model="net.py:make", data="npz:d.npz", seed=7, command="shoal compress", warnings=["mind"])
    record = quick(model, data, eval=seen, validation=data, remove=2, provenance=come_from).record
    assert (record.model, record.data, record.seed, record.command) == ("net.py:make", "npz:d.npz", 7, "shoal compress")
    assert record.warnings[0] == "mind"
    assert record.comparison.n == record.original.quality.n == record.certificate.n == 48
    assert record.comparison.split == record.original.quality.split == "test"
    assert record.original.quality.top1 == 1
    assert record.comparison.top1_drop == pytest.approx(1 - record.compressed.quality.top1)
    assert record.validation.split == "validation"
    assert record.validation.n == 32
    assert [block.path for block in record.blocks] == [f"blocks.{n}" for n in range(4)]
    assert {block.path for block in record.blocks if block.action == "removed"} == set(record.removed)
    assert all(block.removal_kl >= 0 and block.residual_ratio > 0 for block in record.blocks)
    assert [latency.batch for latency in record.original.latency] == [1, 16]
    assert record.compressed.cost.params < record.original.cost.params
    assert record.compressed.cost.macs < record.original.cost.macs
    assert (record.original.blocks, record.compressed.blocks) == (4, 2)
    assert record.seconds > 0
    assert "the evaluation data" not in " ".join(record.warnings)


@pytest.mark.parametrize("goal", [{"remove": 2}, {"blocks": ["blocks.0"]}])
@pytest.mark.parametrize("n", [1, 16])
def test_a_record_survives_json(goal, n):
    record = quick(preact(), [images(n)], **goal).record
    assert Record.model_validate_json(record.model_dump_json()) == record
    assert Record.model_validate(json.loads(record.model_dump_json())) == record


def test_what_is_missing_is_said():
    model = preact()
    data = labelled(model, 0)
    said = quick(model, data, max_drop=5.0).record.warnings
    assert any("no evaluation data was given" in one for one in said)
    assert any("max_drop was judged on the calibration data" in one for one in said)
    said = quick(model, data, remove=1, eval=data).record.warnings
    assert not any("was given" in one for one in said)
    assert "only 16 samples were evaluated: intervals are wide" in said


def test_unlabelled_data_is_judged_by_the_error_of_the_outputs():
    model = preact()
    for data in ([images(), images(seed=1)], TensorBatches(images(32))):
        record = quick(model, data, eval=data, validation=data, max_drop=30.0).record
        assert record.original.quality.top1 is None
        assert record.comparison.top1_drop is None
        assert record.comparison.n == 32
        for step in record.steps[: len(record.removed)][-1:]:
            assert step.validation.mse <= 0.3
        assert (record.comparison.agreement, record.outputs.outputs[0].task) == (None, "values")
        assert record.reached is bool(record.removed)


class TensorBatches:
    """A loader that yields bare tensors and has no length."""

    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x.split(16))


def test_dicts_of_tensors():
    class Named(networks.PreactNet):
        def forward(self, pixels):
            return {"logits": super().forward(pixels)}

    torch.manual_seed(0)
    model = networks.randomised(Named(6, 3))
    data = [{"pixels": images(), "labels": torch.arange(16) % 10}]
    result = quick(model, data, remove=1)
    assert result.plan.inputs[0].keyword == "pixels"
    assert result.record.original.quality.top1 is not None
    assert result.model(pixels=images(3))["logits"].shape == (3, 10)


def test_loaders_that_shuffle():
    model = preact()
    with torch.no_grad():
        model.blocks[2].conv2.weight.zero_()
        model.blocks[2].conv2.bias.zero_()
    (x, y), *_ = labelled(model, 0)
    loader = DataLoader(TensorDataset(x, y), batch_size=5, shuffle=True)
    torch.manual_seed(0)
    record = quick(model, loader, eval=loader, validation=loader, exact=True).record
    assert record.comparison.agreement == 1
    assert record.comparison.kl == 0
    assert record.certificate.verdict == "identical"
    assert record.original.quality.top1 == record.compressed.quality.top1 == 1
    plain = DataLoader(TensorDataset(x, y), batch_size=5)
    found = quick(model, loader, eval=loader, validation=loader, remove=3).record
    expected = quick(model, plain, eval=plain, validation=plain, remove=3).record
    assert [step.removed for step in found.steps] == [step.removed for step in expected.steps]
    assert found.comparison.kl == pytest.approx(expected.comparison.kl, rel=1e-4)
    assert found.comparison.lost == expected.comparison.lost


def test_loaders_that_can_be_read_only_once():
    model = preact()
    data = labelled(model, 0, 1)
    once = quick(model, iter(data), eval=iter(data), validation=(one for one in data), remove=2).record
    again = quick(model, data, eval=data, validation=data, remove=2).record
    assert once.comparison == again.comparison
    assert once.validation == again.validation
    assert once.certificate == again.certificate


class Counted:
    def __init__(self, data):
        self.data, self.read = data, 0

    def __iter__(self):
        self.read += 1
        return iter(self.data)


def test_test_data_is_not_read_before_the_choice_is_made():
    model = preact()
    data = labelled(model, 0)
    seen = Counted(data)
    stages = []

    def progress(stage, _done, _total):
        stages.append((stage, seen.read))

    quick(model, data, eval=seen, validation=data, remove=2, progress=progress)
    assert stages[0] == ("tracing", 0)
    assert stages[-1] == ("measuring on test", 0)
    assert seen.read > 0


def test_no_more_samples_than_asked_for():
    model = preact()
    settings = CompressConfig(images=20, validation_images=10, latency_seconds=0.001)
    endless = Endless()
    record = quick(model, endless, eval=[images()], validation=endless, remove=2, settings=settings).record
    assert record.steps[0].n == 20
    assert record.validation.n == 10


class Endless:
    def __iter__(self):
        while True:
            yield images(8)


def test_empty_data():
    model = preact()
    with pytest.raises(DataError, match="the calibration data is empty"):
        quick(model, [], remove=1)
    with pytest.raises(DataError, match="the validation data is empty"):
        quick(model, [images()], validation=[], remove=1)
    with pytest.raises(DataError, match="the evaluation data is empty"):
        quick(model, [images()], eval=[], remove=1)
    with pytest.raises(DataError, match="mini-batch without samples"):
        quick(model, [images(0)], remove=1)
    with pytest.raises(DataError, match="a mini-batch is a str"):
        quick(model, ["an image"], remove=1)


def spoiled(value):
    x = images(seed=5)
    x[3, 0, 2, 2] = value
    return x


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "where",
    [
        {"calibration": [spoiled]},
        {"calibration": [images, spoiled]},
        {"calibration": [images], "validation": [spoiled]},
        {"calibration": [images], "eval": [images, spoiled]},
    ],
)
def test_nan_and_inf_are_refused(where, value):
    data = {name: [make(value) if make is spoiled else make() for make in parts] for name, parts in where.items()}
    with pytest.raises(NonFiniteError, match="NaN or Inf"):
        quick(preact(), data.pop("calibration"), remove=1, **data)


def test_nan_in_the_weights_is_refused():
    model = preact()
    with torch.no_grad():
        model.blocks[1].conv1.bias[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"the weights hold NaN or Inf: 1 of 6 values of 'blocks.1.conv1.bias'"):
        quick(model, [images()], remove=1)


def test_a_network_that_cannot_be_copied():
    model = preact()
    model.handle = threading.Lock()  # no copy of it can be made
    with pytest.raises(ShoalError, match="cannot be copied"):
        quick(model, [images()], remove=1)


def test_half_precision():
    model = preact().to(torch.bfloat16)
    result = quick(model, [images().to(torch.bfloat16)], remove=2)
    assert {tensor.dtype for tensor in result.model.parameters()} == {torch.bfloat16}
    assert result.record.original.latency[0].dtype == "bfloat16"


def test_a_class_that_nobody_knows_is_called_by_its_name():
    record = quick(preact(), [images()], remove=1).record
    assert record.model == "PreactNet"
    assert record.data == "given in Python"


@pytest.mark.parametrize("settings", [{"images": 0}, {"validation_images": 0}, {"latency_seconds": 0.0}])
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError, match=f"{next(iter(settings))} is 0"):
        CompressConfig(**settings)


def test_the_chain_as_plain_data():
    records = block_records(trace(networks.SharedNet(), torch.randn(2, 4, 8, 8)))
    assert all(block.action == "kept" and block.removal_kl is None for block in records)
    refused = [block for block in records if not block.removable]
    assert refused
    assert all(block.reason for block in refused)


def test_the_verbs_are_at_the_top():
    assert shoal.compress is compress
    assert copy.copy(QUICK) == QUICK
    assert isinstance(preact(), nn.Module)
