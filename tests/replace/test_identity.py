import pytest
import torch
from given import VGG, data, dissected, fitted_on, mlp, randn, spans
from torch import nn

from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import UsageError
from shoal.plan import Replace
from shoal.replace import REPLACEMENTS, ReplacementSpec, fit_all
from shoal.surgery.replace import replace_spans_


def test_only_the_activation_stays():
    anatomy = dissected(lambda: mlp(act=nn.SiLU, norm=True), 4)
    [found] = fit_all(anatomy, data(20, 4), [ReplacementSpec(spans(anatomy)[1, 3], "identity")])
    assert not list(found.module.parameters())
    x = randn(5, 6)
    assert torch.equal(found.module(x), nn.functional.silu(x))


def test_the_chain_runs_on_without_the_layer():
    anatomy = dissected(lambda: VGG(norm=True), 3, 8, 8)
    [found] = fit_all(anatomy, data(20, 3, 8, 8), [ReplacementSpec(spans(anatomy)[1, 2], "identity")])
    x = randn(3, 3, 8, 8, seed=9)
    before = anatomy.model.features[:3](x)
    rest = anatomy.model.features[6:]
    classifier, avgpool = anatomy.model.classifier, anatomy.model.avgpool
    twin = analyze(anatomy.model, Batch((x,)))
    action = Replace(paths=list(found.span.paths), stand_in=found.stand_in)
    model = replace_spans_(twin, [action], {found.span.paths[0]: found.module})
    assert torch.equal(model(x), classifier(avgpool(rest(before)).flatten(1)))
    assert not any(isinstance(one, nn.Conv2d) for one in model.features[3:6])


def test_its_r2_is_that_of_the_input_itself():
    """Of a layer that returns nearly what enters it most is left."""
    anatomy = dissected(lambda: mlp(act=nn.Identity), 4)
    layer = anatomy.model[2]
    with torch.no_grad():
        layer.weight.copy_(torch.eye(6) + 0.05 * layer.weight)
        layer.bias.zero_()
    batches = data(20, 4)
    [found] = fit_all(anatomy, batches, [ReplacementSpec(spans(anatomy)[1, 2], "identity")])
    x = fitted_on([anatomy.model[0](batch.args[0]) for batch in batches]).detach()
    y = layer(x).detach()
    expected = 1 - float((y - x).square().sum() / (y - y.mean(0)).square().sum())
    assert found.r2_fit == pytest.approx(expected, abs=1e-9)
    assert 0.9 < found.r2_fit < 1


@pytest.mark.parametrize("place", [(0, 1), (3, 4)])
def test_a_span_that_changes_the_shape_cannot_go(place):
    span = spans(dissected(VGG, 3, 8, 8))[place]
    with pytest.raises(UsageError, match="needs a span of plain layers that keeps its shape"):
        ReplacementSpec(span, "identity")


def test_it_has_no_shortcut_form():
    anatomy = dissected(mlp, 4)
    with pytest.raises(UsageError, match="would be the input twice"):
        fit_all(anatomy, data(20, 4), [ReplacementSpec(spans(anatomy)[1, 2], "identity", shortcut=True)])


def test_residual_blocks_are_removed_by_name_instead(residual):
    assert all(span.keeps_shape for span in residual.values())
    assert not any(REPLACEMENTS["identity"].supports(span) for span in residual.values())
