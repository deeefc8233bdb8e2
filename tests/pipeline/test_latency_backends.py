import json

import pytest
import torch
from footing import batches, network
from torch import nn

import stopwatch
from shoal.errors import SpecError, UsageError
from shoal.pipeline import latency_backends as room
from shoal.pipeline.latency_backends import (
    LatencyFunction,
    LatencyTableFile,
    MeasuredLatency,
    SeveralBatchSizes,
    open_backend,
    parts_of,
)

TABLE = {"device": "a phone", "batch": 4, "whole_ms": 9.0, "entries": {"a": {"ms": 1.5, "what": "x"}, "b": {"ms": 0}}}


def table(tmp_path, **changes):
    path = tmp_path / "phone.json"
    path.write_text(json.dumps({**TABLE, **changes}))
    return path


def function(tmp_path, body, name="milliseconds"):
    (tmp_path / "own.py").write_text(f"def {name}(module, shape):\n    {body}\n")
    return f"{tmp_path}/own.py:{name}"


def batch():
    return batches(4, 3, 8, 8, count=1)[0]


def test_this_machine_times_modules_on_random_inputs_of_its_batch_and_dtype(monkeypatch):
    seen = []

    def latency(models, given, *, channels_last, min_seconds):
        seen.append((given.args[0], channels_last, min_seconds))
        return {name: stopwatch.taking(2.0) for name in models}

    monkeypatch.setattr(room, "latency", latency)
    clock = MeasuredLatency(torch.zeros(1, dtype=torch.bfloat16), batch(), channels_last=True, seconds=0.3)
    assert clock.time_modules({"a": nn.ReLU(), "b": nn.Identity()}, (5, 6, 7)) == {"a": 2.0, "b": 2.0}
    [(made, channels_last, seconds)] = seen
    assert (tuple(made.shape), made.dtype, channels_last, seconds) == ((4, 5, 6, 7), torch.bfloat16, True, 0.3)
    assert (clock.source, clock.measures) == ("measured", True)


def test_whole_networks_are_compared_turn_by_turn(monkeypatch):
    asked = []

    def turns(models, given, *, channels_last, min_seconds):
        asked.append(min_seconds)
        return {"whole": [10.0, 20.0, 11.0], "cut": [5.0, 10.0, 5.5]}  # a busy machine in the second turn

    monkeypatch.setattr(room, "interleaved_latency", turns)
    clock = MeasuredLatency(torch.zeros(1), batch())
    found = clock.time_models({"whole": nn.ReLU(), "cut": nn.ReLU()})
    assert found == pytest.approx({"whole": 11.0, "cut": 5.5})
    clock.time_models({"whole": nn.ReLU(), "cut": nn.ReLU()}, precise=True)
    assert asked[1] > asked[0] > clock.seconds


def test_ratios_of_whole_networks_are_measured_in_pairs(monkeypatch):
    asked = []

    def ratios(models, given, **settings):
        asked.append(settings)
        return {"cut": stopwatch.exactly(0.5)}

    monkeypatch.setattr(room, "latency_ratios", ratios)
    clock = MeasuredLatency(torch.zeros(1), batch(), channels_last=True)
    for effort in ("short", "long", "confirming"):
        found = clock.time_ratios({"whole": nn.ReLU(), "cut": nn.ReLU()}, effort)
        assert found == {"cut": stopwatch.exactly(0.5, batch=4)}
    assert all(one["channels_last"] and one["reference"] == "whole" for one in asked)
    seconds = [one["max_seconds"] for one in asked]
    assert seconds == sorted(set(seconds))
    assert [one["precision"] for one in asked] == [0.02, 0.01, 0.01]


def test_of_several_batch_sizes_the_worst_counts(tmp_path):
    spec = function(tmp_path, "return 1.0 + shape[0] * len(list(module.modules()))")
    large = LatencyFunction(spec, batch())
    clock = SeveralBatchSizes([large, large.at(batch().take(1))])
    models = {"whole": nn.Sequential(nn.ReLU(), nn.ReLU()), "cut": nn.ReLU()}
    assert clock.time_ratios(models) == {"cut": stopwatch.exactly(0.5, batch=1)}  # 2 of 4; 5 of 13 at batch 4
    assert (clock.batch_size, clock.source, clock.measures) == (4, "own.py:milliseconds", True)
    assert clock.time_modules({"a": nn.ReLU()}, (3, 5, 5)) == {"a": 5.0}
    assert clock.time_models({"whole": nn.ReLU()}) == {"whole": 5.0}
    assert [part.batch_size for part in parts_of(clock)] == [4, 1]
    assert parts_of(large) == (large,)


