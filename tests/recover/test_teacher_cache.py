"""What a teacher says, on disk: the same student, a teacher that is asked once, and what truncation leaves out."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from learners import Learner, config, data, validation
from shoal.batches import Batch
from shoal.errors import FolderError, UsageError
from shoal.measure.output_reading import OutputReading, Reading
from shoal.recover import DistillConfig, distill
from shoal.recover.distill import CHECKPOINT
from shoal.recover.teacher_cache import FOLDER, TeacherCache
from shoal.training.engine import Engine

SCORES = Reading((OutputReading("", "classes", ""),))


def learned(folder, training=data, **more):
    settings = replace(config, **more)
    return distill(
        Learner(0), Learner(1), training, validation=validation, budget=8, config=settings, folder=folder
    )  # fmt: skip


class Calls:
    """Counts the forwards of every learner that is a teacher."""

    def __init__(self, monkeypatch):
        self.count = 0
        forward = Learner.forward

        def counted(network, x):
            self.count += not network.head.weight.requires_grad and not torch.is_grad_enabled()
            return forward(network, x)

        monkeypatch.setattr(Learner, "forward", counted)


class Wide(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = torch.nn.Linear(6, 50)

    def forward(self, x):
        return 3 * self.head(x)


def test_outputs_that_are_kept_whole_make_the_very_same_student(tmp_path):
    expected, result = learned(None), learned(tmp_path, cache_teacher=3)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], value)
    assert (result.recovery.teacher_cache.error, result.recovery.teacher_cache.missed) == (0, 0)


def test_what_truncation_leaves_out_is_the_divergence_from_the_teacher(tmp_path):
    teacher, x = Wide().eval(), torch.randn(7, 6)
    cache = TeacherCache(tmp_path, teacher, "digest", Engine("cpu", "fp32"), SCORES, 5)
    kept = cache.outputs(Batch((x,)))[""]
    logits = teacher(x).detach()
    values, indices = logits.log_softmax(1).topk(5, 1)
    torch.testing.assert_close(kept.gather(1, indices), values)
    torch.testing.assert_close(kept.exp().sum(1), torch.ones(7))
    others = kept.exp().scatter(1, indices, 0)
    torch.testing.assert_close(others.max(1).values, others.sum(1) / 45)
    divergence = F.kl_div(kept, logits.log_softmax(1), log_target=True, reduction="batchmean")
    record = cache.record()
    assert record.error == pytest.approx(float(divergence), rel=1e-4)
    assert record.error > 0.01
    assert (record.n, record.top_k) == (7, 5)


def test_scores_along_another_axis_and_values_are_kept_too(tmp_path):
    reading = Reading((OutputReading("a", "classes", "", axis=1), OutputReading("b", "values", "", scale=1.0)))
    outputs = {"a": torch.randn(2, 9, 4), "b": torch.randn(2, 30)}

    class Both(torch.nn.Module):
        def forward(self, x):
            return outputs

    cache = TeacherCache(tmp_path, Both(), "digest", Engine("cpu", "fp32"), reading, 8)
    kept = cache.outputs(Batch((torch.randn(2, 1),)))
    torch.testing.assert_close(kept["a"], outputs["a"].log_softmax(1), msg="one class is left, so nothing is lost")
    assert torch.equal(kept["b"], outputs["b"])


def test_a_teacher_is_asked_once_for_each_part_and_never_again(tmp_path, monkeypatch):
    calls = Calls(monkeypatch)
    first = learned(tmp_path, cache_teacher=2)
    kept = list((tmp_path / FOLDER).rglob("*.safetensors"))
    assert len(kept) == 8 + 2, "eight steps, each blended anew, and validation as it is and blended"
    asked = calls.count
    (tmp_path / CHECKPOINT).unlink()
    calls.count = 0
    second = learned(tmp_path, cache_teacher=2)
    assert asked - calls.count == len(kept), "only what checks networks and data runs again"
    for name, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[name], value)
    assert first.recovery.teacher_cache == second.recovery.teacher_cache


def test_data_that_comes_otherwise_is_asked_for_again_and_counted(tmp_path):
    drawn = iter(range(1000))

    def images_of(epoch):
        for images, labels in data:
            yield images + 0.01 * next(drawn), labels

    result = learned(tmp_path, training=images_of, cache_teacher=3)
    assert result.recovery.teacher_cache.missed >= 8
    assert result.recovery.kept_step


def test_a_damaged_file_is_named(tmp_path):
    learned(tmp_path, cache_teacher=2)
    (tmp_path / CHECKPOINT).unlink()
    for path in (tmp_path / FOLDER).rglob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    with pytest.raises(FolderError, match="is damaged"):
        learned(tmp_path, cache_teacher=2)


def test_parts_of_a_mini_batch_are_kept_apart(tmp_path):
    expected, result = learned(None, accumulate=3), learned(tmp_path, accumulate=3, cache_teacher=3)
    for name, value in expected.model.state_dict().items():
        assert torch.equal(result.model.state_dict()[name], value)


@pytest.mark.parametrize(
    ("budget", "folder", "message"), [("1m", "run", "does not say how many"), (8, None, "there is no folder")]
)
def test_what_cannot_be_kept_is_refused(tmp_path, budget, folder, message):
    with pytest.raises(UsageError, match=message):
        distill(
            Learner(0),
            Learner(1),
            data,
            validation=validation,
            budget=budget,
            config=replace(config, cache_teacher=2),
            folder=folder and tmp_path / folder,
        )


@pytest.mark.parametrize("other", [{"features": 1.0}, {"shard": True}, {"lora": 4}, {"cache_teacher": -1}])
def test_what_needs_the_teacher_itself_is_refused(other):
    with pytest.raises(UsageError, match="cache_teacher"):
        DistillConfig(**{"cache_teacher": 8, **other})


def test_features_are_left_out_by_default():
    assert DistillConfig(cache_teacher=8).weight_of_features("sgd") == 0
