import pytest
import torch
from torch import nn

from networks import CifarResNet, PlainNet, PostNormNet, PreactNet, SharedNet, randomised
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.blocks.prefix_cache import PrefixCache
from shoal.preserve import evaluating
from shoal.scanning.candidates import block_candidates, kernel_layers, layer_candidates
from shoal.scanning.means import branch_means

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def small_cifar():
    torch.manual_seed(0)
    return randomised(CifarResNet(2, widths=(4, 8, 16)))


def outputs(model, x, make):
    anatomy = analyze(model, Batch((x[:2],)))
    with evaluating(model):
        prefix = PrefixCache(anatomy)
        prefix.record(Batch((x,)))
        return {one.key: one.run(prefix) for one in make(anatomy)}


def test_a_zero_kernel_is_the_network_with_that_weight_set_to_zero():
    model = small_cifar()
    found = outputs(model, IMAGES, lambda anatomy: layer_candidates(anatomy, kernel_layers(anatomy)))
    assert len(found) == 1 + 6 * 2 + 1
    for key, output in found.items():
        path = key.removeprefix("kernel:")
        module = model.get_submodule(path)
        kept = module.weight.detach().clone()
        with torch.no_grad():
            module.weight.zero_()
            expected = model(IMAGES)
            module.weight.copy_(kept)
        assert torch.equal(output, expected), key


def test_the_parameter_itself_is_never_written_to():
    model = small_cifar()
    before = {name: (tensor, tensor._version, tensor.clone()) for name, tensor in model.named_parameters()}
    outputs(model, IMAGES, lambda anatomy: layer_candidates(anatomy, kernel_layers(anatomy)))
    for name, parameter in model.named_parameters():
        tensor, version, content = before[name]
        assert parameter is tensor
        assert parameter._version == version
        assert torch.equal(parameter, content)


def test_a_bias_stays_when_the_kernel_goes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    x = torch.randn(2, 4)
    found = outputs(model, x, lambda anatomy: layer_candidates(anatomy, kernel_layers(anatomy)))
    assert torch.equal(found["kernel:1"], model[1].bias.expand(2, 3))


@pytest.mark.filterwarnings("ignore:.*weight_norm")
@pytest.mark.parametrize("normalised", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_a_kernel_that_is_computed_from_others_goes_too_and_comes_back(normalised):
    model = nn.Sequential(nn.Flatten(), normalised(nn.Linear(4, 3))).eval()
    kind, x = type(model[1]), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    before = model(x)
    [layer] = kernel_layers(analyze(model, Batch((x,))))
    assert layer.params == sum(parameter.numel() for parameter in model.parameters()) == 3 + 3 + 12
    found = outputs(model, x, lambda anatomy: layer_candidates(anatomy, kernel_layers(anatomy)))
    assert torch.equal(found["kernel:1"], model[1].bias.expand(2, 3))
    assert type(model[1]) is kind
    assert torch.equal(model(x), before)


def test_layers_know_their_block_and_their_channels():
    anatomy = analyze(small_cifar(), Batch((IMAGES[:2],)))
    layers = {layer.path: layer for layer in kernel_layers(anatomy)}
    assert layers["conv1"].block is None
    assert layers["layer2.0.conv1"].block == "layer2.0"
    assert (layers["layer2.0.conv1"].in_channels, layers["layer2.0.conv1"].out_channels) == (4, 8)
    assert (layers["linear"].in_channels, layers["linear"].out_channels) == (16, 10)


def test_a_plain_network_has_layers_and_no_blocks():
    anatomy = analyze(PlainNet().eval(), Batch((torch.randn(2, 1, 8, 8),)))
    assert [layer.path for layer in kernel_layers(anatomy)] == ["features.0", "features.2", "head"]
    assert block_candidates(anatomy, {}) == []


def test_mean_ablation_adds_the_mean_of_the_branch_over_all_samples():
    model = randomised(PreactNet(width=4, depth=2))
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    anatomy = analyze(model, Batch((x[:2],)))
    means = branch_means(anatomy, [x[:4], x[4:]])
    found = outputs(model, x, lambda anatomy: block_candidates(anatomy, means))
    block, stream = model.blocks[0], model.stem(x)
    with torch.no_grad():
        mean = (block(stream) - stream).double().mean(0, keepdim=True).float()
        after = model.blocks[1](stream + mean)
        expected = model.head(torch.relu(after).mean(dim=(2, 3)))
    torch.testing.assert_close(found["mean:blocks.0"], expected, atol=1e-5, rtol=1e-5)


def test_each_unit_of_a_transformer_block_is_tried_alone():
    torch.manual_seed(0)
    model = PostNormNet().eval()
    x = torch.randn(2, 5, 8)
    found = outputs(model, x, lambda anatomy: block_candidates(anatomy, {}))
    assert {"unit:0:encoder.layers.1", "unit:1:encoder.layers.1", "block:encoder.layers.1"} <= set(found)
    layer = model.encoder.layers[1]
    h = model.encoder.layers[0](x)
    with torch.no_grad():
        attention_gone = layer.norm1(h)
        after = layer.norm2(attention_gone + layer._ff_block(attention_gone))
        expected = model.head(model.encoder.layers[2](after).mean(dim=1))
    torch.testing.assert_close(found["unit:0:encoder.layers.1"], expected, atol=1e-5, rtol=1e-5)


def test_a_shared_block_is_no_candidate():
    anatomy = analyze(SharedNet().eval(), Batch((torch.randn(2, 4, 8, 8),)))
    assert {one.path for one in block_candidates(anatomy, {})} == {"first", "blocks.1", "blocks.3"}


def test_a_raising_network_gets_its_weight_back():
    class Raises(nn.Linear):
        def forward(self, x):
            if not bool(self.weight.any()):
                raise RuntimeError("no kernel")
            return super().forward(x)

    model = nn.Sequential(Raises(4, 4), nn.Linear(4, 2)).eval()
    weight = model[0].weight
    with pytest.raises(Exception, match="no kernel"):
        outputs(model, torch.randn(2, 4), lambda anatomy: layer_candidates(anatomy, kernel_layers(anatomy)))
    assert model[0].weight is weight