def test_this_machine_really_times():
    clock = MeasuredLatency(torch.zeros(1), batch(), seconds=0.001)
    assert clock.time_modules({"one": nn.Conv2d(3, 4, 3)}, (3, 8, 8))["one"] > 0
    assert set(clock.time_models({"whole": network(1), "cut": network(1)})) == {"whole", "cut"}


def test_a_table_is_read_by_key(tmp_path):
    clock = LatencyTableFile(table(tmp_path))
    assert clock.time_modules({"a": nn.ReLU(), "b": nn.ReLU()}, (1,)) == {"a": 1.5, "b": 0.0}
    assert clock.time_models({"whole": nn.ReLU(), "cut": nn.ReLU()}) == {"whole": 9.0}
    assert clock.time_ratios({"whole": nn.ReLU(), "cut": nn.ReLU()}) == {}
    assert (clock.source, clock.batch_size) == ("phone.json (a phone, batch 4)", 4)
    assert not clock.measures


def test_what_a_table_does_not_hold_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"has no entry for 2 modules, the first is c\n.*`shoal latency`"):
        LatencyTableFile(table(tmp_path)).time_modules({"a": nn.ReLU(), "c": nn.ReLU(), "d": nn.ReLU()}, (1,))


@pytest.mark.parametrize(
    "changes",
    [
        {"entries": None},
        {"entries": {"a": 3}},
        {"entries": {"a": {"ms": "soon"}}},
        {"whole_ms": None},
        {"batch": "many"},
        {"entries": {"a": {"ms": float("nan")}}},
        {"entries": {"a": {"ms": -1}}},
        {"whole_ms": 0},
    ],
)
def test_a_damaged_table_is_refused(tmp_path, changes):
    path = table(tmp_path, **changes)
    with pytest.raises(SpecError, match=r"phone.json' is an invalid latency table.*\n.*shoal latency MODEL DATA"):
        LatencyTableFile(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"entries": {}}'])
def test_a_file_that_is_no_table_is_refused(tmp_path, text):
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(SpecError, match="is an invalid latency table"):
        LatencyTableFile(tmp_path / "t.json")


def test_a_binary_file_and_no_file_are_refused(tmp_path):
    (tmp_path / "t.json").write_bytes(b"\x80\x81\xff")
    with pytest.raises(SpecError, match="is an invalid latency table"):
        LatencyTableFile(tmp_path / "t.json")
    with pytest.raises(SpecError, match=r"cannot read the latencies '.*none.json': No such file"):
        LatencyTableFile(tmp_path / "none.json")


def test_a_function_is_called_with_the_module_and_the_shape_with_its_batch(tmp_path):
    clock = LatencyFunction(
        function(tmp_path, "return shape[0] + shape[-1] / 10 + len(list(module.parameters()))"), batch()
    )
    assert clock.time_modules({"a": nn.ReLU(), "b": nn.Conv2d(3, 3, 1)}, (3, 5, 5)) == {"a": 4.5, "b": 6.5}
    assert clock.time_models({"whole": nn.ReLU()}) == {"whole": pytest.approx(4.8)}
    assert clock.source == "own.py:milliseconds"
    assert clock.measures


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('conv')", r"own.py:milliseconds raised KeyError for ReLU on \(4, 3, 5, 5\): 'conv'"),
        ("return None", r"raised TypeError for ReLU on \(4, 3, 5, 5\)"),
        ("return float('nan')", "returned nan"),
        ("return float('inf')", "returned inf"),
        ("return -0.1", "returned -0.1"),
    ],
)
def test_a_function_that_fails_or_talks_nonsense_is_refused(tmp_path, body, message):
    clock = LatencyFunction(function(tmp_path, body), batch())
    with pytest.raises(SpecError, match=message):
        clock.time_modules({"a": nn.ReLU()}, (3, 5, 5))
    with pytest.raises(SpecError):
        clock.time_models({"whole": nn.ReLU()})


def test_zero_is_a_time_for_a_module_but_not_for_the_whole_network(tmp_path):
    clock = LatencyFunction(function(tmp_path, "return 0"), batch())
    assert clock.time_modules({"a": nn.ReLU()}, (3,)) == {"a": 0.0}
    with pytest.raises(SpecError, match="returned 0 for the whole network"):
        clock.time_models({"whole": nn.ReLU()})


def test_the_option_is_a_file_or_a_function(tmp_path):
    assert isinstance(open_backend(str(table(tmp_path)), batch()), LatencyTableFile)
    assert isinstance(open_backend(function(tmp_path, "return 1"), batch()), LatencyFunction)
    with pytest.raises(SpecError, match="Did you mean 'milliseconds'"):
        open_backend(f"{tmp_path}/own.py:miliseconds", batch())
    with pytest.raises(SpecError, match="cannot read the latencies"):
        open_backend("nowhere", batch())
