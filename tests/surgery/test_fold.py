import copy
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import PlanError, SurgeryError
from shoal.pipeline import CompressConfig, RemoveBlocks, compress
from shoal.plan import Fold, FoldStep, Plan, Remove, parse_plan
from shoal.sources import load_model
from shoal.store import load, save
from shoal.surgery import apply, certify, fold, fold_, input_specs, remove_blocks, signature_of

QUICK = CompressConfig(images=16, validation_images=16, latency_seconds=0.001)


def images(channels, side, n=4, seed=0):
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


def preact(seed=0, constant=True):
    """Pre-activation blocks behind whose last addition a batch norm stands; one of them adds a constant."""
    torch.manual_seed(seed)
    net = networks.PreactNet(4, 3)
    net.blocks.append(nn.BatchNorm2d(4))
    networks.randomised(net)
    if constant:
        with torch.no_grad():
            net.blocks[1].conv2.weight.zero_()
    return net


def plan_for(net, x, steps, removed=()):
    graph = analyze(net, Batch((x,)))
    return Plan(
        inputs=input_specs(Batch((x,))),
        network=signature_of(net, graph.chain),
        actions=[*(Remove(path=path) for path in removed), Fold(folds=steps)],
    )


def test_every_batch_norm_of_a_residual_network_goes():
    net, x = networks.randomised(networks.CifarResNet(2, widths=(4, 8, 12))), images(3, 8)
    before = copy.deepcopy(net.state_dict())
    result = fold(net, x)
    assert result.folded[:2] == ["bn1 into conv1", "layer1.0.bn1 into layer1.0.conv1"]
    assert len(result.folded) == 13
    assert result.refused == {}
    assert not any("bn" in name for name in result.model.state_dict())
    assert result.model is not net
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert 0 < result.deviation < 1e-5
    double = fold(copy.deepcopy(net).double(), x.double())
    assert double.deviation < 1e-10


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "densenet121"])
def test_networks_of_torchvision(name):
    torch.manual_seed(0)
    net = networks.randomised(getattr(pytest.importorskip("torchvision").models, name)(weights=None)).double()
    x = images(3, 64, n=2).double()
    result = fold(net, x)
    with torch.no_grad():
        assert result.deviation < 1e-10 * float(net(x).abs().max())
    norms = [path for path, one in net.named_modules() if isinstance(one, nn.BatchNorm2d)]
    left = [path for path, one in result.model.named_modules() if isinstance(one, nn.BatchNorm2d)]
    assert set(left) == set(result.refused) & set(norms)
    assert len(left) == (62 if name == "densenet121" else 0)


def test_in_place_means_in_place():
    net, x = preact(), images(1, 6)
    with torch.no_grad():
        expected = net(x)
        result = fold_(analyze(net, Batch((x,))))
        assert result.model is net
        assert result.deviation is None
        assert torch.allclose(net(x), expected, atol=1e-5)
    assert isinstance(net.blocks[1], nn.Identity)


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_gradients_stay(training):
    net, x = preact().train(training), images(1, 6)
    net.blocks[0].conv1.weight.requires_grad_(False)
    folded = fold(net, x).model
    assert {module.training for module in folded.modules()} == {training}
    wanted = {name for name, one in folded.named_parameters() if not one.requires_grad}
    assert wanted == {"blocks.0.conv1.weight", "blocks.0.conv1.bias"}
    assert folded.blocks[2].conv1.weight.is_leaf


def test_a_fold_is_certified_equal_not_identical():
    net = networks.randomised(networks.CifarResNet(1, widths=(4, 8, 12)))
    said = certify(net, fold(net, images(3, 8)).model, [images(3, 8, seed=one) for one in range(3)])
    assert said.verdict == "equal"
    assert not said.bitwise
    assert said.why_not_identical == "the computations differ, first in 'layer1.0'"
    assert said.max_abs_diff <= said.tolerance


def test_nothing_to_fold_is_no_error():
    net = networks.NumberedNet().eval()
    result = fold(net, torch.randn(2, 4))
    assert (result.folded, result.refused, result.deviation) == ([], {}, 0.0)


def test_a_network_that_asks_a_batch_norm_for_more_is_refused():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            return self.bn(self.conv(x)) * self.bn.num_features

    with pytest.raises(SurgeryError, match=r"does not run once it is folded: .*num_features"):
        fold(Asking().eval(), images(1, 4))


def test_a_plan_folds_again_what_was_folded():
    net, x = preact(), images(1, 6)
    cut = remove_blocks(net, Batch((x,)), ["blocks.0"])
    result = fold(cut, x)
    assert [step.kind for step in result.steps] == ["constant", "batch_norm"]
    plan = parse_plan(plan_for(net, x, result.steps, ["blocks.0"]).model_dump_json(), "plan")
    assert plan.removed == ["blocks.0"]
    again = apply(net, plan)
    assert list(again.state_dict()) == list(result.model.state_dict())
    assert torch.equal(again(x), result.model(x))


