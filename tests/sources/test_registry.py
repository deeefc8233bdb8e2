"""Sources of networks and data that other distributions bring."""

import sys
from types import ModuleType

import pytest
import torch
from torch import nn

from shoal.errors import PluginError, SpecError
from shoal.sources import DataSource, ModelSource, data, load_data, load_model, models, registry


@pytest.fixture
def third_party(install_plugins, monkeypatch):
    def build(rest, from_config, fetch):
        if rest == "bad":
            raise RuntimeError("no such size")
        return nn.Linear(int(rest), 3)

    def samples(path, size):
        x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
        pairs = [(row, int(row.sum() > 0)) for row in x]
        return pairs[:14], pairs[14:]

    module = ModuleType("third_party")
    module.NETWORK, module.SAMPLES = ModelSource("lin:WIDTH", build), DataSource("rows", samples)
    module.WRONG = build
    monkeypatch.setitem(sys.modules, "third_party", module)
    install_plugins(
        registry.GROUP,
        ("other", "lin", "third_party:NETWORK"),
        ("other", "rows", "third_party:SAMPLES"),
        ("other", "wrong", "third_party:WRONG"),
    )
    monkeypatch.setattr(models, "MODEL_SOURCES", registry.source_table(models._BUILTIN))
    monkeypatch.setattr(data, "DATA_SOURCES", registry.source_table(data._BUILTIN))


def test_a_plugin_brings_networks_and_data(third_party):
    assert load_model("lin:4").model.in_features == 4
    assert len(load_data("rows").test().part.rows) == 6


def test_a_plugin_is_called_with_a_name_where_it_takes_one(third_party):
    for spec in ("lin", "lin:", "rows:x"):
        with pytest.raises(SpecError, match="unknown MODEL"):
            load_model(spec)
    with pytest.raises(SpecError, match="unknown DATA"):
        load_data("rows:x")
    with pytest.raises(SpecError, match="unknown DATA"):
        load_data("lin:4")


def test_faults_of_a_plugin_name_its_distribution(third_party):
    with pytest.raises(PluginError, match=r"'lin' .* of the distribution 'other' failed: RuntimeError: no such size"):
        load_model("lin:bad")
    with pytest.raises(PluginError, match="expected a ModelSource or a DataSource"):
        load_model("wrong:x")
