import importlib
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch

import networks
import shoal
from shoal.deprecated import former_keywords, renamed
from shoal.errors import UsageError
from shoal.pipeline.api import FORMER_KEYWORDS, from_former_keywords


@former_keywords(("old",), renamed(old="new"), "write new=")
def function(value, *, new=0):
    """What it does."""
    return value, new


def test_a_former_keyword_warns_where_it_was_written_and_works():
    with pytest.warns(DeprecationWarning, match=r"function\(\) takes old for the last time: write new=") as caught:
        assert function(1, old=2) == (1, 2)
    assert caught[0].filename == __file__


def test_todays_keywords_do_not_warn():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert function(1, new=2) == (1, 2)
    assert function.__doc__ == "What it does."


# Every name that a room of version 0.1.0 exported and that has another one now.
FORMER = {
    "shoal": ["Result", "ScanSettings", "Settings"],
    "shoal.batches": ["digest_of"],
    "shoal.blocks": ["Anatomy", "anatomy_of", "dissect"],
    "shoal.measure": ["Tally", "turns"],
    "shoal.pipeline": [
        "NoJournal",
        "Progress",
        "Provenance",
        "Recover",
        "Result",
        "Settings",
        "Solved",
        "Target",
        "solve",
    ],
    "shoal.plan": ["Budget", "Signature", "StandIn"],
    "shoal.recover": ["Budget", "DistilSettings", "Distilled", "distil"],
    "shoal.replace": [
        "ALONE",
        "Fitted",
        "Form",
        "KINDS",
        "Line",
        "MOST_UNKNOWNS",
        "Step",
        "Through",
        "Trained",
        "Wanted",
        "WantedStudent",
        "build",
        "hand_form_on_",
        "in_portions",
        "line_of",
        "spans_of",
        "take_place_",
    ],
    "shoal.scanning": ["Damage", "ScanOrigin", "ScanSettings", "Worth"],
    "shoal.sources": ["Reading", "reading_of"],
    "shoal.store": ["Lines", "Opened", "write_atomically", "write_text"],
    "shoal.surgery": ["shorten"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in FORMER.items() for name in names])
def test_former_names_are_there_and_warn(module, name):
    with pytest.warns(DeprecationWarning, match=rf"{module}\.{name} is now shoal\.") as caught:
        assert getattr(importlib.import_module(module), name) is not None
    assert caught[0].filename == __file__


@pytest.mark.parametrize(("room", "now"), [("plan", "ResourceLimits"), ("recover", "TrainingBudget")])
def test_a_former_name_that_means_something_else_in_the_package_says_so(room, now):
    module = importlib.import_module(f"shoal.{room}")
    message = rf"{room}\.Budget is now shoal\.{room}\.{now}; shoal\.Budget is another class, a goal of compress\(\)"
    with pytest.warns(DeprecationWarning, match=message):
        former = module.Budget
    assert former is getattr(module, now)
    assert former is not shoal.Budget


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'shoal' has no attribute 'Setings'"):
        shoal.Setings  # noqa: B018


def test_everything_exported_can_be_imported_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(getattr(shoal, name) is not None for name in shoal.__all__)


def test_importing_the_package_alone_does_not_import_torch():
    code = "import sys, shoal; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


FAST = shoal.MeasureConfig(images=8, latency_seconds=0.001)
GOALS = [
    ({"remove": 1}, shoal.RemoveBlocks(1)),
    ({"max_drop": 2.0, "replace": True}, shoal.MaxDrop(2.0, allow_replacement=True)),
    ({"blocks": ["a"]}, shoal.Blocks(["a"])),
    ({"exact": True, "include": ["a*"]}, shoal.ExactOnly(include=["a*"])),
    ({"latency": 0.5, "depth": 3}, shoal.Budget(latency=0.5, depth=3)),
    ({"pick": 2}, shoal.ParetoPoint(2)),
]


@pytest.mark.parametrize(("former", "goal"), GOALS)
def test_each_former_goal_is_a_typed_one(former, goal):
    assert from_former_keywords(former, {}) == {"goal": goal}


def test_the_rest_of_the_former_keywords():
    def damage(original, candidate, batch):
        return (original - candidate).abs().mean(1)

    info, journal = shoal.pipeline.RunInfo(seed=3), shoal.pipeline.NullJournal()
    former = {"eval": [1], "recover": "5m", "settings": FAST, "fold": True, "damage": damage, "output": "[0]"}
    former |= {"latency_from": "f.json", "tables": "t", "provenance": info, "journal": journal, "progress": print}
    typed = from_former_keywords(former, {"validation": [2]})
    assert (typed["test"], typed["recovery"], typed["validation"]) == ([1], "5m", [2])
    config = typed["config"]
    assert (config.measure, config.fold, config.damage, config.output) == (FAST, True, damage, "[0]")
    assert (config.latency_from, config.tables, config.run_info) == ("f.json", "t", info)
    assert typed["callbacks"] == shoal.Callbacks(print, journal)
    assert set(former) | {key for plain, _ in GOALS for key in plain} | {"macs", "params", "exclude", "grain"} == set(
        FORMER_KEYWORDS
    )


