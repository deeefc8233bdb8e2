import copy

import pytest
import torch
import torch.nn.functional as F
from given import VGG, dissected, made, mlp, randn
from torch import nn
from torch.nn.utils import parametrizations

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.replace import build_segments, refit_
from shoal.replace.last_linear import LastLinear, last_linear
from shoal.surgery import remove_blocks


def found(anatomy, path, most=9999):
    return last_linear(anatomy, build_segments(anatomy).segment(path), most)


@pytest.mark.parametrize(
    ("build", "shape", "path", "expected"),
    [
        (lambda: networks.CifarResNet(2, widths=(4, 8, 8)), (3, 8, 8), "layer2.0", ("layer2.0.conv2", "layer2.0.bn2")),
        (lambda: networks.PreactNet(4, 2), (1, 6, 6), "blocks.1", ("blocks.1.conv2", None)),
        (lambda: networks.NumberedNet(8), (5, 4), "block2", ("block2.fc2", None)),
        (lambda: VGG(norm=True), (3, 8, 8), "features.3", ("features.3", "features.4")),
        (VGG, (3, 8, 8), "features.2", ("features.2", None)),
        (lambda: VGG(norm=True), (3, 8, 8), "classifier.3", ("classifier.3", None)),
        (lambda: mlp(norm=True), (4,), "2", ("2", "3")),
        (lambda: mlp(norm=True), (4,), "10", ("10", None)),
    ],
)
def test_the_layer_and_the_norm_behind_it(build, shape, path, expected):
    assert found(dissected(build, *shape), path) == LastLinear(*expected)


class Block(nn.Module):
    """x + branch(x), with a branch of any kind."""

    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return F.relu(x + self.branch(x))


class Standardised(nn.Conv2d):
    """A convolution that computes with other weights than it holds."""

    def forward(self, x):
        return F.conv2d(x, self.weight - self.weight.mean(), self.bias, padding=1)


class Activated(nn.BatchNorm2d):
    """A batch norm with an activation in it."""

    def forward(self, x):
        return F.silu(super().forward(x))


class Squared(nn.Module):
    """Its last layer is read by a norm and once more beside it."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y.mean()


class Twice(nn.Module):
    """Adds its branch to the stream two times."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.conv(x)
        return (x + y) + y


def same(**settings):
    return nn.Conv2d(4, 4, 3, **{"padding": 1, **settings})


def without_bias(norm):
    norm.bias = None  # what bias=False does in a later torch than the lowest
    return norm


CANNOT = {
    "grouped": lambda: same(groups=2),
    "padded otherwise": lambda: same(padding_mode="reflect"),
    "an even kernel": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(4, 4, 2)),
    "an activation behind it": lambda: nn.Sequential(same(), nn.ReLU()),
    "a norm without statistics": lambda: nn.Sequential(same(), nn.BatchNorm2d(4, track_running_stats=False)),
    "a norm without weights": lambda: nn.Sequential(same(), nn.BatchNorm2d(4, affine=False)),
    "a norm without biases": lambda: nn.Sequential(same(), without_bias(nn.BatchNorm2d(4))),
    "another norm": lambda: nn.Sequential(same(), nn.GroupNorm(2, 4)),
    "weights of its own making": lambda: Standardised(4, 4, 3),
    "a parametrisation": lambda: parametrizations.weight_norm(same()),
    "a norm with an activation": lambda: nn.Sequential(same(), Activated(4)),
    "read twice": Squared,
}


@pytest.mark.parametrize("why", CANNOT)
def test_what_cannot_be_set_is_left_alone(why):
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(Block(CANNOT[why]()))).double().eval()
    anatomy = analyze(chain, Batch((randn(2, 3, 8, 8),)))
    assert build_segments(anatomy).paths == ("1.0",)
    assert found(anatomy, "1.0") is None


def test_a_layer_without_a_bias_gets_its_weight_alone():
    anatomy = dissected(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(Block(same(bias=False)))), 3, 8, 8)
    one = found(anatomy, "1.0")
    assert one == LastLinear("1.0.branch", None, biased=False)
    weight = randn(4, 36)
    one.set_fused_(anatomy.model, weight, randn(4))
    assert torch.equal(one.fused_weight(anatomy.model), weight)
    assert anatomy.model[1][0].branch.bias is None


