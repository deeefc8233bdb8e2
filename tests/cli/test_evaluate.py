import json

import pytest
import transformers

import language
from shoal.measure import TaskResults
from shoal.pipeline import CompressConfig, RemoveBlocks, compress
from shoal.record import TaskScore
from shoal.store import read_record


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "original"
    language.llama(layers=3, vocab_size=120).save_pretrained(source)
    language.save_tokenizer(source)
    model = transformers.LlamaForCausalLM.from_pretrained(source).eval()
    loader = [{"input_ids": language.tokens(4)}]
    quick = CompressConfig(images=4, validation_images=4, latency_seconds=0.001)
    result = compress(model, loader, RemoveBlocks(1), validation=loader, test=loader, config=quick)
    out = tmp_path / "out"
    result.save(out)
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps({**plan, "model": f"hf:{source}"}))
    return out


def test_scores_go_into_record_and_report_and_are_printed(folder, run, monkeypatch):
    score = TaskScore(
        task="fish", metric="acc", n=40, original=0.75, compressed=0.5, drop=0.25, drop_interval=(0.1, 0.4),
        method="Tango's score interval",
    )  # fmt: skip
    asked = []

    def evaluate(original, compressed, tokenizer, config):
        asked.append((original.config.num_hidden_layers, len(tokenizer), config))
        return TaskResults([score], ["left out"], "lm-eval 0")

    monkeypatch.setattr("shoal.cli.evaluate.evaluate_tasks", evaluate)
    line = ("eval", str(folder), "--trust-code", "--tasks", "fish,acc", "--limit", "40", "--shots", "2")
    code, out, err = run(*line)
    assert code == 0, err
    assert "fish, acc" in out
    assert "lost 25" in out
    assert "10.00 lost to 40.00 lost" in out
    config = asked[0][2]
    assert (asked[0][0], list(config.tasks), config.limit, config.shots) == (3, ["fish", "acc"], 40, 2)
    record = read_record(folder)
    assert record.evaluations[0].scores == [score]
    page = (folder / "report.html").read_text()
    assert 'id="tasks"' in page
    assert "fish, acc" in page
    code, out, _ = run(*line, "--json")
    assert json.loads(out)["scores"][0]["drop"] == 0.25
    assert len(read_record(folder).evaluations) == 2


def test_wrong_use(run, tmp_path):
    assert run("eval", str(tmp_path), "--tasks", " ")[0] == 2
    code, _, err = run("eval", str(tmp_path), "--tasks", "fish")
    assert code == 2
    assert "no output folder" in err
