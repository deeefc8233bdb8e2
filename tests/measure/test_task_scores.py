import json
import random
import sys
import types

import numpy as np
import pytest
import torch

import language
from shoal.errors import ConsentError, DataError, UsageError
from shoal.measure import TaskConfig, evaluate_tasks, paired_drop, paired_scores


def sample(number, filter_name="none", **metrics):
    return {"doc_id": number, "filter": filter_name, "metrics": list(metrics), **metrics}


def logged(values, metric="acc"):
    return {"t": [sample(number, **{metric: value}) for number, value in enumerate(values)]}


def test_right_and_wrong_are_paired_by_sample():
    before, after = [1, 1, 1, 0, 1, 0, 1, 1], [1, 0, 0, 1, 1, 0, 1, 0]
    scores, notes = paired_scores(logged(before), logged(after), {"t": {"acc": True}})
    score = scores[0]
    assert (score.task, score.metric, score.n, notes) == ("t", "acc", 8, [])
    assert (score.original, score.compressed, score.drop) == (6 / 8, 4 / 8, 2 / 8)
    assert score.drop_interval == paired_drop(8, 3, 1)


def test_samples_are_matched_by_number_not_by_order():
    after = {"t": list(reversed(logged([1, 0, 0, 1])["t"]))}
    scores, _ = paired_scores(logged([1, 0, 0, 1]), after, {})
    assert scores[0].drop == 0
    assert scores[0].drop_interval == paired_drop(4, 0, 0)


def test_a_metric_that_is_better_where_lower_drops_where_it_rises():
    scores, _ = paired_scores(logged([1.0, 2.0, 3.0], "nll"), logged([1.5, 2.5, 3.8], "nll"), {"t": {"nll": False}})
    assert scores[0].drop == pytest.approx(0.6)
    low, high = scores[0].drop_interval
    assert 0 < low < 0.6 < high
    assert scores[0].method == "Student's t interval"


def test_filters_are_told_apart_and_what_has_no_number_is_noted():
    def both(value):
        return {
            "t": [
                sample(number, name, exact=value if name == "strict" else 1, words=(-3.0, 7))
                for number in range(3)
                for name in ("strict", "loose")
            ]
        }

    scores, notes = paired_scores(both(1), both(0), {})
    assert {score.metric: score.drop for score in scores} == {"exact (strict)": 1, "exact (loose)": 0}
    assert notes == ["t: 'words' has no number for each sample and was left out."] * 2


def test_other_samples_are_refused():
    with pytest.raises(DataError, match="not asked the same samples of 't'"):
        paired_scores(logged([1, 1]), logged([1]), {})


