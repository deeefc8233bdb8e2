import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import networks
from shoal.batches import Batch
from shoal.errors import DataError, ModelRaisedError, NonFiniteError, UsageError
from shoal.record import Certificate
from shoal.surgery import certify, remove_blocks


def dead_and_input(*dead):
    torch.manual_seed(0)
    net = networks.randomised(networks.CifarResNet(2, widths=(4, 8, 12)))
    with torch.no_grad():
        for path in dead:
            net.get_submodule(path).bn2.weight.zero_()
            net.get_submodule(path).bn2.bias.zero_()
    return net, torch.randn(4, 3, 8, 8)


def cut_of(net, x, *paths):
    return remove_blocks(net, Batch((x,)), paths)


def changed(net, name, add):
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.get_parameter(name).view(-1)[0].add_(add)
    return other


def test_removing_a_dead_block_is_identical_by_construction():
    net, x = dead_and_input("layer1.1", "layer2.0")
    found = certify(net, cut_of(net, x, "layer1.1", "layer2.0"), [x, x[:1]])
    assert (found.verdict, found.max_abs_diff, found.where, found.bitwise, found.n) == ("identical", 0, None, True, 5)
    assert found.why_not_identical is None
    assert any("'layer2.0' is zero" in one for one in found.premises)
    assert any("eval mode" in one for one in found.premises)
    assert any("[3, 8, 8]" in one for one in found.premises)


def test_removing_a_live_block_is_not():
    net, x = dead_and_input("layer1.1")
    found = certify(net, cut_of(net, x, "layer2.1"), [x])
    assert found.verdict == "different"
    assert found.max_abs_diff > found.tolerance > 0
    assert "first in 'layer2.1'" in found.why_not_identical
    assert found.premises == []


@pytest.mark.parametrize(
    ("name", "identical"),
    [
        ("layer1.1.bn2.weight", False),
        ("layer1.1.bn2.bias", False),
        ("layer1.0.conv1.weight", False),
        ("linear.bias", False),
        ("layer1.1.conv1.weight", True),
        ("layer1.1.conv2.weight", True),
        ("layer1.1.bn1.bias", True),
    ],
)
def test_only_what_lies_in_a_dead_branch_may_change(name, identical):
    net, x = dead_and_input("layer1.1")
    cut = cut_of(net, x, "layer1.1")
    assert (certify(changed(net, name, 0.5), cut, [x]).verdict == "identical") == identical


def test_networks_with_other_names_and_code_are_the_same():
    net, x = dead_and_input()
    other = nn.Sequential()
    other.add_module("stem", nn.Sequential(net.conv1, net.bn1, nn.ReLU(inplace=True)))
    other.add_module("body", nn.Sequential(*net.layer1, *net.layer2, *net.layer3))

    class Head(nn.Module):
        def __init__(self, fc):
            super().__init__()
            self.classify = fc

        def forward(self, x):
            return self.classify(torch.mean(x, dim=(2, 3)))

    other.add_module("head", Head(net.linear))
    found = certify(net, other.eval(), [x])
    assert (found.verdict, found.bitwise) == ("identical", True)


def test_layer_scale_zero_is_identical_bias_alone_is_not():
    class Scaled(nn.Module):
        def __init__(self, gamma):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.gamma = nn.Parameter(torch.full((4,), gamma))

        def forward(self, x):
            return x + self.fc(x) * self.gamma

    class Last(nn.Module):
        def __init__(self, bias):
            super().__init__()
            self.fc = nn.Linear(4, 4, bias=bias)
            nn.init.zeros_(self.fc.weight)

        def forward(self, x):
            return self.fc(torch.tanh(x)) + x

    x = torch.randn(3, 4)
    for block, identical in (
        (Scaled(0.0), True),
        (Scaled(-0.0), True),
        (Scaled(1e-30), False),
        (Last(bias=False), True),
        (Last(bias=True), False),
    ):
        net = nn.Sequential(nn.Linear(4, 4), block, nn.Linear(4, 2)).eval()
        assert (certify(net, cut_of(net, x, "1"), [x]).verdict == "identical") == identical


