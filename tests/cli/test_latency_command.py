"""`shoal latency` and `compress --latency-from`: measured there, used here."""

import json
from pathlib import Path

import pytest

import stopwatch

HERE = Path(__file__).parent.parent
NETWORK, DATA, PLAIN = (f"{HERE}/tiny.py:{name}" for name in ("network", "data", "plain"))
FEW = ("--images", 40, "--batch-size", 16, "--recover", "none")


@pytest.fixture(autouse=True)
def _fake_clock(monkeypatch):
    stopwatch.install(monkeypatch)


@pytest.mark.slow
def test_a_table_made_there_decides_here(run, tmp_path):
    code, out, _ = run("latency", NETWORK, "--shape", "1,8,8", "--batch-size", 16, "--out", "there.json", "--json")
    document = json.loads(out)
    table = json.loads((tmp_path / "there.json").read_text())
    assert code == 0
    assert document == {"out": "there.json", "whole_ms": table["whole_ms"], "entries": len(table["entries"])}
    assert table["batch"] == 16
    words = ("compress", NETWORK, DATA, "--latency", "0.6", *FEW)
    code, out, _ = run(*words, "--latency-from", "there.json", "--out", "o", "--json")
    planning = json.loads(out)["planning"]
    assert code == 0
    assert planning["latency_source"] == "there.json (cpu, batch 16)"
    assert planning["latency_guessed_ms"] == planning["latency_measured_ms"] <= 0.606 * table["whole_ms"]
    code, out, _ = run("compress", "--from", "o", "--latency", "0.5", "--out", "p", "--json", "--trust-code")
    assert json.loads(out)["planning"]["latency_source"] == "there.json (cpu, batch 16)"


@pytest.mark.parametrize("size", [3, 128])
def test_the_batch_is_as_large_as_asked_with_data_too(run, tmp_path, size):
    code, out, _ = run("latency", NETWORK, DATA, "--batch-size", size)
    assert code == 0
    assert json.loads((tmp_path / "latency.json").read_text())["batch"] == size
    assert f"for the whole network at batch {size} on cpu" in out
    assert "kinds of blocks and stand-ins timed: latency.json" in out


def test_damaged_and_foreign_tables_are_refused(run, tmp_path):
    words = ("compress", NETWORK, DATA, "--latency", "0.6", *FEW, "--out", "o", "--latency-from")
    (tmp_path / "bad.json").write_text('{"entries": ')
    for file, message in (("bad.json", "is an invalid latency table"), ("none.json", "cannot read the latencies")):
        code, _, err = run(*words, file)
        assert (code, message in err) == (2, True)
    run("latency", PLAIN, "--shape", "1,8,8", "--out", "plain.json")
    code, _, err = run(*words, "plain.json")
    assert code == 2
    assert "has no entry for" in err
    assert not list(tmp_path.rglob("model.safetensors"))


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("return 1.0 + sum(p.numel() for p in module.parameters())", 0, ""),
        ("raise OSError('no phone')", 2, "raised OSError"),
        ("return float('nan')", 2, "returned nan"),
        ("return -2", 2, "returned -2"),
    ],
)
def test_a_function_of_the_user(run, tmp_path, body, code, message):
    (tmp_path / "own.py").write_text(f"def ms(module, shape):\n    {body}\n")
    words = ("compress", NETWORK, DATA, "--latency", "0.6", *FEW, "--latency-from", "own.py:ms", "--out", "o")
    found, _, err = run(*words)
    assert found == code
    assert message in err
    if not code:
        record = json.loads((tmp_path / "o" / "record.json").read_text())
        assert record["planning"]["latency_source"] == "own.py:ms"
