import pytest
import torch
import torch.nn.functional as F
from given import VGG, dissected, mlp
from given import randn as doubles
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.replace import build_segments
from shoal.replace.recording import recording


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_inputs_and_sums_of_every_block_in_front_of_the_tail():
    torch.manual_seed(0)
    model = networks.randomised(networks.CifarResNet(1, widths=(4, 8, 16)))
    anatomy = analyze(model, Batch((randn(2, 3, 8, 8),)))
    paths = ["layer1.0", "layer2.0"]
    x = randn(3, 3, 8, 8, seed=1)
    with torch.no_grad(), recording(anatomy, paths) as seen:
        model(x)
        first = F.relu(model.bn1(model.conv1(x)))
        assert torch.equal(seen.inputs["layer1.0"], first)
        second = model.layer1(first)
    assert set(seen.inputs) == set(seen.sums) == set(paths)
    assert torch.equal(seen.inputs["layer2.0"], second)
    assert seen.sums["layer2.0"].min() < 0
    assert torch.equal(F.relu(seen.sums["layer2.0"]), model.layer2(second))


def test_of_two_additions_the_last_counts():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True)
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(layer), nn.Linear(8, 3)).eval()
    anatomy = analyze(model, Batch((randn(2, 5, 8),)))
    assert [len(block.units) for block in anatomy.chain] == [2]
    x = randn(3, 5, 8, seed=1)
    with torch.no_grad(), recording(anatomy, anatomy.chain.paths) as seen:
        model(x)
    [found] = seen.sums.values()
    torch.testing.assert_close(found, layer(model[0](x)).detach(), rtol=1e-5, atol=1e-5)


class Overwriting(nn.Module):
    """Adds its branch into its own input."""

    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x):
        x += self.conv(x)
        return x


def test_an_input_that_is_overwritten_later_is_kept_as_it_came_in():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sequential(Overwriting(4), Overwriting(4)), nn.Flatten()).eval()
    anatomy = analyze(model, Batch((randn(2, 1, 6, 6),)))
    x = randn(3, 1, 6, 6, seed=1)
    with torch.no_grad(), recording(anatomy, ["1.0", "1.1"]) as seen:
        model(x)
        entering = model[0](x)
    assert torch.equal(seen.inputs["1.0"], entering)
    assert torch.equal(seen.sums["1.0"], seen.inputs["1.1"])
    assert not torch.equal(seen.inputs["1.0"], seen.inputs["1.1"])


def _run_and_fail(model):
    model(randn(2, 1, 8, 8))
    raise ValueError("too few channels")


def test_nothing_stays_behind_also_after_an_error():
    model = networks.randomised(networks.PreactNet(4, 2))
    anatomy = analyze(model, Batch((randn(2, 1, 8, 8),)))
    with pytest.raises(ValueError, match="channels"), recording(anatomy, ["blocks.0"]) as seen:
        _run_and_fail(model)
    kept = seen.sums["blocks.0"]
    model(randn(2, 1, 8, 8, seed=1))
    assert seen.sums["blocks.0"] is kept
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


def test_layers_of_a_plain_network_before_their_activation():
    """Also where it works in place, and what the layer returned is gone when the next one runs."""
    anatomy = dissected(lambda: VGG(norm=True), 3, 8, 8)
    model, x = anatomy.model, doubles(3, 3, 8, 8, seed=1)
    paths = ["features.3", "features.6", "classifier.0", "classifier.6"]
    with torch.no_grad(), recording(anatomy, paths) as seen:
        logits = model(x)
        entering = model.features[:3](x)
        sums = model.features[4](model.features[3](entering))
        flat = model.avgpool(model.features(x)).flatten(1)
    assert set(seen.inputs) == set(seen.sums) == set(paths)
    assert torch.equal(seen.inputs["features.3"], entering)
    assert torch.equal(seen.sums["features.3"], sums)
    assert torch.equal(seen.inputs["features.6"], sums.relu())
    assert torch.equal(seen.sums["features.6"], nn.functional.max_pool2d(sums.relu(), 2))
    assert torch.equal(seen.inputs["classifier.0"], flat)
    assert torch.equal(seen.sums["classifier.0"], model.classifier[0](flat))
    assert torch.equal(seen.sums["classifier.6"], logits)
    assert not any(one._forward_hooks or one._forward_pre_hooks for one in model.modules())


@pytest.mark.parametrize("act", [nn.ReLU, nn.SiLU, nn.GELU, nn.Hardswish, nn.Tanh])
def test_layers_of_a_perceptron(act):
    anatomy = dissected(lambda: mlp(act=act), 4)
    x = doubles(5, 4, seed=1)
    with torch.no_grad(), recording(anatomy, ["0", "2"]) as seen:
        anatomy.model(x)
        assert torch.equal(seen.sums["0"], anatomy.model[0](x))
        assert torch.equal(seen.inputs["2"], anatomy.model[:2](x))
        assert torch.equal(seen.sums["2"], anatomy.model[:3](x))


def test_what_a_layer_returned_is_kept_where_the_next_step_works_in_place():
    chain = nn.Sequential(nn.Linear(4, 6), nn.ReLU6(inplace=True), nn.Linear(6, 2)).double().eval()
    anatomy, x = analyze(chain, Batch((doubles(2, 4),))), doubles(5, 4, seed=1)
    with torch.no_grad(), recording(anatomy, ["0"]) as seen:
        chain(x)
        assert torch.equal(seen.sums["0"], chain[0](x))
    assert seen.sums["0"].min() < 0


def test_of_a_norm_behind_the_addition_both_the_sum_and_what_leaves_are_seen():
    torch.manual_seed(0)
    model = networks.PostNormNet().eval()
    anatomy = analyze(model, Batch((randn(2, 5, 8),)))
    path = build_segments(anatomy).paths[-1]
    norm = model.get_submodule(path).norm2
    x = randn(3, 5, 8, seed=1)
    with torch.no_grad(), recording(anatomy, [path]) as seen:
        model(x)
    torch.testing.assert_close(norm(seen.sums[path]), seen.outputs[path])
    assert seen.target(path) is seen.outputs[path]
    plain = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    with torch.no_grad(), recording(analyze(plain, Batch((randn(2, 8),))), ["0"]) as seen:
        plain(randn(3, 8, seed=1))
    assert seen.target("0") is seen.sums["0"]