def test_minus_zero_counts_as_zero():
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        net[2].weight[0, 0] = 0.0
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[2].weight[0, 0] = -0.0
    assert certify(net, other, [torch.randn(3, 4)]).verdict == "identical"


class Scale(nn.Module):
    def __init__(self, fc, factor):
        super().__init__()
        self.fc, self.factor = fc, factor

    def forward(self, x):
        return self.fc(x) * self.factor


@pytest.mark.parametrize(
    ("factor", "tolerance", "verdict"),
    [
        (1 + 1e-6, None, "equal"),
        (1 + 1e-4, None, "different"),
        (1 + 1e-4, 0.1, "equal"),
        (1 + 1e-6, 0.0, "different"),
        (1.0, 0.0, "identical"),
    ],
)
def test_the_tolerance_is_absolute_and_a_share_of_the_largest_output_by_default(factor, tolerance, verdict):
    torch.manual_seed(0)
    fc, x = nn.Linear(4, 3), torch.randn(5, 4)
    found = certify(Scale(fc, 1.0), Scale(fc, factor), [x], tolerance=tolerance)
    assert found.verdict == verdict
    largest = fc(x).detach().abs().max().item()
    assert found.tolerance == (pytest.approx(1e-5 * largest) if tolerance is None else tolerance)
    assert found.max_abs_diff == pytest.approx(largest * (factor - 1), rel=0.2, abs=1e-6)