TASK = """
task: fish
dataset_path: json
dataset_kwargs:
  data_files: {{test: "{file}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{[right, wrong]}}}}"
doc_to_target: 0
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def tasks(tmp_path):
    folder = tmp_path / "tasks"
    folder.mkdir()
    rows = [{"start": "the blue fish", "right": " swims", "wrong": " light"} for _ in range(3)]
    rows += [{"start": f"shoal {word}", "right": " in deep water", "wrong": " turns"} for word in ("a", "and", "the")]
    (folder / "fish.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "fish.yaml").write_text(TASK.format(file=folder / "fish.jsonl"))
    return folder


class FakeHarness(types.ModuleType):
    """What Shoal calls of lm-eval; the logits of each network decide its answers."""

    def install(self, monkeypatch):
        monkeypatch.setattr("shoal.measure.task_scores.version", lambda name: "0")
        parts = {
            name: types.ModuleType(name) for name in ("lm_eval.tasks", "lm_eval.models", "lm_eval.models.huggingface")
        }
        parts["lm_eval.tasks"].TaskManager = lambda include_path: types.SimpleNamespace(all_tasks=["fish", "broken"])
        parts["lm_eval.models.huggingface"].HFLM = lambda pretrained, tokenizer, batch_size: pretrained
        for name, module in {"lm_eval": self, **parts}.items():
            monkeypatch.setitem(sys.modules, name, module)

    def simple_evaluate(self, model, tasks, limit, **settings):
        random.seed(settings["random_seed"])
        np.random.seed(settings["numpy_random_seed"])
        torch.manual_seed(settings["torch_random_seed"])
        if "broken" in tasks:
            raise FileNotFoundError("the data set 'broken' is not on this machine")
        logits = model(input_ids=language.tokens(count=limit)).logits[:, -1]
        samples = [sample(n, acc=float(row[0] > row[1])) for n, row in enumerate(logits)]
        return {"samples": {"fish": samples}, "higher_is_better": {"fish": {"acc": True}}}


@pytest.fixture
def harness(monkeypatch):
    made = FakeHarness("lm_eval")
    made.install(monkeypatch)
    return made


def test_both_networks_are_asked_and_left_as_they_were(harness):
    models = language.llama(2).train(), language.llama(2, hidden_size=16)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    results = evaluate_tasks(*models, None, TaskConfig(["fish"], limit=12))
    assert results.scores[0].n == 12
    assert models[0].training
    assert not models[1].training
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_unknown_tasks_missing_data_and_a_missing_package(harness, monkeypatch):
    model = language.llama(1)
    with pytest.raises(UsageError, match="lm-eval knows no task 'fisch'") as caught:
        evaluate_tasks(model, model, None, TaskConfig(["fisch"]))
    assert "fish" in caught.value.hint
    with pytest.raises(DataError, match="data set 'broken' is not on this machine"):
        evaluate_tasks(model, model, None, TaskConfig(["broken"], limit=2))
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match="tasks need the package") as caught:
        evaluate_tasks(model, model, None, TaskConfig(["fish"]))
    assert "shoal[eval]" in caught.value.hint


@pytest.mark.parametrize(
    "line",
    [
        "doc_to_text: !function code.text",
        "process_docs: !function  x.y",
        "include: ../elsewhere.yaml",
        "doc_to_text: \"{{ ''.__class__.__mro__ }}\"",
        "doc_to_text: \"{{ x|attr('a') }}\"",
        "metric_list: [{metric: a, hf_evaluate: true}]",
        "  - metric: ./here",
        "class: !function task.Fish",
        "unsafe_code: true",
        "x: !!python/object/apply:os.system [ls]",
    ],
)
def test_a_task_that_may_run_code_needs_consent(tasks, harness, line):
    (tasks / "deep").mkdir()
    (tasks / "deep" / "other.yml").write_text(f"task: other\n{line}\n")
    model = language.llama(1)
    config = TaskConfig(["fish"], include=tasks, limit=2)
    with pytest.raises(ConsentError, match=r"other\.yml' holds .*which may run code"):
        evaluate_tasks(model, model, None, config)
    trusting = TaskConfig(["fish"], include=tasks, limit=2, trust_code=True)
    assert evaluate_tasks(model, model, None, trusting).scores


def test_a_folder_that_is_none(harness, tmp_path):
    model = language.llama(1)
    with pytest.raises(UsageError, match="there is no folder"):
        evaluate_tasks(model, model, None, TaskConfig(["fish"], include=tmp_path / "none"))


def test_lm_eval_itself_measures_a_task_made_here(tasks, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="shoal[eval] is not installed: lm-eval brings some fifty packages")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    tokenizer = language.save_tokenizer(tmp_path / "tokenizer")
    models = language.llama(2, vocab_size=120), language.llama(1, vocab_size=120)
    results = evaluate_tasks(*models, tokenizer, TaskConfig(["fish"], include=tasks, limit=5))
    assert [(score.task, score.metric, score.n) for score in results.scores] == [("fish", "acc", 5)]
    assert results.harness.startswith("lm-eval 0.")
    same = evaluate_tasks(models[0], models[0], tokenizer, TaskConfig(["fish"], include=tasks))
    assert (same.scores[0].drop, same.scores[0].n) == (0, 6)