def test_compress_by_former_keywords_comes_to_the_same():
    torch.manual_seed(0)
    model, images = networks.randomised(networks.CifarResNet(2)), torch.randn(8, 3, 8, 8)
    config = shoal.CompressConfig.of(FAST)
    now = shoal.compress(model, [images], shoal.RemoveBlocks(1), test=[images + 1], config=config)
    with pytest.warns(DeprecationWarning, match=r"compress\(\) takes remove, eval, settings for the last time"):
        then = shoal.compress(model, [images], eval=[images + 1], remove=1, settings=FAST)
    assert then.record.goal == now.record.goal == {"remove": 1}
    assert then.record.removed == now.record.removed
    assert then.record.comparison == now.record.comparison


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_former_and_new_keywords_for_the_same_are_refused():
    with pytest.raises(UsageError, match="goal is there, and a former keyword for the same"):
        shoal.compress(torch.nn.Identity(), [], goal=shoal.RemoveBlocks(1), remove=1)


def test_scan_by_former_keywords_comes_to_the_same():
    torch.manual_seed(0)
    model, images, journal = networks.randomised(networks.CifarResNet(2)), torch.randn(8, 3, 8, 8), Lines()
    config = shoal.ScanConfig(layers=False, scores=False)
    info = shoal.scanning.ScanRunInfo("m", "d", 3, "c", "train")
    with pytest.warns(DeprecationWarning, match=r"scan\(\) takes settings, origin, also_name, journal, progress for"):
        then = shoal.scan(
            model, [images], also=[images + 1], also_name="brighter", settings=config, origin=info,
            journal=journal, progress=lambda *_: None,
        )  # fmt: skip
    info = replace(info, also="brighter")
    now = shoal.scan(model, [images], also=[images + 1], config=replace(config, run_info=info))
    ignored = {"seconds", "created"}
    assert then.model_dump(exclude=ignored) == now.model_dump(exclude=ignored)
    assert (then.also.data, then.seed, then.baseline.split) == ("brighter", 3, "train")
    assert [line["name"] for line in journal.lines] == ["first", "also"]


class Lines:
    """A journal in memory."""

    def __init__(self):
        self.lines = []

    def append(self, line):
        self.lines.append(line)

    def measured(self):
        return self.lines


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("former", "now"), [({"settings": None}, "config"), ({"progress": print}, "callbacks")])
def test_scan_refuses_former_and_new_keywords_for_the_same(former, now):
    new = {"config": shoal.ScanConfig(), "callbacks": print}
    with pytest.raises(UsageError, match=f"{now} is there, and a former keyword for the same"):
        shoal.scan(torch.nn.Identity(), [], **former, **new)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_goal_by_position_and_a_former_keyword_for_it_are_refused():
    with pytest.raises(UsageError, match="goal is there, and a former keyword for the same"):
        shoal.compress(torch.nn.Identity(), [], shoal.RemoveBlocks(1), remove=1)


def test_a_configuration_of_another_kind_is_refused():
    with pytest.raises(UsageError, match="config is a dict, expected a ScanConfig"):
        shoal.scan(torch.nn.Identity(), [], config={"layers": False})


def lessons(seed):
    return [torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(seed + index)) for index in range(2)]


def test_distill_by_former_keywords_comes_to_the_same():
    student, teacher = (networks.randomised(networks.CifarResNet(2)).eval() for _ in range(2))
    config, calls = shoal.DistillConfig(rate=0.01, looks=1), []
    with pytest.warns(DeprecationWarning, match=r"distill\(\) takes training, unlabelled, known, settings, device"):
        then = shoal.distill(
            student, teacher, training=lessons(1), unlabelled=lessons(5), validation=lessons(9), budget=2,
            settings=config, device="cpu", known=(), progress=lambda *now: calls.append(now),
        )  # fmt: skip
    assert calls
    data = shoal.DistillData(lessons(1), unlabelled=lessons(5))
    now = shoal.distill(student, teacher, data, validation=lessons(9), budget=2, config=config)
    ignored = {"seconds", "curve"}
    assert then.recovery.model_dump(exclude=ignored) == now.recovery.model_dump(exclude=ignored)
    assert then.recovery.settings == config.to_dict()
    assert "device" not in config.to_dict()
    assert all(torch.equal(tensor, now.model.state_dict()[name]) for name, tensor in then.model.state_dict().items())


@pytest.mark.parametrize(
    ("keywords", "name"),
    [
        ({"data": shoal.DistillData([1]), "unlabelled": [2]}, "data"),
        ({"data": [1], "training": [2]}, "data"),
        ({"data": [1], "config": shoal.DistillConfig(), "device": "cpu"}, "config"),
        ({"data": [1], "callbacks": print, "progress": print}, "callbacks"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_distill_refuses_former_and_new_keywords_for_the_same(keywords, name):
    with pytest.raises(UsageError, match=f"{name} is there, and a former keyword for the same"):
        shoal.distill(torch.nn.Identity(), torch.nn.Identity(), validation=[], **keywords)
