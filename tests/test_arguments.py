"""Values of the wrong type or out of range are refused before anything runs, with what was expected and what to do."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

import shoal
from shoal.arguments import as_path, flag, names_of, positive_number, real_number, whole_number
from shoal.errors import DataError, ShoalError, UsageError

NAN, INF = math.nan, math.inf
CONFIG = shoal.CompressConfig

WRONG = {
    "RemoveBlocks": (shoal.RemoveBlocks, [1.5, 2.0, True, "2", None, [1], 0, -1, NAN, INF]),
    "MaxDrop": (shoal.MaxDrop, ["1", True, None, [1.0], -0.1, 100.5, NAN, INF]),
    "ParetoPoint": (shoal.ParetoPoint, [1.5, True, "1", None, 0, -1, NAN]),
    "Blocks": (shoal.Blocks, [[3], 3, None, [None], ["a", 3], b"a", [], "", [""], {1: 2}]),
    "allow_replacement": (lambda value: shoal.MaxDrop(1.0, allow_replacement=value), ["yes", 1, None]),
    "grain": (lambda value: shoal.MaxDrop(1.0, grain=value), ["blocks", 3, None, ["unit"]]),
    "include": (lambda value: shoal.RemoveBlocks(1, include=value), [3, None, [3], b"a", True]),
    "exclude": (lambda value: shoal.Budget(depth=1, exclude=value), [3, None, [3], b"a", True]),
    "depth": (lambda value: shoal.Budget(depth=value), [1.5, True, "2", -1, NAN, [1]]),
    **{
        name: (lambda value, name=name: shoal.Budget(**{name: value}), [True, -0.5, 0, "fast", [1], NAN, INF, {}])
        for name in ("latency", "macs", "params")
    },
    **{
        name: (lambda value, name=name: CONFIG(**{name: value}), [1.5, True, "8", None, 0, -1, NAN, INF])
        for name in ("judge_images", "validation_images", "longest")
    },
    "images": (lambda value: CONFIG(images=value), [1.5, True, "8", 0, -1, NAN, INF]),
    "latency_seconds": (lambda value: CONFIG(latency_seconds=value), ["1", True, None, 0, -1.0, NAN, INF]),
    "judged_share": (lambda value: CONFIG(judged_share=value), ["0.1", True, None, 0, 1, -0.1, NAN]),
    "channels_last": (lambda value: CONFIG(channels_last=value), ["yes", 1, None]),
    "stand_ins": (lambda value: CONFIG(stand_ins=value), [3, None, [3], "nothing like it"]),
    "student_budget": (lambda value: CONFIG(student_budget=value), [1.5, True, [], "soon", None, -1, NAN]),
    "fold": (lambda value: CONFIG(fold=value), ["yes", 1, None]),
    "output": (lambda value: CONFIG(output=value), [3, [3], True, b"a", b"", {"a": 1}]),
    "damage": (lambda value: CONFIG(damage=value), [3, [], True]),
    "tables": (lambda value: CONFIG(tables=value), [3, [], True]),
    "latency_from": (lambda value: CONFIG(latency_from=value), [3, [], True]),
    "run_info": (lambda value: CONFIG(run_info=value), [3, None, {}]),
    "progress": (lambda value: shoal.Callbacks(progress=value), [3, None, "yes"]),
    "journal": (lambda value: shoal.Callbacks(journal=value), [3, None, "j.jsonl", []]),
    "recovery": (shoal.RecoveryConfig, [1.5, True, "soon", -1, NAN, []]),
    "race": (lambda value: shoal.RecoveryConfig(race=value), [1.5, True, "2", None, -1]),
    "required": (lambda value: shoal.RecoveryConfig(required=value), ["no", 0, None]),
    "folder": (lambda value: shoal.RecoveryConfig(folder=value), [3, True]),
    "settings": (lambda value: shoal.RecoveryConfig(settings=value), [3, {}]),
    "tolerance": (lambda value: shoal.ScanSettings(tolerance=value), ["1", True, 0, -1, 101, NAN]),
    "stack": (lambda value: shoal.ScanSettings(stack=value), [1.5, True, "2", None, 0]),
    "scores": (lambda value: shoal.ScanSettings(scores=value), ["no", 0, None]),
    **{
        name: (lambda value, name=name: shoal.DistillConfig(**{name: value}), ["1", True, [1], NAN, -1])
        for name in ("rate", "warm_up", "clip", "features", "labels", "sigmas", "temperature", "blends", "decay")
    },
    **{
        name: (lambda value, name=name: shoal.DistillConfig(**{name: value}), ["1", True, [1], NAN, -1, 1.5])
        for name in ("norm_batch", "validation_images", "looks", "patience", "lora", "accumulate", "cache_teacher")
    },
    **{
        name: (lambda value, name=name: shoal.DistillConfig(**{name: value}), ["no", 0, [], NAN])
        for name in ("shard", "checkpointing", "channels_last")
    },
    "steps": (lambda value: shoal.TrainingBudget(steps=value), ["9", 1.5, True, [], 0, -1, NAN, INF]),
    "seconds": (lambda value: shoal.TrainingBudget(seconds=value), ["9", True, [], 0, -1, NAN, INF]),
    "folder of load": (shoal.load, [None, 3, NAN, [], b"out"]),
    "folder of export": (shoal.export, [None, 3, [], b"out"]),
    "format": (lambda value: shoal.export("out", value), [None, 3, NAN, [], "onyx"]),
    "config of export": (lambda value: shoal.export("out", config=value), [3, "onnx", {}]),
    "path of a plan": (shoal.read_plan, [None, 3, []]),
    "plan": (lambda value: shoal.apply(torch.nn.Linear(2, 2), value), [None, "plan.json", {}, 3]),
    "MODEL": (shoal.load_model, [None, 3, torch.nn.Linear(2, 2)]),
    "DATA": (shoal.load_data, [None, 3, [torch.zeros(2, 3)]]),
    "weights": (lambda value: shoal.load_model("digits-resnet", value), [3, [], {}]),
    "device of train": (lambda value: shoal.train(NETWORK, "digits", device=value), ["tpu", "", 3.5, [], "cuda:99"]),
    "device of distill": (lambda value: distilled(device=value), ["tpu", "", 3.5, [], "cuda:99"]),
    "seed": (lambda value: shoal.load_data("digits", seed=value), [None, "1", 0.5, NAN, True]),
    "mean": (lambda value: shoal.load_data("digits", mean=value), ["0.5", [None], ["0.5"], NAN, [NAN]]),
    "tolerance of a certificate": (lambda value: certified(tolerance=value), ["1e-5", [], True, -1, NAN, INF]),
    "output of a certificate": (lambda value: certified(output=value), [3, 0.5, [3], True]),
}


def distilled(**options):
    config = shoal.DistillConfig(**options)
    return shoal.distill(NETWORK, torch.nn.Linear(3, 3), [SAMPLES], validation=[SAMPLES[:1]], budget=1, config=config)


def certified(**options):
    network = torch.nn.Linear(3, 3)
    return shoal.certify(network, network, [torch.zeros(2, 3)], **options)


@pytest.mark.parametrize(
    ("make", "value"),
    [pytest.param(make, value, id=f"{name}-{value!r}") for name, (make, values) in WRONG.items() for value in values],
)
def test_a_wrong_value_is_refused(make, value):
    with pytest.raises(UsageError) as caught:
        make(value)
    assert caught.value.message


CALLS = {
    "goal": [3, "remove", {"remove": 1}, shoal.RemoveBlocks],
    "config": [3, {}, "fold", shoal.CompressConfig],
    "callbacks": [3, "loud", []],
    "recovery": [1.5, True, "soon", [], -1],
    # the keywords of version 0.1.0
    "progress": [3, "loud"],
    "journal": [3, "j.jsonl"],
    "fold": ["yes", 1],
    "output": [3],
    "remove": [1.5, True, "2", -1],
    "max_drop": [True, "1", NAN],
    "depth": [1.5],
    "exclude": [3],
    "exact": ["yes"],
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "value"),
    [pytest.param(name, value, id=f"{name}-{value!r}") for name, values in CALLS.items() for value in values],
)
def test_compress_refuses_it_before_the_network_is_run(name, value):
    class Unused(torch.nn.Module):
        def forward(self, x):
            raise AssertionError("it was run")

    with pytest.raises(UsageError):
        shoal.compress(Unused(), [torch.zeros(2, 3)], **{name: value})


@pytest.mark.parametrize("name", ["calibration", "validation", "test"])
def test_data_that_cannot_be_read_is_refused(name):
    arguments = {"calibration": [torch.zeros(2, 3)], name: 3}
    with pytest.raises(ShoalError):
        shoal.compress(torch.nn.Linear(3, 3), goal=shoal.RemoveBlocks(1), **arguments)


def test_numbers_of_numpy_and_lone_strings_are_taken():
    assert shoal.RemoveBlocks(np.int64(2)) == shoal.RemoveBlocks(2)
    assert type(shoal.RemoveBlocks(np.int64(2)).to_dict()["remove"]) is int
    assert type(shoal.MaxDrop(np.float32(0.5)).to_dict()["max_drop"]) is float
    assert shoal.Budget(depth=np.int8(0)).depth == 0
    assert shoal.CompressConfig(stand_ins="identity", tables=Path("t")).stand_ins == ("identity",)
    assert names_of("x", ["a", "b"]) == names_of("x", ("a", "b")) == ("a", "b")
    assert (whole_number("x", 3, 3, ""), real_number("x", 1, ""), positive_number("x", 0.5, "")) == (3, 1, 0.5)
    assert flag("x", True) is True


def test_a_refusal_names_the_value_what_is_expected_and_what_to_do():
    with pytest.raises(UsageError, match=r"remove is 1\.5, expected a whole number, at least 1\n  Give a number"):
        shoal.RemoveBlocks(1.5)
    with pytest.raises(UsageError, match=r"fold is 'yes', expected True or False\n  Write fold=True"):
        shoal.CompressConfig(fold="yes")
    with pytest.raises(UsageError, match=r"blocks is \[3\], expected a name or a list of names\n  Write blocks=\["):
        shoal.Blocks([3])


NETWORK, SAMPLES = torch.nn.Sequential(torch.nn.Linear(3, 3)), torch.zeros(2, 3)
NO_NETWORKS = {
    "None": (None, "Pass the network itself"),
    "a str": ("resnet18", "load_model"),
    "a list": ([NETWORK], "Pass the network itself"),
    "the class Linear": (torch.nn.Linear, "Call it"),
    "an OrderedDict": (NETWORK.state_dict(), "load_state_dict"),
    "a function": (lambda: NETWORK, "Call it"),
}
VERBS = {
    "trace": ("model", lambda value: shoal.trace(value, SAMPLES)),
    "scan": ("model", lambda value: shoal.scan(value, [SAMPLES])),
    "compress": ("model", lambda value: shoal.compress(value, [SAMPLES])),
    "train": ("model", lambda value: shoal.train(value, "digits")),
    "train with a teacher": ("teacher", lambda value: shoal.train(NETWORK, "digits", teacher=value or 3)),
    "distill a student": ("student", lambda value: shoal.distill(value, NETWORK, [SAMPLES], validation=[SAMPLES])),
    "distill": ("teacher", lambda value: shoal.distill(NETWORK, value, [SAMPLES], validation=[SAMPLES])),
    "certify": ("a", lambda value: shoal.certify(value, NETWORK, [SAMPLES])),
    "certify against": ("b", lambda value: shoal.certify(NETWORK, value, [SAMPLES])),
    "fold": ("model", lambda value: shoal.fold(value, SAMPLES)),
    "apply": ("model", lambda value: shoal.apply(value, None)),
    "epsilonize": ("model", lambda value: shoal.epsilonize_(value, SAMPLES, 1.0)),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", NO_NETWORKS)
def test_what_is_no_network_is_refused_by_what_it_is(verb, kind):
    name, call = VERBS[verb]
    value, way_out = NO_NETWORKS[kind]
    if verb == "train with a teacher" and value is None:
        kind = "an int"
    with pytest.raises(UsageError, match=f"^{name} is {kind}, expected a torch.nn.Module\n.*{way_out}"):
        call(value)


NO_LOADERS = {
    "None": (None, "DataLoader"),
    "an int": (3, "DataLoader"),
    "a str": ("digits", "load_data"),
    "a Data": (shoal.load_data("digits"), "calibration"),
    "a dict": ({"x": SAMPLES}, r"\[batch\]"),
    "a Tensor": (SAMPLES, r"\[batch\]"),
    "a ndarray": (SAMPLES.numpy(), r"\[batch\]"),
    "a Sequential": (NETWORK, "DataLoader"),
    "the class DataLoader": (torch.utils.data.DataLoader, "DataLoader"),
}
READERS = {
    "scan": lambda value: shoal.scan(NETWORK, value),
    "compress": lambda value: shoal.compress(NETWORK, value),
    "certify": lambda value: shoal.certify(NETWORK, NETWORK, value),
    "distill": lambda value: shoal.distill(NETWORK, torch.nn.Linear(3, 3), value, validation=[SAMPLES], budget=1),
    "validation": lambda value: shoal.distill(NETWORK, torch.nn.Linear(3, 3), [SAMPLES], validation=value, budget=1),
    "test": lambda value: shoal.compress(NETWORK, [SAMPLES], test=value if value is not None else 3),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", NO_LOADERS)
def test_what_is_no_loader_is_refused_by_what_it_is(reader, kind):
    value, way_out = NO_LOADERS[kind]
    if reader == "test" and value is None:
        kind = "an int"
    with pytest.raises(
        DataError, match=f"the data is {kind}, expected a loader, which yields mini-batches\n.*{way_out}"
    ):
        READERS[reader](value)


def test_one_mean_is_for_all_channels_and_every_path_is_one():
    means = [next(iter(shoal.load_data("digits", mean=mean).test()))[0] for mean in (0.5, [0.5], np.float32(0.5))]
    assert torch.equal(means[0], means[1])
    assert torch.equal(means[0], means[2])
    assert as_path("folder", "a") == as_path("folder", Path("a")) == Path("a")
