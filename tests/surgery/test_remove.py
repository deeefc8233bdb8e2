import copy

import pytest
import torch
from torch import nn

import halves
import networks
from shoal.batches import Batch
from shoal.blocks import analyze, trace
from shoal.errors import PlanError, SurgeryError, UnknownBlockError
from shoal.plan import Plan, Remove, parse_plan
from shoal.surgery import apply, check_removable, input_specs, remove_blocks, remove_blocks_, signature_of

SMALL = {"n": 2, "widths": (4, 8, 12)}


def net_and_input(**kwargs):
    torch.manual_seed(0)
    return networks.randomised(networks.CifarResNet(**{**SMALL, **kwargs})), torch.randn(2, 3, 8, 8)


def plan_for(net, x, paths, **changes):
    given = {
        "inputs": input_specs(Batch((x,))),
        "network": signature_of(net, trace(net, x)),
        "actions": [Remove(path=path) for path in paths],
    }
    return Plan.model_validate(given | changes)


def test_what_belongs_to_the_block_goes_and_nothing_else():
    net, x = net_and_input()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    cut = remove_blocks(net, Batch((x,)), ["layer1.1", "layer2.1"])
    expected = [name for name in before if not name.startswith(("layer1.1.", "layer2.1."))]
    assert list(cut.state_dict()) == expected
    assert all(torch.equal(cut.state_dict()[name], before[name]) for name in expected)
    assert list(net.state_dict()) == list(before)
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in before.items())
    assert not {p.data_ptr() for p in net.parameters()} & {p.data_ptr() for p in cut.parameters()}


def test_a_projection_stays():
    net = pytest.importorskip("torchvision").models.resnet18(weights=None)
    cut = remove_blocks(net, Batch((torch.randn(1, 3, 32, 32),)), ["layer2.0"])
    left = {name.split(".")[2] for name in cut.state_dict() if name.startswith("layer2.0.")}
    assert left == {"downsample_0", "downsample_1"} or left == {"downsample"}
    assert cut(torch.randn(3, 3, 32, 32)).shape == (3, 1000)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_network_stays(training):
    net, x = net_and_input()
    net.train(training)
    cut = remove_blocks(net, Batch((x,)), ["layer1.0", "layer1.1", "layer2.0"])
    assert {module.training for module in cut.modules()} == {training}


def test_in_place_means_in_place():
    net, x = net_and_input()
    graph = analyze(net, Batch((x,)))
    assert remove_blocks_(graph, ["layer3.1"]) is net
    assert "layer3.1.conv1.weight" not in net.state_dict()