def test_a_branch_that_is_added_twice_is_left_alone():
    anatomy = dissected(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(Twice(), Twice())), 3, 8, 8)
    assert all(found(anatomy, path) is None for path in build_segments(anatomy).paths)


def test_weights_of_two_modules_are_left_alone():
    def tied():
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        net[2].weight = net[0].weight
        return net

    anatomy = dissected(tied, 4)
    assert [found(anatomy, path) for path in ("0", "2", "4")] == [None, None, LastLinear("4", None)]


def test_too_wide_a_layer_is_left_alone():
    anatomy = dissected(lambda: networks.PreactNet(4, 1), 1, 6, 6)
    assert found(anatomy, "blocks.0", 36) is not None
    assert found(anatomy, "blocks.0", 35) is None
    assert found(dissected(mlp, 4), "2", 5) is None


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ([nn.ReLU(), nn.BatchNorm1d(4)], (3,)),
        ([nn.ReLU(), nn.SiLU()], (3,)),
        ([nn.BatchNorm1d(4), nn.ReLU()], (4, 3)),
    ],
)
def test_what_stands_between_a_layer_and_its_sum_counts(layers, shape):
    """An activation before the last one or before the norm; a norm that takes four tokens for channels."""
    anatomy = dissected(lambda: nn.Sequential(nn.Linear(3, 4), *layers, nn.Linear(4, 2)), *shape)
    assert found(anatomy, "0") is None


def computed(anatomy, one, x):
    """What the layer and its norm make of x."""
    y = anatomy.model.get_submodule(one.layer)(x)
    return y if one.norm is None else anatomy.model.get_submodule(one.norm)(y)


PLACES = [
    (lambda: networks.CifarResNet(1, widths=(4, 6, 8)), (3, 8, 8), "layer2.0", (6, 4, 4)),
    (lambda: networks.PreactNet(4, 1), (1, 6, 6), "blocks.0", (4, 6, 6)),
    (lambda: VGG(norm=True), (3, 8, 8), "features.3", (4, 8, 8)),
    (lambda: mlp(norm=True), (4,), "2", (6,)),
]


@pytest.mark.parametrize(("build", "shape", "path", "entering"), PLACES)
def test_what_is_written_is_what_is_computed(build, shape, path, entering):
    """Through a norm too, whose statistics stay."""
    anatomy = dissected(build, *shape)
    one, x = found(anatomy, path), randn(5, *entering, seed=1)
    with torch.no_grad():
        before = computed(anatomy, one, x)
        old = one.fused_weight(anatomy.model)
        constant = computed(anatomy, one, 0 * x)
        bias = constant[0] if constant.dim() == 2 else constant[0, :, 2, 2]
        assert float((old - one.fused_weight(anatomy.model)).abs().max()) == 0
        one.set_fused_(anatomy.model, old, bias)
        torch.testing.assert_close(computed(anatomy, one, x), before, rtol=0, atol=1e-12)
        weight, bias = randn(*old.shape, seed=2), randn(len(old), seed=3)
        one.set_fused_(anatomy.model, weight, bias)
        torch.testing.assert_close(one.fused_weight(anatomy.model), weight, rtol=0, atol=1e-12)
        layer = anatomy.model.get_submodule(one.layer)
        if isinstance(layer, nn.Linear):
            expected = F.linear(x, weight, bias)
        else:
            expected = F.conv2d(x, weight.reshape(layer.weight.shape), bias, layer.stride, layer.padding)
        torch.testing.assert_close(computed(anatomy, one, x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 1e-7])
