"""Targets tell what a network is for only where they can be nothing else, and metrics look at what the user named."""

import pytest
import torch
from torch import nn

import shoal
from networks_by_task import Encoder, Restorer, Trunk, images, made, seeded
from shoal.batches import as_batch
from shoal.errors import UsageError
from shoal.tasks import TASKS, OutputRequest, compare_metrics


class Single(nn.Module):
    """One value for each pixel, as a network that finds the foreground has it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(6, 1)

    def forward(self, x):
        return self.trunk(x)


def recognised(model, target):
    return OutputRequest().choose(model, as_batch((images(6), target))).name


def test_labels_in_the_form_of_numbers_are_no_regression():
    model, generator = made(Encoder), seeded(1)
    assert recognised(model, torch.randn(6, 8, generator=generator)) == "regression"
    several = torch.rand(6, 8, generator=generator).round()
    assert recognised(model, several) is None  # any number of classes at once: logits are not of this scale
    one_hot = nn.functional.one_hot(torch.arange(6), 8).float()
    assert recognised(model, one_hot) == "classification"
    assert recognised(model, 0.9 * one_hot + 0.1 / 8) == "classification"
    mask = torch.rand(6, 1, 12, 12, generator=generator)
    assert recognised(made(Single), mask) == "restoration"
    assert recognised(made(Single), mask.round()) is None
    # Two samples of zeros and ones, as counts may be, among others.
    counts = torch.tensor([0.0, 1.0, 4.0, 2.0, 0.0, 7.0])
    assert recognised(nn.Sequential(made(Encoder), nn.Linear(8, 1)).eval(), counts) == "regression"


@pytest.mark.parametrize(
    ("options", "task"),
    [
        ({"num_labels": 3}, "classification"),
        ({"num_labels": 1}, "regression"),
        ({"num_labels": 3, "problem_type": "regression"}, "regression"),
        ({"num_labels": 3, "problem_type": "multi_label_classification"}, None),
    ],
)
def test_the_configuration_says_what_a_head_is_for(options, task):
    transformers = pytest.importorskip("transformers", reason="pip install 'shoal[text]'")
    sizes = {
        "vocab_size": 9,
        "hidden_size": 4,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 4,
    }
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **options)).eval()
    assert OutputRequest().known(model).name == task


class Parts(Encoder):
    def forward(self, x):
        whole = super().forward(x)
        return {"first": whole[:, :4], "second": whole[:, 4:], "third": {"deep": 2 * whole}}


def off(model):
    """The network without its second block."""
    import copy

    other = copy.deepcopy(model)
    nn.init.zeros_(other.trunk.blocks[1].conv2.weight)
    return other


@pytest.mark.parametrize(("name", "path"), [("second", ("second",)), ("third", ("third", "deep"))])
def test_metrics_are_those_of_the_output_that_was_named(name, path):
    model, x = made(Parts), images(6)
    target = torch.randn(6, 4 if name == "second" else 8, generator=seeded(2))
    choice = OutputRequest(name, "regression").choose(model, as_batch((x, target)))
    got = {metric.name: metric for metric in compare_metrics(choice.task, model, off(model), [(x, target)])}
    for network, figure in ((model, got["rmse"].original), (off(model), got["rmse"].compressed)):
        with torch.no_grad():
            output = network(x)
        for part in path:
            output = output[part]
        assert figure == pytest.approx(float((output.double() - target).square().mean().sqrt()))


def test_the_output_that_was_named_is_measured_by_compress_and_tells_the_task():
    model, x = made(Parts), images(6)
    config = shoal.CompressConfig(task="embedding", output="second", latency_seconds=0.01)
    result = shoal.compress(model, [x], shoal.RemoveBlocks(1), test=[x], config=config)
    cosine = {metric.name: metric for metric in result.record.comparison.metrics}["cosine"]
    with torch.no_grad():
        before, after = (network(x)["second"].double() for network in (model, result.model))
    assert cosine.compressed == pytest.approx(float(torch.cosine_similarity(before, after).mean()))
    numbers = (x, torch.randn(6, 4, generator=seeded()))
    assert OutputRequest("second").choose(model, as_batch(numbers)).name == "regression"
    assert OutputRequest().choose(model, as_batch(numbers)).name is None
    with pytest.raises(UsageError, match="no output 'fourth'"):
        OutputRequest("fourth").choose(model, as_batch(numbers))


def test_whole_numbers_are_targets_of_a_regression_and_other_axes_are_none():
    model = nn.Sequential(made(Encoder), nn.Linear(8, 1)).eval()
    ages = torch.tensor([[31], [4], [57], [80], [12], [44]])
    x = images(6)
    with torch.no_grad():
        error = (model(x).double() - ages).square().mean().sqrt()
    for labels in (ages, ages[:, 0], ages.float()):
        got = {m.name: m for m in compare_metrics(TASKS["regression"], model, model, [(x, labels)])}
        assert (got["rmse"].against, got["rmse"].original) == ("labels", pytest.approx(float(error)))
    turned = images(6).transpose(1, 3)  # as many numbers, but not those of the output's places
    [_, rmse] = compare_metrics(TASKS["regression"], made(Restorer), made(Restorer), [(x, turned)])
    assert rmse.against == "original"
