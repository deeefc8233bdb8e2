import json

import pytest
import torch
from footing import batches, maker

from shoal.errors import FolderError
from shoal.pipeline.cache import MeasurementCache
from shoal.replace import ReplacementSpec, find_spans, fit_all

CLAIM = {"network": "abc", "stand_ins": ("linear", "conv3"), "longest": 2}


def fitted(kinds=("linear", "conv3"), longest=1):
    one = maker()
    wanted = [
        ReplacementSpec(span, kind) for span in find_spans(one.graph, one.costs.segments, longest) for kind in kinds
    ]
    return wanted, fit_all(one.graph, batches(12, 3, 8, 8), wanted), torch.zeros(1)


def names(made):
    return [f"{one.kind} {one.span.name}" for one in made]


def test_prices_of_each_clock_are_kept_apart_and_found_again(tmp_path):
    shelf = MeasurementCache(tmp_path / "t", CLAIM)
    shelf.add_latencies("measured", {"a": 0.1, "b": 1 / 3})
    shelf.add_latencies("phone", {"a": 7.0})
    shelf.add_latencies("measured", {"c": 2.0})
    again = MeasurementCache(tmp_path / "t", CLAIM)
    assert again.latencies("measured") == shelf.latencies("measured") == {"a": 0.1, "b": 1 / 3, "c": 2.0}
    assert again.latencies("phone") == {"a": 7.0}
    assert again.latencies("other") == {}


def test_damages_come_back_to_the_last_bit(tmp_path):
    shelf = MeasurementCache(tmp_path / "t", CLAIM)
    values = torch.rand(5).tolist()
    shelf.add_damages(0, {"remove a": values})
    shelf.add_damages(1, {"remove a": [0.5], "linear b": [1e-30]})
    found = MeasurementCache(tmp_path / "t", CLAIM).damages()
    assert found == {"remove a": {0: values, 1: [0.5]}, "linear b": {1: [1e-30]}}


def test_stand_ins_come_back_bitwise(tmp_path):
    wanted, made, like = fitted()
    MeasurementCache(tmp_path / "t", CLAIM).add_fitted(made[:3], names(made[:3]))
    MeasurementCache(tmp_path / "t", CLAIM).add_fitted(made[3:], names(made[3:]))
    found = {f"{one.kind} {one.span.name}": one for one in MeasurementCache(tmp_path / "t", CLAIM).fitted(wanted, like)}
    assert set(found) == {one.name for one in wanted}
    for one in made:
        other = found[f"{one.kind} {one.span.name}"]
        assert (other.span, other.kind, other.stand_in) == (one.span, one.kind, one.stand_in)
        assert (other.ridge, other.r2_fit, other.r2_held_out) == (one.ridge, one.r2_fit, one.r2_held_out)
        torch.testing.assert_close(other.module.state_dict(), one.module.state_dict(), rtol=0, atol=0)
        assert not other.module.training


def test_only_what_is_wanted_comes_back(tmp_path):
    wanted, made, like = fitted()
    shelf = MeasurementCache(tmp_path / "t", CLAIM)
    shelf.add_fitted(made, names(made))
    assert [one.kind for one in shelf.fitted(wanted[:1], like)] == [wanted[0].kind]
    assert shelf.fitted([], like) == []