def test_a_plan_folds_no_more_than_it_says():
    net, x = preact(), images(1, 6)
    step = FoldStep(kind="batch_norm", path="blocks.2.bn2", into=["blocks.2.conv1"])
    folded = apply(net, plan_for(net, x, [step]))
    assert isinstance(folded.blocks[2].bn2, nn.Identity)
    assert isinstance(folded.blocks[0].bn2, nn.BatchNorm2d)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ({"kind": "batch_norm", "path": "blocks.2.bn1", "into": ["stem"]}, "its input comes from add in 'blocks.1'"),
        ({"kind": "batch_norm", "path": "blocks.9", "into": ["stem"]}, "there is no such layer"),
        ({"kind": "batch_norm", "path": "blocks.0.bn2", "into": ["stem"]}, "it would go into blocks.0.conv1"),
        ({"kind": "linear", "path": "head", "into": ["stem"]}, "there is no layer right before it"),
        ({"kind": "constant", "path": "blocks.0", "into": ["blocks.2.bn1"]}, "its branch does not add a constant"),
        ({"kind": "constant", "path": "blocks.1", "into": ["blocks.2.bn1"]}, "other layers read what it adds"),
        ({"kind": "constant", "path": "stem", "into": []}, "there is no such block, or it cannot go"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(step, said):
    net, x = preact(), images(1, 6)
    before = list(net.state_dict())
    with pytest.raises(PlanError, match=f"cannot be done to this network: {said}"):
        apply(net, plan_for(net, x, [FoldStep.model_validate(step)]))
    assert list(net.state_dict()) == before


def test_a_constant_of_other_weights_needs_weights_that_follow():
    net, x = preact(), images(1, 6)
    plan = plan_for(net, x, fold(net, x).steps)
    other = preact(seed=5, constant=False)
    with pytest.raises(PlanError, match="its branch does not add a constant"):
        apply(other, plan)
    shell = apply(other, plan, weights_follow=True)
    shell.load_state_dict(fold(net, x).model.state_dict())
    assert torch.equal(shell(x), fold(net, x).model(x))


def test_a_shift_that_was_zero_needs_weights_that_follow():
    def made(shift):
        net = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()).eval()
        net[0].bias.data.fill_(shift)
        return net

    x = images(2, 5)
    folded = fold(made(0.0), x)
    assert folded.folded == ["0 into 1"]
    plan = plan_for(made(0.0), x, folded.steps)
    with pytest.raises(PlanError, match="borders, where a shift would be missing"):
        apply(made(1.0), plan)
    assert list(apply(made(1.0), plan, weights_follow=True).state_dict()) == list(folded.model.state_dict())


def test_compress_folds_what_is_left(tmp_path):
    torch.manual_seed(0)
    net, x = preact(), images(1, 6, n=8)
    result = compress(net, [x], RemoveBlocks(1, exclude=["blocks.1"]), config=CompressConfig.of(QUICK, fold=True))
    assert [action.kind for action in result.plan.actions] == ["remove", "fold"]
    assert result.record.folded[0].startswith("the constant of blocks.1 into ")
    assert 0 <= result.record.fold_deviation < 1e-5
    assert result.record.message.endswith(f", {len(result.record.folded)} layers folded")
    assert result.record.original.blocks - result.record.compressed.blocks == 2
    actions = {block.path: block.action for block in result.record.blocks}
    assert actions["blocks.1"] == "removed"
    result.save(tmp_path / "out")
    again = load(tmp_path / "out", model=lambda: preact(seed=9, constant=False))
    assert torch.equal(again(x), result.model(x))


def test_compress_folds_only_when_asked():
    result = compress(preact(), [images(1, 6, n=8)], RemoveBlocks(1), config=QUICK)
    assert [action.kind for action in result.plan.actions] == ["remove"]
    assert (result.record.folded, result.record.fold_deviation) == ([], None)


@pytest.mark.slow
def test_a_folded_network_comes_back_in_a_fresh_process(tmp_path):
    net, x = load_model("digits-resnet").model, images(1, 8, n=8)
    cut = remove_blocks(net, Batch((x,)), ["stages.0.1", "stages.1.0"])
    result = fold(cut, x)
    plan = plan_for(net, x, result.steps, ["stages.0.1", "stages.1.0"])
    save(tmp_path, result.model, plan.model_copy(update={"model": "digits-resnet"}))
    torch.save({"x": x, "y": result.model(x).detach()}, tmp_path / "seen.pt")
    code = (
        "import sys, torch, shoal; seen = torch.load(sys.argv[2], weights_only=True);"
        f"torch.set_num_threads({torch.get_num_threads()});"
        "sys.exit(0 if torch.equal(shoal.load(sys.argv[1], trust_code=True)(seen['x']), seen['y']) else 1)"
    )
    command = [sys.executable, "-c", code, str(tmp_path), str(tmp_path / "seen.pt")]
    assert subprocess.run(command, check=False).returncode == 0


def test_a_fold_is_the_last_action_of_a_plan():
    net, x = preact(), images(1, 6)
    plan = plan_for(net, x, fold(net, x).steps)
    assert parse_plan(plan.model_dump_json(), "plan") == plan
    turned = plan.model_dump(mode="json")
    turned["actions"] = [*turned["actions"], {"kind": "remove", "path": "blocks.0"}]
    with pytest.raises(PlanError, match="only the last action may be a fold"):
        parse_plan(json.dumps(turned), "plan")
