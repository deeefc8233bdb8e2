import inspect

import pytest

from shoal import errors
from shoal.errors import ShoalError, did_you_mean

KINDS = [one for _, one in inspect.getmembers(errors, inspect.isclass) if issubclass(one, ShoalError)]


def test_every_error_can_be_told_from_the_others_by_its_kind():
    kinds = [one.kind for one in KINDS]
    assert len(set(kinds)) == len(kinds) > 10


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_shows_message_and_hint_and_nothing_else(kind):
    assert str(kind("no such thing", "Do this.")) == "no such thing\n  Do this."
    assert str(kind("no such thing")) == "no such thing"
    assert (kind("a", "b").message, kind("a", "b").hint) == ("a", "b")


@pytest.mark.parametrize(
    ("kind", "builtin"),
    [
        (errors.UsageError, ValueError),
        (errors.SpecError, ValueError),
        (errors.DataError, ValueError),
        (errors.WeightsError, ValueError),
        (errors.NonFiniteError, ValueError),
        (errors.PlanError, ValueError),
        (errors.ModelRaisedError, RuntimeError),
        (errors.TraceError, RuntimeError),
        (errors.SurgeryError, RuntimeError),
        (errors.ExportError, RuntimeError),
        (errors.NotReachedError, RuntimeError),
        (errors.UnknownBlockError, KeyError),
        (errors.FolderError, OSError),
    ],
)
def test_callers_can_catch_the_builtin_they_expect(kind, builtin):
    with pytest.raises(builtin, match="oops"):
        raise kind("oops")


def test_only_an_outcome_exits_with_one_wrong_use_exits_with_two():
    codes = {one.kind: one.exit_code for one in KINDS}
    assert {kind for kind, code in codes.items() if code == 1} == {"export", "not_reached"}
    assert set(codes.values()) == {1, 2}


def test_near_matches_come_before_lists():
    assert did_you_mean("layer1.O", ["layer1.0", "head"]) == "Did you mean 'layer1.0'?"
    assert did_you_mean("layer1.00", ["layer1.0", "layer1.1"]).count(" or ") == 1


def test_without_a_near_match_the_first_names_are_listed():
    assert did_you_mean("zzz", ["a", "b"]) == "Known: a, b."
    assert did_you_mean("zzz", [f"name{i}" for i in range(20)]).endswith("name11, ....")
    assert did_you_mean("zzz", []) == ""
