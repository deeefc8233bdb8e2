import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from shoal.batches import Batch
from shoal.errors import FolderError, UsageError
from shoal.fingerprint import as_json, check_fingerprint, digest_of, legacy_digest_of


def check(recorded, current, **options):
    check_fingerprint(recorded, current, message="'run' is of another run", hint="Choose a new folder.", **options)


def test_equal_values_pass_as_they_come_back_from_a_file():
    values = {"sizes": (1, 2), "nested": {"a": None, "b": [0.1]}}
    check(as_json(values), values)
    check({**as_json(values), "added": None}, values)  # a value that is missing counts as None
    check({}, {"new": None})


@pytest.mark.parametrize(
    ("recorded", "current", "text"),
    [
        ({"seed": 0}, {"seed": 1}, "seed was 0, now 1"),
        ({"seed": 0}, {}, "seed was 0, now None"),
        ({}, {"seed": 1}, "seed was None, now 1"),
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 2, "d": 2}}}, "a.b.c was 1, now 2"),
        ({"a": {"b": 1}}, {"a": 3}, r"a was \{'b': 1\}, now 3"),
        ({str(i): 0 for i in range(6)}, {str(i): 1 for i in range(6)}, "0 was 0, now 1, .*3 was 0, now 1, and 2 more"),
        ([], {"seed": 0}, "it holds no fingerprint"),
        (None, {"seed": 0}, "it holds no fingerprint"),
    ],
)
def test_differences_are_named_with_both_values(recorded, current, text):
    with pytest.raises(FolderError, match=f"'run' is of another run: {text}\n  Choose a new folder."):
        check(recorded, current)


def test_the_error_is_of_the_class_asked_for():
    with pytest.raises(UsageError):
        check({"a": 1}, {"a": 2}, error=UsageError)


def test_values_of_version_0_1_0_are_accepted_key_by_key():
    current, legacy = {"data": "new", "damage": "kl", "seed": 0}, {"data": "old", "damage": "divergence"}
    for recorded in ({"data": "old", "damage": "divergence"}, {"data": "new", "damage": "kl"}):
        check({**recorded, "seed": 0}, current, legacy=legacy)
    with pytest.raises(FolderError, match="data was 'older', now 'new'"):
        check({"data": "older", "damage": "kl", "seed": 0}, current, legacy=legacy)
    with pytest.raises(FolderError, match="seed was 1, now 0"):
        check({"data": "old", "damage": "divergence", "seed": 1}, current, legacy=legacy)


def test_the_old_digest_is_that_of_version_0_1_0():
    images = torch.arange(6.0).reshape(2, 3)
    known = "80125eb442a5f72c"
    assert legacy_digest_of([Batch((images,))]) == known
    assert legacy_digest_of([Batch(kwargs={"x": images}, target=torch.tensor([0, 1]))]) == known
    assert legacy_digest_of([Batch((images + 1,))]) != known


def test_a_digest_is_of_the_samples_to_the_bit():
    first, second = torch.arange(12.0).reshape(3, 4), torch.arange(8.0).reshape(2, 4)
    known = digest_of([Batch((first,)), Batch((second,))])
    assert known == digest_of([Batch((first.clone(),)), Batch((second.clone(),))])
    assert known == digest_of(iter([Batch((first,)), Batch((second,))]))
    others = [
        [Batch((second,)), Batch((first,))],
        [Batch((torch.cat([first, second]),))],
        [Batch((first,)), Batch((second.double(),))],
        [Batch((first,)), Batch((second.reshape(4, 2),))],
        [Batch((first,)), Batch((torch.nextafter(second, second + 1),))],
        [Batch((first,))],
        [Batch((first,)), Batch((second,), target=torch.zeros(2))],
        [Batch((first,), target=torch.zeros(3)), Batch((second,))],
        [Batch((first, second))],
        [Batch(kwargs={"x": first}), Batch((second,))],
    ]
    assert len({known, *map(digest_of, others)}) == 1 + len(others)
    assert digest_of([Batch((first.t(),))]) == digest_of([Batch((first.t().contiguous(),))])
    assert digest_of([Batch((first.bfloat16(),))]) != digest_of([Batch((first.half(),))])


class Opaque:
    def __init__(self, held):
        self.held = held


SIX, TWO = torch.arange(6.0).reshape(2, 3), torch.tensor([0, 1])
BATCHES = {
    "inputs": Batch((SIX,)),
    "labels": Batch((SIX,), target=TWO),
    "other labels": Batch((SIX,), target=1 - TWO),
    "labels of another dtype": Batch((SIX,), target=TWO.float()),
    "by name": Batch(kwargs={"x": SIX, "y": SIX + 1}),
    "by another name": Batch(kwargs={"x": SIX, "z": SIX + 1}),
    "names changed over": Batch(kwargs={"y": SIX, "x": SIX + 1}),
    "labels as an input": Batch((SIX, TWO)),
    "a flag": Batch((SIX,), {"causal": True}),
    "another flag": Batch((SIX,), {"causal": False}),
    "a number": Batch((SIX,), {"causal": 1}),
    "text": Batch((SIX,), {"causal": "1"}),
    "nothing": Batch((SIX,), {"causal": None}),
    "a list": Batch((SIX,), {"sizes": [1, 2]}),
    "nested": Batch((SIX,), {"sizes": [[1], 2]}),
    "tensors in a dict": Batch((SIX,), {"more": {"a": SIX}}),
    "other tensors in a dict": Batch((SIX,), {"more": {"a": SIX + 1}}),
    "a set": Batch((SIX,), {"sizes": {"a", "b", "c"}}),
    "an array": Batch((SIX,), {"sizes": np.arange(3)}),
    "another array": Batch((SIX,), {"sizes": np.arange(3.0)}),
    "an object": Batch((SIX,), {"of": Opaque(SIX)}),
    "another object": Batch((SIX,), {"of": Opaque(TWO)}),
    "a function": Batch((SIX,), {"of": len}),
    **{
        str(dtype): Batch((SIX.to(dtype),))
        for dtype in (torch.bfloat16, torch.half, torch.bool, torch.int8, torch.complex64)
    },
    "conjugate": Batch(((SIX + 1j * SIX).conj(),)),
    "a scalar": Batch((SIX, torch.tensor(3.0))),
    "no samples": Batch((SIX[:0],)),
    "sparse": Batch((SIX.to_sparse(), TWO)),
}


def test_a_digest_tells_labels_names_values_and_dtypes_apart():
    digests = {name: digest_of([batch]) for name, batch in BATCHES.items()}
    assert len(set(digests.values())) == len(digests)
    assert digests == {name: digest_of([batch.cloned()]) for name, batch in BATCHES.items()}


def test_a_digest_is_the_same_in_another_process():
    program = (
        "import torch; from shoal.fingerprint import *; from test_fingerprint import BATCHES\n"
        "print(digest_of(BATCHES.values()))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "7"}
    found = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent,
    )
    assert found.stdout.strip() == digest_of(BATCHES.values())


def test_what_holds_itself_has_a_digest():
    held = []
    held.append(held)
    assert digest_of([Batch((SIX,), {"of": held})]) != digest_of([Batch((SIX,))])
