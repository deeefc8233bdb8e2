import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.surgery import fold
from shoal.surgery.fold_graph import FoldGraph, as_float64, fits, set_parameter


def pair():
    return networks.randomised(nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)))


def refusal(net, path, shape=(2, 2, 4, 4)):
    x = torch.randn(shape)
    graph = FoldGraph(analyze(net, Batch((x,))))
    result = fold(net, x)
    assert result.folded == []
    assert result.deviation == 0
    return graph.refused[path]


def test_a_layer_called_twice_is_not_plain():
    net = pair()
    assert refusal(nn.Sequential(net[0], net[1], nn.ReLU(), net[0]), "0") == "it is called 2 times"


def test_a_layer_under_two_names_is_not_plain():
    net = pair()
    net.register_module("alias", nn.Sequential(net[1]))
    net.alias.forward = lambda x: x
    assert refusal(net, "1") == "it is registered under more than one name"


def test_a_layer_with_hooks_is_not_plain():
    net = pair()
    net[1].register_forward_hook(lambda module, args, out: None)
    assert "carries hooks" in refusal(net, "1")


def test_tied_weights_are_not_plain():
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 3)).eval()
    net[3].weight = net[0].weight
    assert refusal(net, "0", (2, 3)) == "its weight is shared"


def test_a_weight_that_is_computed_is_not_plain():
    net = pair()
    parametrizations.weight_norm(net[0])
    assert "its weight is made from something else" in refusal(net, "0")


def test_a_batch_norm_without_statistics_is_not_plain():
    net = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2, track_running_stats=False)).eval()
    assert "normalises by the mini-batch also in eval mode" in refusal(net, "1")


def test_a_batch_norm_that_also_activates_is_not_plain():
    class Activating(nn.BatchNorm2d):
        def forward(self, x):
            return torch.relu(super().forward(x))

    net = nn.Sequential(nn.Conv2d(2, 2, 1), Activating(2)).eval()
    assert refusal(net, "1") == "its call does more than a batch norm"


def test_a_convolution_that_also_activates_is_not_plain():
    class Activating(nn.Conv2d):
        def forward(self, x):
            return torch.relu(super().forward(x))

    net = nn.Sequential(Activating(2, 2, 1), nn.BatchNorm2d(2)).eval()
    assert "does not end in a convolution" in refusal(net, "0")


def test_an_image_without_a_batch_axis_has_its_channels_elsewhere():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 4, 1), nn.BatchNorm1d(5)

        def forward(self, x):
            return self.bn(self.conv(x[0]))

    assert refusal(Single().eval(), "conv", (2, 2, 5, 6)) == "it ran on a sample without a batch axis"


def test_who_reads_behind_the_trace_is_not_known():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

        def forward(self, x):
            out = self.conv(x)
            return self.bn(out) + torch.from_numpy(out.detach().numpy() * 2)

    x = torch.randn(2, 2, 4, 4)
    result = fold(networks.randomised(Hidden()), x)
    assert result.folded == []


def test_reading_goes_on_through_what_was_folded():
    net = pair()
    graph = FoldGraph(analyze(net, Batch((torch.randn(2, 2, 4, 4),))))
    convolution, norm = graph.maps[0], graph.norms[0]
    assert graph.producer(norm.source) is convolution
    assert graph.producer(norm.result) is None
    assert graph.sole_consumer(convolution.result) is norm
    graph.replace_with_identity(norm, "1")
    assert graph.producer(norm.result) is convolution
    assert graph.sole_consumer(convolution.result) is None
    assert graph.path(norm) is None
    assert isinstance(net[1], nn.Identity)
    assert graph.describe(norm.result) == "conv2d in '0'"


@pytest.mark.parametrize(
    ("layer", "pads"),
    [
        (nn.Conv2d(2, 2, 3), False),
        (nn.Conv2d(2, 2, 3, padding=(0, 1)), True),
        (nn.Conv2d(2, 2, 3, padding="same"), True),
        (nn.Conv2d(2, 2, 3, padding="valid"), False),
        (nn.Conv2d(2, 2, 1, padding="same"), False),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), True),
        (nn.ConvTranspose2d(2, 2, 3), True),
        (nn.Linear(4, 4), False),
    ],
)
def test_who_pads_is_told(layer, pads):
    graph = FoldGraph(analyze(nn.Sequential(layer), Batch((torch.randn(2, 2, 4, 4),))))
    assert graph.maps[0].pads is pads


def test_numbers_are_computed_wide_and_written_in_the_own_dtype():
    layer = nn.Linear(2, 3, bias=False).half()
    assert as_float64(layer.weight, 0).dtype is torch.float64
    assert torch.equal(as_float64(layer.bias, 3), torch.zeros(3, dtype=torch.float64))
    set_parameter(layer, "bias", torch.ones(3, dtype=torch.float64))
    assert layer.bias.dtype is torch.float16
    assert fits(layer, torch.tensor([6e4]))
    assert not fits(layer, torch.tensor([1.0]), torch.tensor([1e5]))


class BySize(nn.Module):
    """Chooses its batch norm by the size of the image."""

    def __init__(self):
        super().__init__()
        self.conv, self.small, self.large = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return (self.small if x.shape[-1] <= 8 else self.large)(self.conv(x))


class Complex(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.d = (nn.Linear(8, 8, dtype=torch.cfloat) for _ in range(2))

    def forward(self, x):
        return self.d(self.c(x.to(torch.cfloat))).abs()


class Keywords(nn.Module):
    """A convolution whose weight is passed before its input."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.conv.forward = lambda x: nn.functional.conv2d(
            weight=self.conv.weight, bias=self.conv.bias, input=x, padding=1
        )

    def forward(self, x):
        return self.norm(self.conv(x))


@pytest.mark.parametrize(
    ("net", "x", "said"),
    [
        (BySize(), torch.randn(2, 3, 8, 8), "another way for other inputs"),
        (Complex(), torch.randn(2, 8), ""),
    ],
)
def test_what_is_chosen_by_size_and_complex_weights_are_left_alone(net, x, said):
    result = fold(net.eval(), x)
    assert result.folded == []
    assert said in " ".join(result.refused.values())


def test_arguments_are_read_by_name():
    net = networks.randomised(Keywords()).eval()
    x = torch.randn(2, 3, 8, 8)
    result = fold(net, x)
    with torch.no_grad():
        assert torch.allclose(result.model(x), net(x), atol=1e-5)
