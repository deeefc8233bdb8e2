"""The way of a network on a GPU: everything stays there, and comes to what a CPU comes to, but for rounding."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import language
import networks
import shoal
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.measure.quality import compare, paired_predictions
from shoal.replace import ReplacementSpec, build_segments, find_spans, fit_all

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch sees"),
]


def images(count=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(
        torch.randn(count, 3, 32, 32, generator=generator), torch.randint(10, (count,), generator=generator)
    )


def loader(seed=0):
    return DataLoader(images(seed=seed), batch_size=16)


def resnet():
    """With one block that is an identity."""
    torch.manual_seed(0)
    model = networks.randomised(networks.CifarResNet(n=2)).eval()
    block = model.layer2[1]
    torch.nn.init.zeros_(block.bn2.weight)
    torch.nn.init.zeros_(block.bn2.bias)
    return model


def texts(seed=0):
    ids = language.tokens(8, seed=seed)
    return [Batch(kwargs={"input_ids": part, "use_cache": False}, target=part) for part in ids.split(4)]


def test_what_is_measured_of_a_language_model_is_what_a_cpu_measures():
    """The vocabulary is so large that positions are thinned out."""
    original, other = (language.llama(layers, vocab_size=2**16) for layers in (3, 2))
    here = compare(*paired_predictions([original, other], texts()), "test")
    there = compare(*paired_predictions([original.cuda(), other.cuda()], texts()), "test")
    assert there.kl == pytest.approx(here.kl, rel=1e-3)
    assert there.n == here.n


def test_an_identity_is_found_and_removed_exactly():
    model = resnet().cuda()
    result = shoal.compress(model, loader(), shoal.ExactOnly(), test=loader(1))
    assert result.record.removed == ["layer2.1"]
    assert next(result.model.parameters()).is_cuda
    inputs = images().tensors[0].cuda()
    with torch.no_grad():
        torch.testing.assert_close(result.model(inputs), model(inputs), rtol=0, atol=0)


def test_a_plan_is_made_and_recovered_there():
    model = resnet().cuda()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = shoal.compress(model, loader(), shoal.Budget(macs=0.7), validation=loader(1), recovery=6)
    assert result.record.recovery.budget == "6 steps"
    assert all(value.is_cuda for value in result.model.state_dict().values())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("grain", ["block", "unit"])
def test_a_language_model_loses_layers_or_units_there(grain):
    depth = 3 if grain == "block" else 6
    budget = shoal.Budget(depth=depth, grain=grain)
    config = shoal.CompressConfig(stand_ins=("folded",))
    result = shoal.compress(language.llama(4).cuda(), texts(), budget, validation=texts(1), config=config)
    assert result.record.reached
    assert next(result.model.parameters()).is_cuda


def test_a_scan_says_what_it_says_on_a_cpu():
    damages = []
    for device in ("cpu", "cuda"):
        report = shoal.scan(resnet().to(device), loader())
        damages.append({block.path: block.ablations["block"].kl for block in report.blocks})
    assert damages[0].keys() == damages[1].keys()
    assert list(damages[1].values()) == pytest.approx(list(damages[0].values()), rel=0.05, abs=1e-4)


def test_replacements_are_fitted_there_as_on_a_cpu():
    fitted = []
    for model in (resnet(), resnet().cuda()):
        device = next(model.parameters()).device
        graph = analyze(model, Batch(args=(images(4).tensors[0].to(device),)))
        data = [Batch(args=(part.to(device),)) for part in images().tensors[0].split(16)]
        span = next(span for span in find_spans(graph, build_segments(graph), 1) if span.paths == ("layer1.1",))
        fitted.append(fit_all(graph, data, [ReplacementSpec(span, kind) for kind in ("linear", "conv3", "scale")]))
    for here, there in zip(*fitted, strict=True):
        assert there.r2_held_out == pytest.approx(here.r2_held_out, rel=1e-3)
        for before, after in zip(here.module.parameters(), there.module.parameters(), strict=True):
            assert after.is_cuda
            torch.testing.assert_close(after.cpu(), before, rtol=1e-3, atol=1e-4)
