"""Every option with every goal: it is used, or refused with a sentence."""

import itertools

import pytest
import torch
from typer.testing import CliRunner

import networks
import shoal
from flat_options import typed
from shoal.cli.app import app
from shoal.errors import DataError, ShoalError, UsageError
from shoal.pipeline import ExactOnly, RecoveryConfig, compress
from shoal.pipeline.goals import USED_BY, check_options, parse_goal

GOALS = {
    "remove": {"remove": 1},
    "max_drop": {"max_drop": 1.0},
    "blocks": {"blocks": ["layer1.0"]},
    "exact": {"exact": True},
    "budget": {"macs": 0.7},
    "replace": {"max_drop": 1.0, "replace": True},
    "pick": {"pick": 1},
}
OPTIONS = {
    "include": {"include": ["layer1.*"]},
    "exclude": {"exclude": ["layer1.0"]},
    "latency_from": {"latency_from": "nosuch"},
    "tables": {"tables": "nosuch"},
    "race": {"recover": RecoveryConfig(3, race=2)},
    "refit": {"config": shoal.CompressConfig(refit=True)},
    "recover": {"recover": 3},
    "unlabelled": {"recover": RecoveryConfig(3, unlabelled=[torch.rand(2, 3, 8, 8)])},
    "self_data": {"recover": RecoveryConfig(3, self_data=4)},
}
FLAGS = {
    "include": ["--include", "layer1.*"],
    "exclude": ["--exclude", "layer1.0"],
    "latency_from": ["--latency-from", "nosuch"],
    "stand_ins": ["--stand-ins", "identity"],
    "student_budget": ["--student-budget", "7"],
    "race": ["--race", "2"],
    "refit": ["--refit"],
    "recover": ["--recover", "3"],
    "unlabelled": ["--unlabelled", "digits"],
    "self_data": ["--self-data", "4"],
}
GOAL_FLAGS = {
    "remove": ["--remove", "1"],
    "max_drop": ["--max-drop", "1"],
    "blocks": ["--blocks", "layer1.0"],
    "exact": ["--exact"],
    "budget": ["--macs", "0.7"],
    "replace": ["--max-drop", "1", "--replace"],
    "pick": ["--pick", "1"],
}


def is_used(option, goal):
    return goal in USED_BY[option][0]


@pytest.mark.parametrize("name", GOALS)
def test_every_goal_has_its_name(name):
    assert parse_goal(GOALS[name]).name == name
    for budget in ({"latency": 0.5}, {"params": 0.5}, {"depth": 2}):
        assert parse_goal(budget).name == "budget"


def test_every_option_of_the_table_is_tried():
    assert set(OPTIONS) | set(FLAGS) | {"replace"} == set(USED_BY)


class DataReadError(DataError):
    """The data was read: nothing was refused before."""


class Data:
    def __iter__(self):
        raise DataReadError("the data was read", "")


@pytest.mark.parametrize(("option", "goal"), itertools.product(OPTIONS, GOALS))
def test_from_python_what_does_nothing_is_refused_before_data_are_read(option, goal):
    expected = DataReadError if is_used(option, goal) else UsageError
    with pytest.raises(expected) as raised:
        compress(networks.CifarResNet(), Data(), **typed(**GOALS[goal], **OPTIONS[option]))
    if expected is UsageError:
        assert " does nothing" in raised.value.message
        assert raised.value.hint == f"Leave out {option}." or option in ("unlabelled", "self_data")


@pytest.mark.parametrize(("option", "goal"), itertools.product(FLAGS, GOALS))
def test_on_the_command_line_likewise(option, goal, monkeypatch):
    monkeypatch.setattr("shoal.cli.compress.run_compress", lambda session, request: 77)
    refused = not is_used(option, goal) or option == "student_budget"
    found = CliRunner().invoke(app, ["compress", *GOAL_FLAGS[goal], *FLAGS[option], "--json"], standalone_mode=False)
    if refused:
        assert found.exit_code == 2
        assert f"{FLAGS[option][0]} does nothing" in found.output
    else:
        assert (found.return_value, found.exit_code) == (77, 0), found.output


def test_students_that_are_tried_have_a_budget():
    check_options(parse_goal(GOALS["budget"]), {"student_budget", "stand_ins"}, ("identity", "block"))
    with pytest.raises(UsageError, match=r"student_budget does nothing: no students.*\n.*block, narrow"):
        check_options(parse_goal(GOALS["budget"]), {"student_budget"}, ("identity",))


@pytest.mark.parametrize("goal", ["budget", "pick"])
def test_plans_replace_anyway(goal):
    with pytest.raises(UsageError, match=r"replace does nothing with .*: plans for a budget"):
        compress(networks.CifarResNet(), Data(), **typed(**GOALS[goal], replace=True))


def test_a_default_of_the_command_line_is_no_wish():
    with pytest.raises(DataReadError):
        compress(networks.CifarResNet(), Data(), ExactOnly(), recovery=RecoveryConfig(3, required=False))
    with pytest.raises(ShoalError, match="recover does nothing with exact"):
        compress(networks.CifarResNet(), Data(), ExactOnly(), recovery=3)