@pytest.mark.parametrize(
    ("paths", "error", "said"),
    [
        (["layer1.9"], UnknownBlockError, r"no residual block called 'layer1.9'\n  Did you mean 'layer1"),
        (["layer1"], UnknownBlockError, "no residual block called 'layer1'"),
        (["layer1.1", "layer1.1"], SurgeryError, "the block 'layer1.1' is named twice"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_changes(paths, error, said):
    net, x = net_and_input()
    graph = analyze(net, Batch((x,)))
    before = list(net.state_dict())
    with pytest.raises(error, match=said):
        remove_blocks_(graph, ["layer1.0", *paths])
    assert list(net.state_dict()) == before
    with pytest.raises(error, match=said):
        remove_blocks(net, Batch((x,)), paths)


def test_a_block_that_must_stay_is_refused_with_its_reason():
    net = networks.SharedNet()
    chain = trace(net, torch.randn(2, 4, 5, 5))
    with pytest.raises(SurgeryError, match=r"'blocks\.0' cannot be removed: it is called 2 times"):
        check_removable(chain, ["blocks.1", "blocks.0"])
    check_removable(chain, ["first", "blocks.1", "blocks.3"])
    check_removable(chain, [])


def test_every_block_may_go_at_once():
    net, x = net_and_input()
    cut = remove_blocks(net, Batch((x,)), trace(net, x).paths)
    assert {name.split(".")[0] for name in cut.state_dict()} == {"conv1", "bn1", "linear"}
    assert cut(torch.randn(3, 3, 8, 8)).shape == (3, 10)
    assert [block for block in trace(cut, x) if block.units] == []


def test_a_network_that_does_not_bear_it_is_refused():
    class Counting(networks.NumberedNet):
        def forward(self, x):
            if not hasattr(self.block1, "fc1") and not hasattr(self.block2, "fc1"):
                raise RuntimeError("one of two is needed")
            return super().forward(x)

    with pytest.raises(SurgeryError, match=r"without these blocks: .*one of two is needed"):
        remove_blocks(Counting(), Batch((torch.randn(2, 4),)), ["block1", "block2"])


def test_a_plan_that_went_through_json_does_what_removal_does():
    net, x = net_and_input()
    plan = plan_for(net, x, ["layer1.1", "layer3.0"])
    again = apply(net, parse_plan(plan.model_dump_json(), "plan"))
    expected = remove_blocks(net, Batch((x,)), ["layer1.1", "layer3.0"])
    assert torch.equal(again(x), expected(x))
    assert list(again.state_dict()) == list(expected.state_dict())
    assert "layer1.1.conv1.weight" in net.state_dict()


def test_a_plan_applies_to_other_weights_of_the_same_network_and_repeats():
    net, x = net_and_input()
    plan = plan_for(net, x, ["layer2.1"])
    torch.manual_seed(5)
    other = networks.randomised(networks.CifarResNet(**SMALL), seed=5)
    first, second = apply(other, plan), apply(other, plan, example=x)
    assert torch.equal(first(x), second(x))
    assert not torch.equal(first(x), apply(net, plan)(x))


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (lambda: networks.CifarResNet(3, widths=(4, 8, 12)), "'layer1.2.conv1.weight' is not expected"),
        (lambda: networks.CifarResNet(1, widths=(4, 8, 12)), "'layer1.1.conv1.weight' float32.* is missing"),
        (
            lambda: networks.CifarResNet(2, classes=3, widths=(4, 8, 12)),
            r"'linear.weight' is float32\[3,12\], expected float32\[10,12\]",
        ),
        (lambda: networks.CifarResNet(2, widths=(4, 8, 12)).half().double(), "is float64.*, expected float32"),
        (lambda: nn.Linear(192, 10), "made for another network"),
    ],
)
def test_a_plan_for_another_network_is_refused(other, said):
    net, x = net_and_input()
    with pytest.raises(PlanError, match=said):
        apply(other(), plan_for(net, x, ["layer2.1"]))


def test_a_plan_is_refused_where_only_the_code_differs():
    class Unplugged(networks.CifarBlock):
        def forward(self, x):
            return super().forward(x) if self.changes else torch.relu(self.bn2(self.conv2(self.bn1(self.conv1(x)))))

    net, x = net_and_input()
    other, _ = net_and_input()
    other.layer1[1].__class__ = Unplugged
    with pytest.raises(PlanError, match=r"stands where 'layer1\.1:CifarBlock"):
        apply(other, plan_for(net, x, ["layer2.1"]))


def test_a_plan_may_name_no_wrong_block():
    net, x = net_and_input()
    with pytest.raises(UnknownBlockError, match="no residual block called 'layer9'"):
        apply(net, plan_for(net, x, ["layer9"]))
    with pytest.raises(SurgeryError, match="named twice"):
        apply(net, plan_for(net, x, ["layer1.0", "layer1.0"]))


class Finder(nn.Module):
    """Returns as many rows as it finds."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(networks.PreactBlock(4), networks.PreactBlock(4))

    def forward(self, x):
        found = self.blocks(x).flatten(0, 2)
        return found[found[:, 0] > 0.5]


def test_a_network_may_find_another_number_without_a_block():
    torch.manual_seed(0)
    net, x = Finder().eval(), torch.randn(2, 4, 8, 8)
    cut = remove_blocks(net, Batch((x,)), ["blocks.0"])
    assert cut(x).shape[0] != net(x).shape[0]
    assert cut(x).shape[1:] == net(x).shape[1:]


def cut_halves(*names):
    model = halves.Halves().eval()
    return model, remove_blocks(model, Batch((halves.samples(),)), names)


def test_units_leave_the_network_that_is_written_without_them():
    model, cut = cut_halves("blocks.0#0", "blocks.1#1", "blocks.2#0")
    expected = halves.by_hand(model, ("mixer", "mlp", "mixer"))
    for count in (1, 7):
        x = halves.samples(count, seed=count)
        assert torch.equal(cut(x), expected(x))
    assert set(cut.state_dict()) == set(expected.state_dict())
    assert len(model.state_dict()) > len(cut.state_dict())


def test_what_is_left_after_units_trains_and_copies():
    _, cut = cut_halves("blocks.1#0")
    twin = copy.deepcopy(cut).train()
    twin(halves.samples()).sum().backward()
    assert all(parameter.grad is not None for parameter in twin.parameters())
    again = copy.deepcopy(cut).bfloat16()
    assert again(halves.samples().bfloat16()).dtype == torch.bfloat16


def test_a_plan_with_units_is_replayed():
    model, expected = cut_halves("blocks.0#0", "blocks.2#1", "blocks.1")
    actions = [Remove.named(name) for name in ("blocks.0#0", "blocks.2#1", "blocks.1")]
    batch = Batch((halves.samples(),))
    plan = Plan(inputs=input_specs(batch), network=signature_of(model, analyze(model, batch).chain), actions=actions)
    again = apply(model, parse_plan(plan.model_dump_json(), "plan"))
    assert torch.equal(again(halves.samples(3)), expected(halves.samples(3)))
    assert list(again.state_dict()) == list(expected.state_dict())


def test_both_units_are_the_block():
    _, cut = cut_halves("blocks.1#0", "blocks.1#1")
    _, expected = cut_halves("blocks.1")
    assert torch.equal(cut(halves.samples()), expected(halves.samples()))


@pytest.mark.parametrize(
    ("names", "error", "said"),
    [
        (["blocks.1", "blocks.1#0"], SurgeryError, r"the block 'blocks\.1' is named twice"),
        (["blocks.1#0", "blocks.1#0"], SurgeryError, r"the block 'blocks\.1' is named twice"),
        (["blocks.1", "blocks.1+norms"], SurgeryError, r"the block 'blocks\.1' is named twice"),
        (["blocks.1#5"], UnknownBlockError, "has no unit 5"),
        (["blocks.9#0"], UnknownBlockError, r"no residual block called 'blocks\.9'"),
        (["blocks.1+norms"], SurgeryError, r"the block 'blocks\.1' has no norm behind its additions"),
    ],
)
def test_units_that_cannot_go(names, error, said):
    model = halves.Halves().eval()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=said):
        remove_blocks(model, Batch((halves.samples(),)), names)
    assert list(model.state_dict()) == list(before)


def test_a_block_with_its_norms_and_without_them():
    torch.manual_seed(0)
    net, x = networks.PostNormNet().eval(), torch.randn(3, 5, 8)
    layers = net.encoder.layers
    without_norms = remove_blocks(net, Batch((x,)), ["encoder.layers.1+norms"])
    kept = remove_blocks(net, Batch((x,)), ["encoder.layers.1"])
    with torch.no_grad():
        start = layers[0](x)
        torch.testing.assert_close(without_norms(x), net.head(layers[2](start).mean(1)))
        normed = layers[1].norm2(layers[1].norm1(start))
        torch.testing.assert_close(kept(x), net.head(layers[2](normed).mean(1)))
    assert not any(name.startswith("encoder.layers.1.") for name in without_norms.state_dict())


class Encoder(nn.Module):
    def __init__(self, norm_first=True):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=norm_first)
        self.embed = nn.Linear(8, 16)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=not norm_first)

    def forward(self, x, padding=None):
        return self.encoder(self.embed(x), src_key_padding_mask=padding)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("removed", [[0], [0, 1], [2, 3], [0, 1, 2, 3]])
def test_the_first_layer_of_an_encoder_answers_for_its_weights(masked, removed):
    model = Encoder().eval()
    padding = torch.arange(7).expand(3, 7) > torch.tensor([[6], [3], [4]])
    batch = Batch(kwargs={"x": torch.randn(3, 7, 8), **({"padding": padding} if masked else {})})
    cut = remove_blocks(model, batch, [f"encoder.layers.{number}" for number in removed])
    expected = copy.deepcopy(model)
    if len(removed) == 4:
        expected.encoder = nn.Identity()
        assert torch.equal(cut(**batch.kwargs), expected.embed(batch.kwargs["x"]))
    else:
        kept = [layer for number, layer in enumerate(expected.encoder.layers) if number not in removed]
        expected.encoder.layers = nn.ModuleList(kept)
        with torch.no_grad():
            assert torch.equal(cut(**batch.kwargs), expected(**batch.kwargs))
    assert not any(name.startswith(f"encoder.layers.{removed[0]}.") for name in cut.state_dict())
    assert sum(tensor.numel() for tensor in cut.parameters()) < sum(tensor.numel() for tensor in model.parameters())


def test_what_a_container_asks_of_its_first_layer_is_the_reason():
    batch = Batch((torch.randn(3, 7, 8),))
    with pytest.raises(SurgeryError, match=r"no attribute 'self_attn', which the code that calls .* remove another"):
        remove_blocks(Encoder(norm_first=False).eval(), batch, ["encoder.layers.0"])
