"""Tables that distributions extend by entry points."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

import networks
import shoal
from shoal.errors import OutOfMemoryError, PluginError, UsageError
from shoal.plugins import Plugin, PluginTable
from shoal.replace.kinds import REPLACEMENTS, ReplacementType, Solution

GROUP = "shoal.numbers"


@pytest.fixture
def install(install_plugins):
    return lambda *entries: install_plugins(GROUP, *entries)


@pytest.fixture
def module(monkeypatch):
    """An importable module of a third party."""
    made = ModuleType("third_party")
    made.SEVEN, made.WORD = 7, "seven"
    monkeypatch.setitem(sys.modules, "third_party", made)
    return made


def table(**builtin):
    return PluginTable(GROUP, builtin or {"one": 1}, lambda plugin: plugin.expect(int, "a whole number"))


def test_built_in_values_come_first_then_plugins_in_alphabetical_order(install, module):
    install(("b", "zebra", "third_party:SEVEN"), ("a", "ant", "third_party:SEVEN"))
    numbers = table(two=2, one=1)
    assert list(numbers) == ["two", "one", "ant", "zebra"]
    assert (len(numbers), numbers["two"], numbers["zebra"], "ant" in numbers) == (4, 2, 7, True)


def test_a_table_without_plugins_is_what_shoal_ships(install):
    install()
    assert dict(table()) == {"one": 1}
    assert "two" not in table()
    with pytest.raises(KeyError):
        table()["two"]


def test_entry_points_are_looked_up_once_and_imported_only_when_used(install):
    lookups = install(("broken", "seven", "not_installed_anywhere:SEVEN"))
    numbers = table()
    assert lookups == []
    assert (list(numbers), len(numbers), "seven" in numbers, numbers["one"]) == (["one", "seven"], 2, True, 1)
    assert lookups == [GROUP]


def test_a_plugin_is_loaded_once(install, module):
    install(("third", "seven", "third_party:SEVEN"))
    numbers = table()
    assert numbers["seven"] == 7
    module.SEVEN = 8
    assert numbers["seven"] == 7


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("not_installed_anywhere:SEVEN", "ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("third_party:EIGHT", "AttributeError: .*EIGHT"),
        ("third_party:WORD", "is of type str, expected a whole number"),
        ("third_party", "is of type module, expected a whole number"),
        ("no entry point at all", "cannot be loaded"),
    ],
)
def test_an_entry_point_that_cannot_be_used_names_its_distribution(install, module, value, reason):
    install(("third", "seven", value))
    with pytest.raises(PluginError, match=r"'seven' \(shoal.numbers\) of the distribution 'third'") as caught:
        table()["seven"]
    assert caught.match(reason)
    assert "uninstall 'third'" in caught.value.hint


@pytest.mark.parametrize("raised", [ImportError("a shared library is missing"), ValueError("bad"), SystemExit(3)])
def test_whatever_an_import_raises_names_the_distribution(monkeypatch, install, raised):
    class Raising(ModuleType):
        def __getattr__(self, name):
            raise raised

    monkeypatch.setitem(sys.modules, "third_party", Raising("third_party"))
    install(("third", "seven", "third_party:SEVEN"))
    with pytest.raises(PluginError, match=f"distribution 'third' cannot be loaded.*{type(raised).__name__}"):
        table()["seven"]


@pytest.mark.parametrize("look", [list, len, lambda numbers: numbers["one"], lambda numbers: numbers.get("two")])
def test_a_name_of_shoal_itself_is_refused(install, module, look):
    install(("third", "one", "third_party:SEVEN"))
    with pytest.raises(PluginError, match=r"'one' .* of the distribution 'third' has a name that Shoal itself uses"):
        look(table())


def test_two_distributions_with_one_name_are_refused(install, module):
    install(("b", "seven", "third_party:SEVEN"), ("a", "seven", "third_party:SEVEN"))
    with pytest.raises(PluginError, match="distribution 'b' has a name that the distribution 'a' uses"):
        list(table())


def test_one_distribution_with_two_values_of_one_name_is_refused(install, module):
    install(("a", "seven", "third_party:SEVEN"), ("a", "seven", "third_party:WORD"))
    with pytest.raises(PluginError, match="distribution 'a' has a name that the distribution 'a' uses"):
        list(table())


def test_a_distribution_that_is_on_the_path_twice_is_no_clash(install, module):
    install(("a", "seven", "third_party:SEVEN"), ("a", "seven", "third_party:SEVEN"))
    assert dict(table()) == {"one": 1, "seven": 7}


def test_an_entry_point_without_a_distribution_can_be_used(install, module):
    install((None, "seven", "third_party:SEVEN"))
    assert table()["seven"] == 7


def failing(error):
    def function(value):
        """Doc."""
        if value:
            raise error
        return value

    return Plugin(GROUP, "seven", "third", None).guarded(function)


def test_what_a_plugins_function_raises_is_an_error_of_that_plugin():
    with pytest.raises(PluginError, match=r"'seven' .*'third' failed: ZeroDivisionError: by nothing") as caught:
        failing(ZeroDivisionError("by nothing"))(1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert failing(ValueError())(0) == 0
    assert failing(ValueError()).__name__ == "function"


@pytest.mark.parametrize("error", [UsageError("mine"), KeyboardInterrupt()])
def test_errors_of_shoal_and_an_interrupt_pass_through_a_plugin(error):
    with pytest.raises(type(error)):
        failing(error)(1)


def test_memory_that_does_not_suffice_is_called_that():
    with pytest.raises(OutOfMemoryError, match="third"):
        failing(MemoryError())(1)


class Offset(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.offset = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return x + self.offset[:, None, None]


class OffsetFit(ReplacementType):
    """x + b."""

    family = "offset"
    requirement = "a span of images that keeps its shape"
    macs_note = "0"
    source = "a test"

    def supports(self, span):
        return span.keeps_shape and span.layout == "channels_first"

    def build(self, replacement):
        return Offset(replacement.in_channels)

    def solve(self, moments, fit, replacement):
        bias = moments.train.mean_y[moments.columns] - moments.train.mean_x
        return Solution({"offset": bias}, torch.eye(len(bias), dtype=torch.float64), bias, 0.0)


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
def test_a_kind_of_replacement_from_a_distribution_is_planned_saved_and_loaded(
    install_plugins, module, monkeypatch, tmp_path
):
    module.OFFSET = OffsetFit()
    install_plugins("shoal.replacements", ("third", "offset", "third_party:OFFSET"))
    monkeypatch.setattr(REPLACEMENTS, "_entries", None)
    monkeypatch.setattr(REPLACEMENTS, "_loaded", {})
    torch.manual_seed(0)
    net = networks.CifarResNet(1, widths=(4, 8, 16)).eval()
    data = [(torch.randn(32, 3, 8, 8), torch.arange(32) % 10)]
    config = shoal.CompressConfig(stand_ins=("offset",))
    result = shoal.compress(net, data, goal=shoal.Budget(macs=0.9), config=config)
    kinds = [action.stand_in.kind for action in result.plan.actions if action.kind == "replace"]
    assert set(kinds) == {"offset"}
    result.save(tmp_path / "out")
    loaded = shoal.load(tmp_path / "out", model=net)
    assert torch.equal(loaded(data[0][0]), result.model(data[0][0]))
