import json

import pytest
import torch
from footing import batches, network, plain

import stopwatch
from shoal.blocks import analyze
from shoal.errors import UsageError
from shoal.pipeline.cache import MeasurementCache
from shoal.pipeline.candidate_table import timed_modules
from shoal.pipeline.costs import CostModel
from shoal.pipeline.latency_backends import LatencyTableFile
from shoal.pipeline.latency_table import latency_table
from shoal.replace import REPLACEMENTS, build_segments


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch):
    stopwatch.install(monkeypatch)


def written(tmp_path, model, **more):
    [data] = batches(4, 3, 8, 8, count=1)
    table = latency_table(model, data, **more)
    (tmp_path / "t.json").write_text(table.to_json())
    return table, tmp_path / "t.json"


def prices(model, clock):
    [data] = batches(4, 3, 8, 8, count=1)
    anatomy = analyze(model, data.take(2))
    line = build_segments(anatomy)
    return CostModel(anatomy, line, data, clock, MeasurementCache(None, {})), timed_modules(
        anatomy, line, tuple(REPLACEMENTS), 5
    )


@pytest.mark.parametrize("make", [network, plain])
def test_what_is_written_on_one_device_prices_plans_on_another(tmp_path, make):
    _, path = written(tmp_path, make())
    here, others = prices(make(), stopwatch.FakeClock(batches(4, 3, 8, 8)[0]))
    here.measure(others)
    there, others = prices(make(), LatencyTableFile(path))
    there.measure(others)
    assert there.whole == here.whole
    for name, price in here.steps.items():
        assert there.steps[name].latency_ms == pytest.approx(price.latency_ms)
    for placed in others.values():
        pair = [one.lookup(placed.module, placed.shape).latency_ms for one in (here, there)]
        assert pair[1] == pytest.approx(pair[0])


def test_it_says_where_and_how_it_was_measured(tmp_path):
    model = network().to(torch.bfloat16)
    data = batches(4, 3, 8, 8)[0]
    table = latency_table(model, type(data)((data.args[0].to(torch.bfloat16),)), channels_last=True)
    document = json.loads(table.to_json())
    assert document["latency_table_version"] == 1
    assert (document["device"], document["batch"], document["dtype"]) == ("cpu", 4, "bfloat16")
    assert (document["threads"], document["channels_last"]) == (torch.get_num_threads(), True)
    assert document["machine"]["torch"] == torch.__version__
    assert all(one["ms"] >= 0 and isinstance(one["what"], str) for one in document["entries"].values())


def test_other_weights_have_the_same_latencies_and_another_network_has_not(tmp_path):
    _, path = written(tmp_path, network())
    other = network()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    same, others = prices(other, LatencyTableFile(path))
    same.measure(others)
    wider, others = prices(plain(), LatencyTableFile(path))
    with pytest.raises(UsageError, match=r"has no entry for \d+ modules.*[\s\S]*another network or other spans"):
        wider.measure(others)


def test_shorter_spans_make_a_smaller_table(tmp_path):
    short, _ = written(tmp_path, plain(), longest=1)
    long, _ = written(tmp_path, plain(), longest=4)
    assert set(short.entries) < set(long.entries)
