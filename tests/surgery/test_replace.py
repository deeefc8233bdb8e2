import copy

import pytest
import torch
from torch import nn

import networks
import shoal
import stopwatch
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import PlanError, SurgeryError
from shoal.pipeline import Budget, CompressConfig, compress
from shoal.plan import Plan, Replace
from shoal.replace import REPLACEMENTS, PassThrough, build_replacement, build_segments, find_spans
from shoal.surgery import apply, input_specs, signature_of
from shoal.surgery.replace import replace_spans_


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network():
    torch.manual_seed(0)
    return networks.randomised(networks.CifarResNet(2, widths=(4, 8, 16)))


def analyzed():
    return analyze(network(), Batch((randn(2, 3, 8, 8),)))


def replacing(graph, *paths, kind="conv3"):
    [span] = [one for one in find_spans(graph, build_segments(graph), 9) if one.paths == paths]
    return Replace(paths=list(paths), stand_in=REPLACEMENTS[kind].spec(span))


def test_the_stand_in_is_at_the_first_path_and_identities_at_the_others():
    graph = analyzed()
    action = replacing(graph, "layer1.1", "layer2.0", "layer2.1")
    module = build_replacement(action.stand_in, torch.zeros(1))
    kept = graph.model.layer1[0]
    model = replace_spans_(graph, [action], {"layer1.1": module})
    assert model is graph.model
    assert model.layer1[1] is module
    assert [type(one) for one in model.layer2] == [PassThrough, PassThrough]
    assert model.layer1[0] is kept
    x = randn(3, 3, 8, 8, seed=1)
    between = model.layer1[0](torch.relu(model.bn1(model.conv1(x))))
    expected = model.linear(model.layer3(module(between)).mean(dim=(2, 3)))
    assert torch.equal(model(x), expected)


def test_without_a_module_one_is_built():
    graph = analyzed()
    actions = [replacing(graph, "layer1.0"), replacing(graph, "layer2.0", "layer2.1", kind="linear")]
    model = replace_spans_(graph, actions)
    assert model.layer1[0][0].kernel_size == (3, 3)
    assert model.layer2[0][0].kernel_size == (1, 1)
    assert model(randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("paths", "named"),
    [
        (["layer1.0", "layer2.0"], "layer1.0, layer2.0"),
        (["layer1.1", "layer1.0"], "layer1.1, layer1.0"),
        (["layer3.1", "layer4.0"], "layer3.1, layer4.0"),
        (["layer9.0"], "layer9.0"),
        (["conv1"], "conv1"),
        ([], r"\(none\)"),
    ],
)
def test_what_is_no_span_is_refused_before_the_first_change(paths, named):
    graph = analyzed()
    modules = list(graph.model.modules())
    good = replacing(graph, "layer1.0")
    bad = Replace(paths=paths, stand_in=good.stand_in)
    with pytest.raises(SurgeryError, match=f"{named} are no span: they do not follow each other directly"):
        replace_spans_(graph, [good, bad])
    assert list(graph.model.modules()) == modules


def plain():
    """A VGG-like chain: two convolutions, pooling, one more, and a head."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 2),
    ).eval()  # fmt: skip


def test_a_span_of_layers():
    """The norm, the activation and the pooling of a span go with it."""
    graph = analyze(plain(), Batch((randn(2, 3, 8, 8),)))
    action = replacing(graph, "3", "4", "5", "6", "7", "8")
    model = replace_spans_(graph, [action])
    assert model[3][0].stride == (2, 2)
    assert [type(one) for one in model[4:9]] == [PassThrough] * 5
    x = randn(3, 3, 8, 8, seed=1)
    assert torch.equal(model(x), model[11](model[3](model[:3](x)).mean(dim=(2, 3))))


@pytest.mark.parametrize("paths", [["3", "4", "5", "6"], ["3"], ["4", "5"], ["0", "1", "2", "6", "7", "8"], ["99"]])
def test_part_of_a_layer_is_no_span(paths):
    graph = analyze(plain(), Batch((randn(2, 3, 8, 8),)))
    modules = list(graph.model.modules())
    bad = Replace(paths=paths, stand_in=replacing(graph, "3", "4").stand_in)
    with pytest.raises(SurgeryError, match=f"{', '.join(paths)} are no span"):
        replace_spans_(graph, [replacing(graph, "0", "1", "2"), bad])
    assert list(graph.model.modules()) == modules


class Gapped(networks.PreactNet):
    """Does something between its first block and the second."""

    def forward(self, x):
        x = self.blocks[0](self.stem(x)).clamp(max=0.5)
        return self.head(self.blocks[2](self.blocks[1](x)).mean(dim=(2, 3)))


def test_neighbours_in_the_line_that_do_not_follow_each_other_are_no_span():
    graph = analyze(Gapped(4, 3).eval(), Batch((randn(2, 1, 6, 6),)))
    good = replacing(graph, "blocks.1", "blocks.2")
    with pytest.raises(SurgeryError, match=r"blocks\.0, blocks\.1 are no span"):
        replace_spans_(graph, [Replace(paths=["blocks.0", "blocks.1"], stand_in=good.stand_in)])
    assert replace_spans_(graph, [good])(randn(2, 1, 6, 6)).shape == (2, 10)


def test_a_plan_with_stand_ins_is_refused_without_their_weights():
    graph = analyzed()
    plan = Plan(
        inputs=input_specs(Batch((randn(2, 3, 8, 8),))),
        network=signature_of(graph.model, graph.chain),
        actions=[replacing(graph, "layer1.0", "layer1.1")],
    )
    with pytest.raises(PlanError, match="their fitted weights are not in it"):
        apply(network(), plan)
    assert isinstance(apply(network(), plan, weights_follow=True).layer1[1], nn.Identity)


def test_what_compress_made_is_loaded_back_bit_for_bit(tmp_path, monkeypatch):
    stopwatch.install(monkeypatch)
    model = network()
    before = copy.deepcopy(model.state_dict())
    settings = CompressConfig(images=48, validation_images=16, latency_seconds=0.001)
    batches = [randn(16, 3, 8, 8, seed=seed) for seed in range(3)]
    result = compress(model, batches, Budget(latency=0.6), config=settings)
    assert result.plan.replaced
    assert result.record.reached
    result.save(tmp_path)
    x = randn(8, 3, 8, 8, seed=9)
    with torch.no_grad():
        assert torch.equal(shoal.load(tmp_path, network)(x), result.model(x))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
