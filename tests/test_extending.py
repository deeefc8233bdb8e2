"""The blocks of code in docs/extending.md run, and what they define does what the page says."""

import re
from pathlib import Path

import pytest
import torch

from shoal.batches import Batch
from shoal.plugins import Plugin
from shoal.replace.kinds import REPLACEMENTS, PluginReplacement
from shoal.replace.spans import Span
from shoal.scanning.scores import BlockStatistics
from shoal.sources import DataSource, ModelSource

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture(scope="module")
def page():
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, PAGE.name, "exec"), names)
    return names


def test_sources(page):
    assert isinstance(page["MLP"], ModelSource)
    assert page["MLP"].build("32", False, False)[0].out_features == 32
    assert isinstance(page["BLOBS"], DataSource)
    assert [len(part) for part in page["BLOBS"].open(Path("x"), None)] == [80, 20]


def test_a_score(page):
    score = page["BRANCH_SUM"]
    assert score.function(BlockStatistics()) is None
    assert score.function(BlockStatistics(branch_sum=6.0, branch_count=4)) == 1.5


def test_a_kind_of_replacement(page):
    kind = page["POINTWISE"]
    assert kind.family not in REPLACEMENTS
    plugin = PluginReplacement(Plugin("shoal.replacements", "pointwise", "example", kind))
    assert plugin.kind is kind
    assert set(kind.__class__.__abstractmethods__) == set()
    assert Span is page["Span"]


def test_a_metric(page):
    original, changed = torch.tensor([[2.0, 1.0], [0.0, 3.0]]), torch.tensor([[1.0, 5.0], [0.0, 4.0]])
    assert page["margin_loss"](original, changed, Batch((original,))).tolist() == [1.0, 0.0]


def test_a_task(page):
    [metric] = page["HORIZON"].metrics
    output, labels = torch.tensor([[3.0], [90.0]]), torch.tensor([10.0, 10.0])
    rows = metric.rows(output, page["Reference"]("labels", labels), Batch((output,)))
    assert rows == [1.0, 0.0]
    assert metric.value(rows) == 0.5


def test_the_tables_named_are_there(page):
    for place in re.findall(r"`([\w/]+\.py)` \|", PAGE.read_text(encoding="utf-8")):
        assert (Path(__file__).parents[1] / "src" / "shoal" / place).is_file(), place
