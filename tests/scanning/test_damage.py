"""Metrics by name, those of other distributions included."""

from functools import partial

import pytest
import torch

import networks
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.errors import NonFiniteError, PluginError, UsageError
from shoal.measure import inferred
from shoal.scanning import OutputDamage, removal_sweep
from shoal.scanning.damage import METRICS, metric_named


def squares(original, changed, batch):
    return ((original - changed) ** 2).mean(1)


def raising(original, changed, batch):
    raise ZeroDivisionError("no samples")


@pytest.fixture
def install(install_third_party):
    """A distribution 'third' with these values as metrics."""
    return partial(install_third_party, "shoal.metrics", METRICS)


def outputs():
    batch = Batch((torch.randn(5, 3),))
    logits = torch.randn(5, 3)
    return logits, logits + 1, batch


def test_the_default_metric_has_a_name():
    original, changed, batch = outputs()
    reading = inferred(None, original, batch)
    named = OutputDamage.of(reading, "divergence")
    assert named == OutputDamage.of(reading, None) == OutputDamage(reading)
    assert torch.equal(named(original, changed, batch), reading.damage(original, changed, batch))


def test_an_unknown_metric_is_refused_with_near_matches(install):
    install()
    with pytest.raises(UsageError, match="there is no metric 'divergense'") as caught:
        metric_named("divergense")
    assert "'divergence'" in caught.value.hint


def test_a_metric_of_another_distribution_measures_removals(install):
    install(squares=squares)
    net = networks.CifarResNet(1, widths=(4, 8, 16)).eval()
    data = [torch.randn(6, 3, 8, 8)]
    graph = analyze(net, Batch((data[0],)))
    reading = inferred(net, net(data[0]), Batch((data[0],)))
    by_name = removal_sweep(graph, data, ["layer1.0"], damage=OutputDamage.of(reading, "squares"))
    assert by_name == removal_sweep(graph, data, ["layer1.0"], damage=OutputDamage(reading, squares))
    assert by_name[0].damage > 0


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (raising, PluginError, "'metric' .* distribution 'third' failed: ZeroDivisionError: no samples"),
        (lambda *_: torch.zeros(3), UsageError, r"shape \(3,\), expected a tensor of shape \(5,\)"),
        (lambda *_: 1.0, UsageError, "returned float"),
        (lambda *_: torch.full((5,), float("nan")), NonFiniteError, "NaN or Inf"),
    ],
)
def test_a_metric_that_fails_is_refused(install, function, error, message):
    install(metric=function)
    original, changed, batch = outputs()
    damage = OutputDamage.of(inferred(None, original, batch), "metric")
    with pytest.raises(error, match=message):
        damage(original, changed, batch)


def test_an_entry_point_that_is_no_function_is_refused(install):
    install(metric=3)
    with pytest.raises(PluginError, match="'third' is of type int, expected a function"):
        metric_named("metric")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_complex_damage_is_refused(dtype):
    batch = Batch((torch.zeros(3, 2),))
    reading = inferred(None, torch.randn(3, 2), batch)
    damage = OutputDamage.of(reading, lambda original, changed, batch: torch.zeros(3).to(dtype))
    with pytest.raises(UsageError, match=r"returned complex numbers \(complex(.|\n)*by \.abs\(\)"):
        damage(torch.randn(3, 2), torch.randn(3, 2), batch)
