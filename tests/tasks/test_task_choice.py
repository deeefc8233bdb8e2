"""Which task a network does is known from its class, then from its labels; else nobody says so."""

import pytest
import torch
from torch import nn

import shoal
from networks_by_task import Encoder, Restorer, Segmenter, Trunk, classifier, images, made, seeded
from shoal.batches import as_batch
from shoal.errors import DataError, PluginError, UsageError
from shoal.tasks import TASKS, OutputRequest, Task
from shoal.tasks.choice import TASKS as TABLE


def chosen(model, item):
    return OutputRequest().choose(model, as_batch(item))


def test_labels_tell_the_task():
    x = images(4)
    pixels = torch.randint(0, 3, (4, 12, 12), generator=seeded())
    assert chosen(made(Segmenter), (x, pixels)).task is TASKS["segmentation"]
    assert chosen(made(Restorer), (x, x)).task is TASKS["restoration"]
    assert chosen(made(Encoder), (x, torch.zeros(4, 8))).task is TASKS["regression"]
    assert chosen(classifier(), (torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))).task is TASKS["classification"]
    nothing = chosen(made(Encoder), x)
    assert nothing.task is None
    assert "labels" in nothing.why


@pytest.mark.parametrize("name", ["segmentation", "embedding", "restoration", "regression", "denoising"])
def test_a_task_that_is_asked_for_says_how_outputs_are_read(name):
    network = {"segmentation": Segmenter, "embedding": Encoder}.get(name, Restorer)
    request = OutputRequest(task=name)
    model, x = made(network), images(4)
    reading = request.read(request.choose(model, as_batch(x)), model, [x])
    kinds = {"segmentation": "classes", "embedding": "direction"}
    assert [head.task for head in reading.outputs] == [kinds.get(name, "values")]
    assert reading.outputs[0].why == f"the task is {name}"


def test_only_the_main_output_counts_where_a_task_was_asked_for():
    model, x = made(Segmenter), images(4)
    for request, names in ((OutputRequest(task="segmentation"), ["out"]), (OutputRequest(), ["out", "aux"])):
        reading = request.read(request.choose(model, as_batch(x)), model, [x])
        assert [head.name for head in reading.outputs] == names
    named = OutputRequest("aux", "segmentation")
    reading = named.read(named.choose(model, as_batch(x)), model, [x])
    assert [(head.name, head.task) for head in reading.outputs] == [("aux", "classes")]


def test_unknown_tasks_are_refused_before_anything_runs():
    with pytest.raises(UsageError, match="no task 'segmentaton'") as error:
        shoal.CompressConfig(task="segmentaton")
    assert "segmentation" in error.value.hint
    with pytest.raises(UsageError, match="expected a task"):
        shoal.ScanConfig(task=3)


def test_a_task_of_another_distribution_is_found_by_its_name(install_third_party):
    mine = Task("colour")
    install_third_party("shoal.tasks", TABLE, colour=mine)
    assert OutputRequest(task="colour").choose(classifier(), as_batch(images(2))).task is mine


def test_an_entry_point_that_is_no_task_is_refused(install_third_party):
    install_third_party("shoal.tasks", TABLE, colour="blue")
    with pytest.raises(PluginError, match=r"expected a shoal.tasks.Task"):
        OutputRequest(task="colour")


def test_annotations_stay_with_their_samples():
    boxes = [{"boxes": torch.zeros(i, 4), "labels": torch.zeros(i)} for i in range(3)]
    batch = as_batch(([*images(3)], boxes))
    assert batch.size == 3
    assert batch.target is None
    assert [len(row["boxes"]) for row in batch.rest(1).labels] == [1, 2]
    assert batch.take(1).to("cpu").cloned().labels == (boxes[0],)
    with pytest.raises(DataError, match="2 annotations for 3 samples"):
        as_batch((images(3), boxes[:2]))
    with pytest.raises(DataError, match=r"different shapes: \(3, 4, 4\) and \(3, 8, 8\)"):
        as_batch(([torch.zeros(3, 8, 8), torch.zeros(3, 4, 4)], boxes[:2]))


def test_classes_of_transformers_and_torchvision_say_what_they_are_for():
    torchvision = pytest.importorskip("torchvision", reason="pip install 'shoal[vision]'")
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    assert chosen(model, images(1)).task is TASKS["segmentation"]
    transformers = pytest.importorskip("transformers", reason="pip install 'shoal[text]'")
    sizes = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 20}
    heads = {"encoder_attention_heads": 1, "decoder_attention_heads": 1}
    bart = transformers.BartForConditionalGeneration(transformers.BartConfig(**sizes, **heads))
    assert chosen(bart, {"input_ids": torch.ones(1, 3, dtype=torch.long)}).task is TASKS["seq2seq"]
    assert isinstance(bart, nn.Module)
    assert not isinstance(bart, Trunk)