def test_a_verdict_of_equal_names_the_largest_deviation():
    fc, x = nn.Linear(4, 3), torch.randn(5, 4)

    class Off(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = fc

        def forward(self, x):
            out = self.fc(x)
            return out + torch.zeros_like(out).index_put((torch.tensor([1]), torch.tensor([2])), torch.tensor(0.25))

    found = certify(fc, Off(), [x[:2], x[2:4]], tolerance=1.0)
    assert (found.verdict, found.n, found.bitwise) == ("equal", 4, False)
    assert found.max_abs_diff == pytest.approx(0.25)
    assert found.where.startswith(("sample 1, output 2", "sample 3, output 2"))


def test_a_network_that_decides_by_its_data_is_never_identical():
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if x.sum() > 1e9 else x * 2

    net = Branching()
    found = certify(net, copy.deepcopy(net), [torch.randn(2, 4)])
    assert (found.verdict, found.bitwise) == ("equal", True)
    assert found.why_not_identical.startswith("nothing can be shown by construction: the network decides in Python")


def test_the_same_numbers_without_the_same_computation_are_only_equal():
    fc = nn.Linear(4, 4)
    found = certify(nn.Sequential(fc), nn.Sequential(fc, nn.Hardtanh(-1e9, 1e9)), [torch.randn(2, 4)])
    assert (found.verdict, found.bitwise, found.where) == ("equal", True, None)
    assert "the computations differ" in found.why_not_identical


@pytest.mark.parametrize(
    ("other", "loader", "error", "said"),
    [
        (lambda: nn.Linear(4, 3), [], DataError, "no data to certify on"),
        (lambda: nn.Linear(4, 2), [torch.ones(2, 4)], DataError, r"shape \(2, 3\) and \(2, 2\)"),
        (lambda: nn.Linear(5, 3), [torch.ones(2, 4)], ModelRaisedError, r"shape \(2, 4\)"),
        (lambda: nn.Linear(4, 3), [torch.full((2, 4), float("inf"))], NonFiniteError, "output holds NaN or Inf"),
        (lambda: nn.Linear(4, 3), ["text"], DataError, "a mini-batch is a str"),
    ],
)
def test_what_cannot_be_compared_is_refused(other, loader, error, said):
    with pytest.raises(error, match=said):
        certify(nn.Linear(4, 3), other(), loader)


def test_broken_weights_are_named():
    broken = nn.Sequential(nn.Linear(4, 3))
    nn.init.constant_(broken[0].bias, float("nan"))
    for pair in ((broken, nn.Linear(4, 3)), (nn.Linear(4, 3), broken)):
        with pytest.raises(NonFiniteError, match=r"3 of 3 values of '0\.bias'"):
            certify(*pair, [torch.ones(2, 4)])


@pytest.mark.parametrize("tolerance", [-1.0, float("nan"), float("inf")])
def test_a_tolerance_that_means_nothing_is_refused(tolerance):
    with pytest.raises(UsageError, match=r"expected a (finite )?number"):
        certify(nn.Linear(4, 3), nn.Linear(4, 3), [torch.ones(2, 4)], tolerance=tolerance)


def test_labels_are_not_needed_and_one_pass_is_enough():
    net, x = dead_and_input("layer1.1")
    cut = cut_of(net, x, "layer1.1")
    for loader in ([(x, torch.zeros(4))], iter([x]), (one for one in [x])):
        assert certify(net, cut, loader).verdict == "identical"


class Heads(nn.Module):
    """Returns what `pack` makes of an early and a late answer."""

    def __init__(self, pack=lambda early, late: (early, late)):
        super().__init__()
        self.a, self.b, self.pack = nn.Linear(4, 4), nn.Linear(4, 4), pack

    def forward(self, x):
        early = self.a(x)
        return self.pack(early, early + self.b(early))


@dataclass
class Both:
    early: torch.Tensor
    late: torch.Tensor


PACKS = {
    "tuple": (lambda early, late: (early, late), "[1]"),
    "list in dict": (lambda early, late: {"early": early, "maps": [late]}, "maps[0]"),
    "dataclass": (Both, "late"),
    "index": (lambda early, late: {"early": early, "place": late.argmax(1)}, "place"),
    "number": (lambda early, late: (early, float(late.sum())), None),
}


@pytest.mark.parametrize("name", PACKS)
def test_every_output_counts(name):
    pack, output = PACKS[name]
    net = Heads(pack)
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.b.bias += torch.tensor([0.0, 0.0, 0.0, 9.0])
    x = torch.randn(6, 4)
    assert certify(net, copy.deepcopy(net), [x]).verdict == ("equal" if output is None else "identical")
    if output is None:
        with pytest.raises(DataError, match=r"'\[1\]' is .* of one network and .* of the other"):
            certify(net, other, [x])
        return
    found = certify(net, other, [x])
    assert (found.verdict, found.bitwise) == ("different", False)
    assert f"of '{output}'" in found.where
    assert output in found.outputs
    assert certify(net, other, [x], output=found.outputs[0]).verdict == "equal"
    with pytest.raises(UsageError, match="no output 'nose'"):
        certify(net, other, [x], output="nose")


def test_a_large_output_does_not_hide_what_happens_to_a_small_one():
    net = Heads(lambda early, late: (1e6 * early, late))
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.b.bias += 0.1
    found = certify(net, other, [torch.randn(6, 4)])
    assert found.verdict == "different"
    assert found.max_abs_diff == pytest.approx(0.1, rel=1e-3)
    assert "of '[1]'" in found.where


def test_masked_scores_are_the_same_function():
    mask = torch.tensor([False, True, False, False])
    net = Heads(lambda early, late: late.masked_fill(mask, -torch.inf))
    unmasked = copy.deepcopy(net)
    unmasked.pack = lambda early, late: late
    x = torch.randn(3, 4)
    same = certify(net, copy.deepcopy(net), [x])
    assert (same.bitwise, same.max_abs_diff) == (True, 0)
    found = certify(net, unmasked, [x])
    assert (found.verdict, found.max_abs_diff) == ("different", torch.inf)
    assert Certificate.model_validate_json(found.model_dump_json()) == found


@pytest.mark.parametrize("pack", [lambda early, late: [early, late[:2]], lambda early, late: (early, None)])
def test_other_structures_are_refused_with_the_output(pack):
    with pytest.raises(DataError, match=r"'\[1\]' is"):
        certify(Heads(), Heads(pack), [torch.randn(3, 4)])
