"""Kinds of replacement of other distributions, from the fit to a plan that is built again."""

import sys
from types import ModuleType

import pytest
import torch
from given import data, dissected, mlp, spans
from torch import nn

from shoal.errors import PlanError, PluginError, UsageError
from shoal.plan import Replacement
from shoal.replace import REPLACEMENTS, ReplacementSpec, build_replacement, fit_all
from shoal.replace.kinds import ReplacementType, Solution, replacement_type


class Offset(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return x + self.offset


class OffsetFit(ReplacementType):
    """x + b."""

    family = "offset"
    requirement = "a span that keeps its shape"
    macs_note = "0"
    source = "a test"

    def supports(self, span):
        return span.keeps_shape

    def build(self, replacement):
        return Offset(replacement.in_channels)

    def solve(self, moments, fit, replacement):
        train = moments.train
        bias = train.mean_y[moments.columns] - train.mean_x
        return Solution({"offset": bias}, torch.eye(len(bias), dtype=torch.float64), bias, 0.0)


@pytest.fixture
def install(install_plugins, monkeypatch):
    """A distribution 'third' with this value as the kind 'offset'."""

    def install(value, name="offset"):
        module = ModuleType("third_party")
        module.VALUE = value
        monkeypatch.setitem(sys.modules, "third_party", module)
        install_plugins("shoal.replacements", ("third", name, "third_party:VALUE"))
        monkeypatch.setattr(REPLACEMENTS, "_entries", None)
        monkeypatch.setattr(REPLACEMENTS, "_loaded", {})

    return install


def network():
    return dissected(lambda: mlp(8), 4)


def spec(graph):
    return ReplacementSpec(spans(graph)[1, 2], "offset")


def test_it_is_fitted_as_the_built_in_ones_and_rebuilt_from_a_plan(install):
    install(OffsetFit())
    graph = network()
    [fitted] = fit_all(graph, data(20, 4), [spec(graph)])
    branch = fitted.module[0]
    assert branch.offset.abs().sum() > 0
    again = Replacement.model_validate_json(fitted.stand_in.model_dump_json())
    assert (again, again.kind) == (fitted.stand_in, "offset")
    module = build_replacement(again, torch.zeros(1, dtype=torch.float64))
    module.load_state_dict(fitted.module.state_dict())
    x = torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(module(x), fitted.module(x))


def test_a_plan_with_it_is_refused_where_it_is_not_installed(install, install_plugins, monkeypatch):
    install(OffsetFit())
    replacement = spec(network()).stand_in
    install_plugins("shoal.replacements")
    monkeypatch.setattr(REPLACEMENTS, "_entries", None)
    with pytest.raises(PlanError, match="no installed distribution offers the replacement 'offset'"):
        replacement_type(replacement)
    with pytest.raises(ValueError, match="there is no replacement 'offset': built in are identity, scale"):
        Replacement.model_validate(replacement.model_dump())


def test_a_span_that_it_does_not_support_is_refused_with_what_it_needs(install):
    install(OffsetFit())
    with pytest.raises(UsageError, match=r"'offset' cannot replace .*\n.*needs a span that keeps its shape"):
        ReplacementSpec(spans(network())[0, 1], "offset")


def changed(**methods):
    return type("Changed", (OffsetFit,), methods)()


def fails(*_):
    raise KeyError("lost")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (OffsetFit, "is of type ABCMeta, expected a ReplacementType"),
        (changed(family="other"), "has the family 'other', expected the name of the entry point"),
        (changed(supports=fails), "failed: KeyError: 'lost'"),
        (changed(spec=fails), "failed: KeyError: 'lost'"),
        (changed(spec=lambda *_: None), "describes itself as None"),
        (changed(build=fails), "failed: KeyError: 'lost'"),
        (changed(build=lambda *_: 3), "built int, expected a torch.nn.Module"),
        (changed(build=lambda *_: nn.Identity()), "fitted parameters of these sizes: {'offset': 8}, its module has {}"),
        (changed(solve=fails), "failed: KeyError: 'lost'"),
        (changed(solve=lambda *_: None), "returned NoneType, expected a Solution"),
        (
            changed(solve=lambda *_: Solution({"offset": torch.zeros(8)}, torch.eye(3), torch.zeros(3), 0.0)),
            r"returned a map of shape \(3, 3\), expected \(8, 8\)",
        ),
    ],
)
def test_one_that_fails_names_its_distribution(install, value, message):
    install(value)
    graph = network()
    with pytest.raises(PluginError, match=rf"'offset' \(shoal.replacements\) of the distribution 'third' .*{message}"):
        fit_all(graph, data(20, 4), [spec(graph)])


@pytest.mark.parametrize("name", ["conv3", "identity", "lowrank1/4"])
def test_a_name_of_a_built_in_one_is_refused(install, name):
    install(OffsetFit(), name)
    with pytest.raises(PluginError, match="a name that Shoal itself uses"):
        list(REPLACEMENTS)