@pytest.mark.parametrize("off", [1, 3])
def test_channels_that_the_norm_switches_off_are_not_touched(gamma, off):
    anatomy = dissected(lambda: networks.CifarResNet(1, widths=(4, 6, 8)), 3, 8, 8)
    one, model = found(anatomy, "layer1.0"), anatomy.model
    conv, norm = model.layer1[0].conv2, model.layer1[0].bn2
    with torch.no_grad():
        norm.weight[:off] = gamma
        weights, shifts, x = conv.weight.clone(), norm.bias.clone(), randn(3, 4, 8, 8)
        before = computed(anatomy, one, x)
        weight, bias = randn(4, 36, seed=1), randn(4, seed=2)
        one.set_fused_(model, weight, bias)
        after = computed(anatomy, one, x)
    assert torch.isfinite(conv.weight).all()
    if off < 3 or gamma == 0:  # where most are small, small is not switched off
        assert torch.equal(conv.weight[:off], weights[:off])
        assert torch.equal(norm.bias[:off], shifts[:off])
        assert torch.equal(after[:, :off], before[:, :off])
    expected = F.conv2d(x, weight.reshape(4, 4, 3, 3), bias, padding=1)
    torch.testing.assert_close(after[:, off:], expected[:, off:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_stays_half(dtype):
    model = made(lambda: networks.CifarResNet(1, widths=(4, 6, 8))).to(dtype)
    anatomy = analyze(model, Batch((randn(2, 3, 8, 8, dtype=dtype),)))
    one = found(anatomy, "layer1.0")
    weight = randn(4, 36)
    one.set_fused_(model, weight, randn(4, seed=1))
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert one.fused_weight(model).dtype == torch.float64
    torch.testing.assert_close(one.fused_weight(model), weight, rtol=0.01, atol=0.01)


class Scaled(nn.Module):
    """x + what a layer's output becomes by some factors."""

    def __init__(self, layer, scale, norm=None):
        super().__init__()
        self.layer, self.scale, self.norm = layer, scale, norm or nn.Identity()
        self.gamma = nn.Parameter(torch.tensor([0.5, -2.0, 0.25, 1.5]))
        self.alpha = nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        return x + self.scale(self, self.norm(self.layer(F.relu(x))))


SCALES = {
    "a number": (lambda block, out: 0.2 * out, 0.2),
    "a number behind": (lambda block, out: out * 0.2, 0.2),
    "in place": (lambda block, out: out.mul_(0.2), 0.2),
    "a quotient": (lambda block, out: out / 4, 0.25),
    "two factors": (lambda block, out: 0.5 * (block.alpha * out), 0.15),
    "one parameter": (lambda block, out: block.alpha * out, 0.3),
    "each channel": (lambda block, out: torch.mul(out, block.gamma.view(1, -1, 1, 1)), "gamma"),
    "each channel, three axes": (lambda block, out: block.gamma[:, None, None].reshape(4, 1, 1) * out, None),
}


@pytest.mark.parametrize("spelling", SCALES)
@pytest.mark.parametrize("norm", [False, True])
def test_a_factor_behind_the_layer_is_a_part_of_the_map(spelling, norm):
    scale, factor = SCALES[spelling]
    torch.manual_seed(0)
    block = Scaled(nn.Conv2d(4, 4, 3, padding=1), scale, networks.randomised(nn.BatchNorm2d(4)) if norm else None)
    model = nn.Sequential(block, Scaled(nn.Conv2d(4, 4, 1), lambda block, out: out)).double().eval()
    linear = found(analyze(model, Batch((randn(2, 4, 5, 5),))), "0")
    if factor is None:  # indexing with None is no reshape that is followed
        assert linear is None
        return
    assert linear == LastLinear("0.layer", "0.norm" if norm else None)
    assert torch.allclose(
        linear.factor, block.gamma.double() if factor == "gamma" else torch.tensor(factor, dtype=torch.float64)
    )
    weight, bias = linear.fused_weight(model), linear.fused_bias(model)
    x = randn(2, 4, 5, 5)
    with torch.no_grad():
        branch = block(x) - x
        expected = F.conv2d(F.relu(x).double(), weight.reshape(4, 4, 3, 3), bias, padding=1)
        assert torch.allclose(branch.double(), expected, atol=1e-5)
        linear.set_fused_(model, 2 * weight, bias + 1)
        assert torch.allclose((block(x) - x).double(), 2 * expected - bias[:, None, None] + 1, atol=1e-5)


def test_a_factor_for_each_feature_of_tokens_and_one_that_is_switched_off():
    torch.manual_seed(0)
    block = Scaled(nn.Linear(4, 4), lambda block, out: out * block.gamma)
    with torch.no_grad():
        block.gamma[1] = 0
    model = nn.Sequential(block, Scaled(nn.Linear(4, 4), lambda block, out: out)).double().eval()
    linear = found(analyze(model, Batch((randn(2, 5, 4),))), "0")
    kept = block.layer.weight[1].clone()
    linear.set_fused_(model, torch.ones(4, 4).double(), torch.ones(4).double())
    assert torch.equal(block.layer.weight[1], kept)
    assert torch.allclose(linear.fused_weight(model)[[0, 2, 3]], torch.ones(3, 4).double())


class Next(nn.Module):
    """As in ConvNeXt: channels last inside, LayerScale before the channels move or behind."""

    def __init__(self, width, scale, move):
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.linspace(0.2, 1.0, width))
        self.scale, self.move = scale, move

    def forward(self, x):
        out = self.down(F.gelu(self.up(self.depthwise(x).permute(0, 2, 3, 1))))
        if self.scale == "last":
            return x + self.move(self.gamma * out)
        return x + self.move(out).mul(self.gamma.reshape(1, -1, 1, 1))


MOVES = {
    "permute": lambda out: out.permute(0, 3, 1, 2),
    "permute, a tuple": lambda out: torch.permute(out, (0, -1, 1, 2)),
    "movedim": lambda out: out.movedim(-1, 1),
}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("scale", ["first", "last"])
def test_channels_that_move_behind_the_layer(move, scale):
    torch.manual_seed(0)
    model = nn.Sequential(*(Next(4, scale, MOVES[move]) for _ in range(2))).double().eval()
    linear = found(analyze(model, Batch((randn(2, 4, 5, 5),))), "1")
    assert linear == LastLinear("1.down", None, moved=True)
    assert torch.allclose(linear.factor, model[1].gamma.double())


@pytest.mark.parametrize("move", [lambda out: out.permute(0, 3, 2, 1), lambda out: out.transpose(1, 3)])
def test_axes_that_are_exchanged_otherwise_end_the_map(move):
    torch.manual_seed(0)
    model = nn.Sequential(*(Next(4, "last", move) for _ in range(2))).double().eval()
    assert found(analyze(model, Batch((randn(2, 4, 5, 5),))), "1") is None


SCALED_NETWORKS = {
    "residual scaling": lambda: Scaled(nn.Conv2d(4, 4, 3, padding=1), SCALES["a number"][0]),
    "LayerScale": lambda: Scaled(nn.Conv2d(4, 4, 3, padding=1), SCALES["each channel"][0]),
    "ConvNeXt": lambda: Next(4, "first", MOVES["permute"]),
}


@pytest.mark.parametrize("name", SCALED_NETWORKS)
def test_what_a_removed_block_added_is_made_up_for_through_a_factor(name):
    """Batch norms that would take in a lost mean there are none: the maps behind have to."""
    torch.manual_seed(0)
    model = nn.Sequential(*(SCALED_NETWORKS[name]() for _ in range(4))).double().eval()
    with torch.no_grad():
        getattr(model[1], "layer", getattr(model[1], "down", None)).bias.add_(2.0)
    data = [Batch((randn(8, 4, 6, 6, seed=seed),)) for seed in range(3)]
    graph = analyze(copy.deepcopy(model), data[0].take(2))
    cut = remove_blocks(model, data[0].take(2), ["1"]).eval()
    x = randn(16, 4, 6, 6, seed=9)
    with torch.no_grad():
        before = (cut(x) - model(x)).square().mean()
        refit_(graph, cut, [], data, removed=["1"])
        assert (cut(x) - model(x)).square().mean() < 0.1 * before


@pytest.mark.parametrize(
    "scale",
    [
        lambda block, out: out * out.mean(),
        lambda block, out: out * torch.sigmoid(block.alpha),
        lambda block, out: out * torch.linspace(0, 1, 5),
        lambda block, out: out / 2 + 0 * out,
    ],
)
def test_what_is_no_fixed_factor_of_a_channel_ends_the_map(scale):
    torch.manual_seed(0)
    model = nn.Sequential(*(Scaled(nn.Conv2d(4, 4, 3, padding=1), scale) for _ in range(2))).double().eval()
    assert found(analyze(model, Batch((randn(2, 4, 5, 5),))), "0") is None
