import copy

import pytest
import torch
from torch import nn

import networks
import shoal
import stopwatch
from shoal.batches import Batch
from shoal.blocks import dissect
from shoal.errors import PlanError, SurgeryError
from shoal.pipeline import Settings, compress
from shoal.plan import Plan, Replace
from shoal.replace import build, line_of, spans_of
from shoal.replace.stand_ins import describe
from shoal.surgery import apply, input_specs, signature_of
from shoal.surgery.replace import replace_spans_


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network():
    torch.manual_seed(0)
    return networks.randomised(networks.CifarResNet(2, widths=(4, 8, 16)))


def dissected():
    return dissect(network(), Batch((randn(2, 3, 8, 8),)))


def replacing(anatomy, *paths, kind="conv3"):
    [span] = [one for one in spans_of(anatomy, line_of(anatomy), 9) if one.paths == paths]
    return Replace(paths=list(paths), stand_in=describe(span, kind))


def test_the_stand_in_is_at_the_first_path_and_identities_at_the_others():
    anatomy = dissected()
    action = replacing(anatomy, "layer1.1", "layer2.0", "layer2.1")
    module = build(action.stand_in, torch.zeros(1))
    kept = anatomy.model.layer1[0]
    model = replace_spans_(anatomy, [action], {"layer1.1": module})
    assert model is anatomy.model
    assert model.layer1[1] is module
    assert [type(one) for one in model.layer2] == [nn.Identity, nn.Identity]
    assert model.layer1[0] is kept
    x = randn(3, 3, 8, 8, seed=1)
    between = model.layer1[0](torch.relu(model.bn1(model.conv1(x))))
    expected = model.linear(model.layer3(module(between)).mean(dim=(2, 3)))
    assert torch.equal(model(x), expected)


def test_without_a_module_one_is_built():
    anatomy = dissected()
    actions = [replacing(anatomy, "layer1.0"), replacing(anatomy, "layer2.0", "layer2.1", kind="conv1")]
    model = replace_spans_(anatomy, actions)
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
    anatomy = dissected()
    modules = list(anatomy.model.modules())
    good = replacing(anatomy, "layer1.0")
    bad = Replace(paths=paths, stand_in=good.stand_in)
    with pytest.raises(SurgeryError, match=f"the blocks {named} are no span: they do not follow each other directly"):
        replace_spans_(anatomy, [good, bad])
    assert list(anatomy.model.modules()) == modules


def test_a_plan_with_stand_ins_is_refused_without_their_weights():
    anatomy = dissected()
    plan = Plan(
        inputs=input_specs(Batch((randn(2, 3, 8, 8),))),
        network=signature_of(anatomy.model, anatomy.chain),
        actions=[replacing(anatomy, "layer1.0", "layer1.1")],
    )
    with pytest.raises(PlanError, match="their fitted weights are not in it"):
        apply(network(), plan)
    assert isinstance(apply(network(), plan, weights_follow=True).layer1[1], nn.Identity)


def test_what_compress_made_is_loaded_back_bit_for_bit(tmp_path, monkeypatch):
    stopwatch.install(monkeypatch)
    model = network()
    before = copy.deepcopy(model.state_dict())
    settings = Settings(images=48, validation_images=16, latency_seconds=0.001)
    batches = [randn(16, 3, 8, 8, seed=seed) for seed in range(3)]
    result = compress(model, batches, latency=0.6, settings=settings)
    assert result.plan.replaced
    assert result.record.reached
    result.save(tmp_path)
    x = randn(8, 3, 8, 8, seed=9)
    with torch.no_grad():
        assert torch.equal(shoal.load(tmp_path, network)(x), result.model(x))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