def test_without_a_folder_it_lives_in_memory():
    wanted, made, like = fitted(kinds=("linear",))
    shelf = MeasurementCache(None, CLAIM)
    shelf.add_latencies("measured", {"a": 0.1})
    shelf.add_damages(0, {"x": [1.0]})
    shelf.add_fitted(made, names(made))
    assert shelf.latencies("measured") == {"a": 0.1}
    assert shelf.damages() == {"x": {0: [1.0]}}
    assert shelf.fitted(wanted, like) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "xyz"}, "network was 'abc', now 'xyz'"),
        ({"stand_ins": ("linear",)}, r"stand_ins was \['linear', 'conv3'\], now \['linear'\]"),
        ({"seed": 3}, "seed was None, now 3"),
    ],
)
def test_tables_of_something_else_are_refused(tmp_path, changes, words):
    MeasurementCache(tmp_path / "t", CLAIM)
    with pytest.raises(FolderError, match=f"were made for something else: {words}"):
        MeasurementCache(tmp_path / "t", {**CLAIM, **changes})
    MeasurementCache(tmp_path / "t", CLAIM)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_claim_that_cannot_be_read_is_refused(tmp_path, text):
    MeasurementCache(tmp_path / "t", CLAIM)
    (tmp_path / "t" / "tables.json").write_text(text)
    with pytest.raises(FolderError, match=r"cannot use '.*' for the tables"):
        MeasurementCache(tmp_path / "t", CLAIM)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FolderError, match=r"for the tables.*\n.*another folder"):
        MeasurementCache(tmp_path / "file", CLAIM)
    assert (tmp_path / "file").read_text() == "mine"


def test_half_a_line_is_measured_again_and_the_rest_is_not(tmp_path):
    shelf = MeasurementCache(tmp_path / "t", CLAIM)
    shelf.add_damages(0, {"x": [1.0]})
    shelf.add_damages(1, {"x": [2.0]})
    path = tmp_path / "t" / "tables.jsonl"
    path.write_text(path.read_text()[:-9])
    again = MeasurementCache(tmp_path / "t", CLAIM)
    assert again.damages() == {"x": {0: [1.0]}}
    again.add_damages(1, {"x": [3.0]})
    assert MeasurementCache(tmp_path / "t", CLAIM).damages() == {"x": {0: [1.0], 1: [3.0]}}


def test_weights_without_their_line_are_overwritten(tmp_path):
    """A crash between the two: the line says that the weights are whole, so weights without one count for nothing."""
    wanted, made, like = fitted(kinds=("linear",))
    shelf = MeasurementCache(tmp_path / "t", CLAIM)
    (tmp_path / "t" / "stand-ins-0.safetensors").write_bytes(b"half")
    assert shelf.fitted(wanted, like) == []
    shelf.add_fitted(made, names(made))
    assert len(MeasurementCache(tmp_path / "t", CLAIM).fitted(wanted, like)) == len(made)


def _missing(path):
    path.unlink()


def _cut_short(path):
    path.write_bytes(path.read_bytes()[:-10])


def _rubbish(path):
    path.write_bytes(b"rubbish")


def _of_others(path):
    other = path.with_name("stand-ins-1.safetensors")
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize("damage", [_missing, _cut_short, _rubbish, _of_others])
def test_damaged_weights_are_refused_with_words(tmp_path, damage):
    wanted, made, like = fitted()
    shelf = MeasurementCache(tmp_path / "t", CLAIM)
    shelf.add_fitted(made[:3], names(made[:3]))
    shelf.add_fitted(made[3:], names(made[3:]))
    damage(tmp_path / "t" / "stand-ins-0.safetensors")
    with pytest.raises(FolderError, match=r"cannot read '.*stand-ins-0.safetensors'.*\n?[\s\S]*made again"):
        MeasurementCache(tmp_path / "t", CLAIM).fitted(wanted, like)


def test_nothing_is_pickled_and_all_is_readable(tmp_path):
    wanted, made, _ = fitted(kinds=("linear",))
    shelf = MeasurementCache(tmp_path / "t", CLAIM)
    shelf.add_fitted(made, names(made))
    assert {one.name for one in (tmp_path / "t").iterdir() if not one.name.startswith(".")} == {
        "tables.json",
        "tables.jsonl",
        "stand-ins-0.safetensors",
    }
    assert json.loads((tmp_path / "t" / "tables.json").read_text())["network"] == "abc"
    [line] = (tmp_path / "t" / "tables.jsonl").read_text().splitlines()
    assert {one["name"] for one in json.loads(line)["members"]} == {one.name for one in wanted}
