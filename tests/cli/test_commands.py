"""The contract of the command line: documents, exit codes, one clear message, nothing left behind."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import halves
import shoal

HERE = Path(__file__).parent.parent
NETWORK, PLAIN, POISONED, RAISING = (f"{HERE}/tiny.py:{name}" for name in ("network", "plain", "poisoned", "raising"))
DATA, BAD_LABELS = f"{HERE}/tiny.py:data", f"{HERE}/tiny.py:bad_labels"


def test_compress_prints_the_document_of_the_contract(run, tmp_path):
    code, out, _ = run("compress", NETWORK, DATA, "--remove", 2, "--out", "o", "--batch-size", 32, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["goal"] == {"remove": 2}
    assert document["reached"] is True
    assert set(document["removed"]) == {"blocks.1", "blocks.4"}
    assert document["replaced"] == []
    assert document["planning"] is None
    for side in ("original", "compressed"):
        assert {"top1", "top1_interval", "n", "latency_ms", "macs", "params", "blocks"} <= set(document[side])
    assert (document["original"]["blocks"], document["compressed"]["blocks"]) == (6, 4)
    assert document["compressed"]["params"] < document["original"]["params"]
    assert document["certificate"]["verdict"] == "identical"
    assert document["out"] == "o"
    names = {one.name for one in (tmp_path / "o").iterdir()}
    assert {"model.safetensors", "plan.json", "record.json", "report.html", "model.pt2", "run.json"} <= names


def test_what_was_written_loads_and_can_be_used(run, tmp_path):
    run("compress", NETWORK, DATA, "--exact", "--out", "o", "--batch-size", 32)
    model = shoal.load(tmp_path / "o", trust_code=True)
    x = torch.randn(3, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x), shoal.load(tmp_path / "o", trust_code=True)(x))
    code, out, _ = run("certify", NETWORK, "o", DATA, "--json")
    certificate = json.loads(out)
    assert (code, certificate["verdict"]) == (0, "identical")
    assert {"verdict", "max_abs_diff", "where", "tolerance", "n", "premises"} <= set(certificate)
    assert any("blocks.1" in premise for premise in certificate["premises"])
    code, out, _ = run("apply", NETWORK, "o/plan.json", "--out", "again", "--json")
    assert code == 0
    code, out, _ = run("certify", "o", "again", DATA, "--trust-code", "--json")
    assert json.loads(out)["verdict"] == "identical"
    code, out, _ = run("bench", "o", "--trust-code", "--batch-size", 4, "--seconds", 0.1, "--json")
    assert code == 0
    assert [one["batch"] for one in json.loads(out)["compressed"]] == [1, 4]
    code, out, _ = run("export", "o", "--trust-code", "--torch-export", "--json")
    assert code == 0
    assert json.loads(out)["torch_export"]["max_abs_diff"] < 1e-4


def test_different_networks_exit_with_one(run):
    run("compress", NETWORK, DATA, "--blocks", "blocks.0,blocks.2", "--out", "o", "--batch-size", 32)
    code, out, _ = run("certify", NETWORK, "o", DATA, "--json")
    assert code == 1
    assert json.loads(out)["verdict"] == "different"
    assert json.loads(out)["max_abs_diff"] > 0


def test_more_than_there_is_keeps_what_could_be_reached(run, tmp_path):
    code, out, _ = run("compress", NETWORK, DATA, "--remove", 50, "--out", "o", "--batch-size", 32, "--json")
    document = json.loads(out)
    assert code == 1
    assert document["reached"] is False
    assert len(document["removed"]) == 6
    assert "6 blocks removed of the 50 asked for" in document["message"]
    assert (tmp_path / "o" / "model.safetensors").exists()


def test_exact_without_identities_names_the_nearest_and_writes_nothing(run, tmp_path):
    code, _, err = run("compress", NETWORK, DATA, "--exact", "--exclude", "blocks.1,blocks.4", "--out", "o")
    assert code == 1
    assert "no block is a strict identity; the nearest" in err
    assert not (tmp_path / "o").exists()


def test_trace_lists_the_chain(run):
    code, out, _ = run("trace", NETWORK, "--shape", "1,8,8", "--json")
    blocks = json.loads(out)["blocks"]
    assert code == 0
    assert [block["path"] for block in blocks] == [f"blocks.{k}" for k in range(6)]
    assert all(block["removable"] and block["shortcut"] == "identity" for block in blocks)
    code, out, _ = run("trace", PLAIN, "--shape", "1,8,8")
    assert code == 0
    assert "no residual block" in out


def test_scan_prints_the_document_of_the_contract(run, tmp_path):
    code, out, _ = run("scan", NETWORK, DATA, "--out", "s", "--batch-size", 32, "--json")
    document = json.loads(out)
    assert code == 0
    assert {"top1", "loss", "n", "split"} <= set(document["baseline"])
    assert document["baseline"]["n"] == 60
    block = document["blocks"][1]
    assert {"path", "removable", "reason", "ablations", "scores"} <= set(block)
    assert {"block", "branch", "mean"} <= set(block["ablations"])
    wanted = {"loss", "top1", "kl", "changed", "top1_drop", "top1_drop_interval", "loss_increase"}
    assert wanted | {"loss_increase_interval", "verdict"} <= set(block["ablations"]["block"])
    assert block["ablations"]["block"]["kl"] == 0
    assert document["layers"][0]["path"] == "stem"
    assert {"report.html", "record.json"} <= {one.name for one in (tmp_path / "s").iterdir()}


def test_scan_of_a_plain_network_says_which_kernels_matter(run):
    code, out, _ = run("scan", PLAIN, DATA, "--out", "s", "--batch-size", 32, "--json")
    document = json.loads(out)
    assert code == 0
    assert document["blocks"] == []
    assert [layer["path"] for layer in document["layers"]] == ["features.0", "features.2", "head"]


def test_a_finished_folder_is_refused(run):
    run("compress", NETWORK, DATA, "--exact", "--out", "o", "--batch-size", 32)
    code, _, err = run("compress", NETWORK, DATA, "--exact", "--out", "o", "--batch-size", 32)
    assert code == 2
    assert "holds a finished run" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("compress", "digits-resnett", "digits"), 2, "Did you mean 'digits-resnet'"),
        (("compress", NETWORK, "digitz"), 2, "Did you mean 'digits'"),
        (("compress", NETWORK), 2, "DATA is missing"),
        (("compress", NETWORK, DATA, "--remove", "2", "--exact"), 2, "exactly one of"),
        (("compress", NETWORK, DATA, "--remove", "0"), 2, "expected at least 1"),
        (("compress", NETWORK, DATA, "--depth", "-1"), 2, "depth is -1, expected at least 0"),
        (("compress", NETWORK, DATA, "--latency", "fast"), 2, "expected a fraction or an amount"),
        (("compress", NETWORK, DATA, "--pick", "1", "--macs", "0.5"), 2, "exactly one of"),
        (("compress", NETWORK, DATA, "--replace", "--remove", "1"), 2, "replace goes with max_drop or a budget"),
        (("compress", NETWORK, DATA, "--macs", "0.5", "--latency-from", "no.json"), 2, "cannot read the latencies"),
        (("compress", "--from", "nowhere", "--macs", "0.5"), 2, "is no output folder of Shoal"),
        (("latency", NETWORK, "--shape", "3,8,8"), 2, "expected input"),
        (("compress", NETWORK, DATA, "--blocks", "blocks.9"), 2, "Did you mean 'blocks.5'"),
        (("compress", NETWORK, DATA, "--include", "layer*"), 2, "matches no residual block"),
        (("compress", NETWORK, DATA, "--weights", "none.safetensors"), 2, "none.safetensors"),
        (("compress", NETWORK, DATA, "--device", "cuda:99"), 2, "cannot be used"),
        (("compress", NETWORK, BAD_LABELS, "--remove", "1"), 2, "label 77 does not fit a model with 10 classes"),
        (("compress", PLAIN, DATA), 1, "no residual block"),
        (("compress", POISONED, DATA), 2, "'blocks.2.conv1.weight'"),
        (("compress", RAISING, DATA), 2, "the disk ate my weights"),
        (("compress", f"{HERE}/tiny.py:netwrok", DATA), 2, "Did you mean 'network'"),
        (("compress", NETWORK, "npz:none.npz"), 2, "none.npz"),
        (("compress", NETWORK, DATA, "--mean", "a,b"), 2, "expected numbers"),
        (("trace", NETWORK, "--shape", "3,8,8"), 2, "expected input"),
        (("apply", NETWORK, "none.json"), 2, "cannot read the plan"),
        (("export", "nowhere"), 2, "there is no folder"),
        (("scan", NETWORK, DATA, "--split", "tset"), 2, "expected one of train, validation, test"),
        (("scan", NETWORK, DATA, "--tolerance", "-1"), 2, "the tolerance is -1"),
        (("compress", "--bogus"), 2, "No such option"),
    ],
)
def test_bad_input_is_one_clear_message(run, tmp_path, words, code, message):
    found, out, err = run(*words)
    assert found == code
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert not list(tmp_path.rglob("model.safetensors"))
    found, out, _ = run(*words, "--json")
    assert found == code
    assert message in json.loads(out)["error"]["message"] + json.loads(out)["error"]["hint"]


def test_a_weights_file_that_needs_unpickling_is_refused(run, tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("boom",))

    torch.save({"weights": Evil()}, tmp_path / "evil.pt")
    code, out, err = run("compress", NETWORK, DATA, "--weights", "evil.pt")
    assert code == 2
    assert "boom" not in out
    assert "safetensors" in err


def test_an_empty_test_part_and_a_wrong_shape_are_refused(run, tmp_path):
    x, y = np.zeros((50, 3, 8, 8), dtype=np.uint8), np.arange(50) % 10
    np.savez(tmp_path / "empty.npz", x_train=x, y_train=y, x_test=x[:0], y_test=y[:0])
    code, _, err = run("compress", NETWORK, "npz:empty.npz")
    assert code == 2
    assert "empty" in err or "no samples" in err
    np.savez(tmp_path / "rgb.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    code, _, err = run("compress", NETWORK, "npz:rgb.npz")
    assert code == 2
    assert "expected input" in err


def test_fold_takes_batch_norms_into_their_layers_and_loads_again(run, tmp_path):
    code, out, _ = run("compress", NETWORK, DATA, "--exact", "--fold", "--out", "o", "--batch-size", 32, "--json")
    document = json.loads(out)
    assert code == 0
    assert len(document["folded"]) > 0
    assert document["fold_deviation"] < 1e-4
    assert document["certificate"]["verdict"] == "equal"
    assert not any(name.startswith("blocks.0.bn2") for name in shoal.load(tmp_path / "o", trust_code=True).state_dict())


def test_dry_run_writes_nothing(run, tmp_path):
    code, out, _ = run("compress", NETWORK, DATA, "--dry-run")
    assert code == 0
    assert "6 residual blocks" in out
    code, out, _ = run("compress", NETWORK, DATA, "--depth", "3", "--dry-run")
    assert code == 0
    assert "Would fit stand-ins for every span on 2048 calibration samples" in out
    assert list(tmp_path.iterdir()) == []


HALVES = f"{HERE}/halves.py"


def test_grain_of_units_goes_the_whole_way(run, tmp_path):
    words = ("compress", f"{HALVES}:Halves", f"{HALVES}:data", "--remove", "2", "--grain", "unit", "--json")
    code, out, err = run(*words, "--out", tmp_path / "out")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["removed_units"]) + 2 * len(found["removed"]) == 2
    assert found["goal"] == {"remove": 2, "grain": "unit"}
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert [action["unit"] for action in plan["actions"]] == [int(one[-1]) for one in found["removed_units"]]
    network, x = shoal.load(tmp_path / "out", trust_code=True), halves.samples()
    missing = {one.partition("#")[0][-1]: ("mixer", "mlp")[int(one[-1])] for one in found["removed_units"]}
    expected = halves.by_hand(halves.Halves().eval(), tuple(missing.get(str(n), "") for n in range(3)))
    assert torch.equal(network(x), expected(x))


def test_grain_is_said_in_words(run, tmp_path):
    code, out, err = run(
        "compress", f"{HALVES}:Halves", f"{HALVES}:data", "--remove", "1", "--grain", "unit", "--out", tmp_path / "out"
    )
    assert code == 0, err
    said = " ".join((out + err).split())
    assert "1 single unit removed from 3 blocks" in said
    assert "single units were removed, the rest of their blocks stays: blocks." in said
    assert "partly kept ◧" in said
    code, _, err = run("compress", f"{HALVES}:Halves", f"{HALVES}:data", "--grain", "half")
    assert code == 2
    assert "--grain is 'half', expected block or unit" in err
