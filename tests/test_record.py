import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from shoal.record import (
    BlockRecord,
    Certificate,
    Comparison,
    Latency,
    Machine,
    Network,
    NetworkCost,
    Quality,
    Record,
    Recovery,
    ScanRecord,
    summary_of,
)


def latency(batch, median):
    return Latency(
        batch=batch,
        median_ms=median,
        q1_ms=median,
        q3_ms=median,
        runs=9,
        device="cpu",
        dtype="float32",
        threads=1,
        channels_last=False,
    )


def network(top1, latencies):
    quality = Quality(split="test", n=100, top1=top1, top1_interval=(top1 - 0.01, top1 + 0.01), loss=0.1)
    cost = NetworkCost(params=10, macs=20, weights_bytes=40, input_shape=[3, 8, 8])
    return Network(quality=quality, latency=latencies, cost=cost, blocks=9)


def record(**changes):
    comparison = Comparison(
        split="test", n=100, agreement=0.99, agreement_interval=(0.9, 1.0), kl=0.01, kl_interval=(0.0, 0.02)
    )
    machine = Machine(device="cpu", processor="x", cores=2, threads=1, system="Linux", python="3", torch="2", shoal="0")
    certificate = Certificate(
        verdict="different", max_abs_diff=float("inf"), where="sample 0", tolerance=0.1, n=100, bitwise=False
    )
    given = {
        "command": "shoal compress",
        "model": "m",
        "data": "d",
        "seed": 0,
        "goal": {"latency": 0.5},
        "reached": True,
        "message": "done",
        "original": network(0.9, [latency(1, 2.0), latency(64, 80.0)]),
        "compressed": network(0.8, []),
        "comparison": comparison,
        "certificate": certificate,
        "removed": ["layer1.0"],
        "blocks": [],
        "machine": machine,
        "seconds": 1.0,
        "created": "2026-01-01T00:00:00",
    }
    return Record.model_validate(given | changes)


def test_a_record_survives_json_infinity_included():
    one = record()
    text = one.model_dump_json()
    assert Record.model_validate_json(text) == one
    assert json.loads(text)["certificate"]["max_abs_diff"] == "Infinity"


def test_a_record_cannot_be_changed_and_takes_no_unknown_field():
    one = record()
    with pytest.raises(ValidationError, match="frozen"):
        one.seed = 1
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        record(colour="red")


def test_the_summary_is_json_and_shows_the_latency_of_the_largest_batch():
    found = json.loads(json.dumps(summary_of(record(), "somewhere")))
    assert found["original"]["latency_ms"] == 80.0
    assert [one["batch"] for one in found["original"]["latency"]] == [1, 64]
    assert found["compressed"]["latency_ms"] is None
    assert found["compressed"]["top1"] == 0.8
    assert (found["removed"], found["out"], found["reached"]) == (["layer1.0"], "somewhere", True)


def recovery(**changes):
    given = {
        "budget": "12 steps",
        "steps": 12,
        "samples": 192,
        "seconds": 1.5,
        "rate": 0.1,
        "optimizer": "sgd",
        "divergence_before": 0.2,
        "divergence_after": 0.1,
        "n": 32,
        "stopped": "budget",
        "kept": "averaged weights",
        "kept_step": 12,
    }
    return Recovery.model_validate(given | changes)


def test_a_recovery_of_an_older_version_has_no_curve_and_a_new_one_survives_json():
    assert recovery().curve == []
    looks = [
        {"step": 0, "seconds": 0.1, "rate": 0.1, "divergence": 0.2},
        {"step": 6, "seconds": 1.0, "rate": 0.1, "loss": 0.4},
    ]
    one = record(recovery=recovery(curve=looks))
    assert Record.model_validate_json(one.model_dump_json()) == one
    assert [(look.loss, look.divergence) for look in one.recovery.curve] == [(None, 0.2), (0.4, None)]


def test_the_summary_leaves_out_the_looks_of_a_recovery():
    found = summary_of(record(recovery=recovery(curve=[{"step": 0, "seconds": 0.1, "rate": 0.1}])), "somewhere")
    assert found["recovery"]["divergence_after"] == 0.1
    assert "curve" not in found["recovery"]


def block(**fields):
    shared = {"path": "layer1.0", "stage": 0, "kind": "BasicBlock", "shortcut": "identity", "activation": None}
    shapes = {"in_shape": [4], "out_shape": [4], "params": 1, "removable": True}
    return BlockRecord.model_validate(shared | shapes | fields)


def test_blocks_of_version_0_1_0_are_read_under_their_former_names():
    old = block(worth_kl=0.5, worth_kl_interval=(0.4, 0.6), fate="removed")
    assert old == block(removal_kl=0.5, removal_kl_interval=(0.4, 0.6), action="removed")
    assert {"removal_kl", "removal_kl_interval", "action"} < set(json.loads(old.model_dump_json()))
    assert not {"worth_kl", "worth_kl_interval", "fate"} & set(json.loads(old.model_dump_json()))


@pytest.mark.parametrize(("old", "value"), [("worth_kl", 0.5), ("worth_kl_interval", (0.4, 0.6)), ("fate", "removed")])
def test_former_names_of_fields_still_work_in_python_with_a_warning(old, value):
    with pytest.warns(DeprecationWarning, match=f"'{old}' is called"):
        assert getattr(block(removal_kl=0.5, removal_kl_interval=(0.4, 0.6), action="removed"), old) == value


def test_a_field_under_both_its_names_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        block(action="kept", fate="removed")


KEPT = Path(__file__).parent / "fixtures" / "folders-0.1.0"


@pytest.mark.parametrize("file", sorted(KEPT.rglob("record.json")), ids=lambda file: file.parent.name)
def test_blocks_of_kept_records_of_version_0_1_0_are_read_whole(file):
    former = {"worth_kl": "removal_kl", "worth_kl_interval": "removal_kl_interval", "fate": "action"}
    blocks = json.loads(file.read_text(encoding="utf-8"))["blocks"]
    assert blocks
    for old in blocks:
        written = json.loads(BlockRecord.model_validate_json(json.dumps(old)).model_dump_json())
        assert {former.get(key, key): value for key, value in old.items()}.items() == written.items()


def test_a_scan_of_version_0_1_0_names_what_was_stopped_early():
    field = ScanRecord.model_fields["early_stopped"]
    assert field.validation_alias.choices == ["early_stopped", "partly_measured"]
