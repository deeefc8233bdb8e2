"""One score for each pixel is the logit of the foreground: every figure is that of the same network with (0, x)."""

import pytest
import torch
from torch import nn

import shoal
from networks_by_task import Trunk, images, made, seeded
from shoal.batches import Batch, as_batch
from shoal.errors import DataError, UsageError
from shoal.measure import compare, paired_predictions, reading_of
from shoal.recover import DistillConfig
from shoal.recover.train_step import DistillStep
from shoal.tasks import TASKS, OutputRequest, compare_metrics
from teaching import engine

QUICK = {"latency_seconds": 0.01}
EXPECTED = TASKS["segmentation"].expectation


class Logit(nn.Module):
    """One score for each pixel, some above and some below 0."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(4, 1)

    def forward(self, x):
        return 4 * self.trunk(x)


class TwoScores(Logit):
    def forward(self, x):
        logits = super().forward(x)
        return torch.cat([torch.zeros_like(logits), logits], dim=1)


class Probability(Logit):
    def forward(self, x):
        return super().forward(x).sigmoid()


class Squeezed(Logit):
    def forward(self, x):
        return super().forward(x).squeeze(1)


def masks(count=6):
    with torch.no_grad():
        answers = made(Logit)(images(count)).squeeze(1) > 0
    flipped = torch.rand(answers.shape, generator=seeded(3)) < 0.2
    return (answers ^ flipped).long()


FORMS = {
    "integers": lambda mask: mask,
    "uint8": lambda mask: mask.to(torch.uint8),
    "booleans": lambda mask: mask.bool(),
    "floats": lambda mask: mask.float(),
    "one channel": lambda mask: mask[:, None],
    "floats of one channel": lambda mask: mask[:, None].float(),
    "pixels without a class": lambda mask: mask.masked_fill(torch.rand(mask.shape, generator=seeded(4)) < 0.1, 255),
}


def data(form="integers", count=6):
    return [(images(count), FORMS[form](masks(count)))]


def without_block(network):
    model = made(network)
    nn.init.zeros_(model.trunk.blocks[1].conv2.weight)
    return model


@pytest.mark.parametrize("form", FORMS)
def test_masks_of_any_form_have_the_figures_of_two_scores(form):
    pairs, figures = data(form), []
    for network in (Logit, TwoScores):
        models = made(network), without_block(network)
        reading = reading_of(models[0], pairs, expected=EXPECTED)
        before, after = paired_predictions(models, pairs, reading=reading)
        quality = compare(before, after, "test")
        figures.append((quality, compare_metrics(TASKS["segmentation"], *models, pairs)))
    assert figures[0] == figures[1]
    quality, [miou, accuracy] = figures[0]
    assert quality.kl > 1e-4
    assert 0 < quality.agreement < 1
    assert quality.loss_increase is not None
    assert (miou.label, miou.against, accuracy.against) == ("mIoU", "labels", "labels")
    assert 0.3 < miou.original < 0.95


def test_the_figures_are_those_of_a_few_lines_of_torch():
    model, x, labels = made(Logit), images(6), masks()
    config = shoal.CompressConfig(task="segmentation", **QUICK)
    result = shoal.compress(model, [(x, labels[:, None].float())], shoal.RemoveBlocks(1), config=config)
    with torch.no_grad():
        p, q = (network(x).double().sigmoid() for network in (model, result.model))
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert result.record.comparison.kl == pytest.approx(float(divergence.mean()), rel=1e-4)
    answer, truth = q.squeeze(1) > 0.5, labels.bool()
    shares = [float((a & b).sum() / (a | b).sum()) for a, b in ((answer, truth), (~answer, ~truth))]
    assert result.record.comparison.metrics[0].compressed == pytest.approx(sum(shares) / 2)
    assert "logit of class 1" in result.record.outputs.outputs[0].why


@pytest.mark.parametrize("form", ["integers", "floats of one channel"])
def test_a_scan_of_one_score_is_that_of_two(form):
    config = shoal.ScanConfig(layers=False, task="segmentation")
    one, two = (shoal.scan(made(network), data(form), config=config) for network in (Logit, TwoScores))
    assert one.baseline == two.baseline
    assert one.baseline.loss is not None
    ablations = [[block.ablations for block in record.blocks] for record in (one, two)]
    assert ablations[0] == ablations[1]


@pytest.mark.heavy
def test_a_plan_and_its_recovery_are_those_of_two_scores():
    config = shoal.CompressConfig(task="segmentation", stand_ins=("conv3",), table_refit=False, **QUICK)
    one, two = (
        shoal.compress(made(network), data(), shoal.Budget(macs=0.7), validation=data(), recovery=3, config=config)
        for network in (Logit, TwoScores)
    )
    assert one.plan.actions == two.plan.actions
    assert one.record.recovery.divergence_before == pytest.approx(two.record.recovery.divergence_before, rel=1e-5)
    assert one.record.recovery.divergence_after == pytest.approx(two.record.recovery.divergence_after, rel=1e-3)
    assert one.record.recovery.divergence_after <= one.record.recovery.divergence_before


@pytest.mark.parametrize("settings", [{}, {"labels": 1.0, "temperature": 2.0}])
@pytest.mark.parametrize("form", ["integers", "floats of one channel"])
def test_gradients_of_recovery_are_those_of_two_scores(form, settings):
    gradients = []
    for network in (Logit, TwoScores):
        teacher, student, [pair] = made(network), without_block(network), data(form)
        reading = reading_of(teacher, [pair], expected=EXPECTED)
        step = DistillStep(teacher, [], DistillConfig(**settings), engine(), features=0.0, reading=reading)
        step.backward(student, as_batch(pair), 0)
        gradients.append(student.trunk.stem.weight.grad)
    assert float(gradients[0].abs().max()) > 0
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-7)


def test_without_labels_the_original_is_the_reference():
    one, two = (
        compare_metrics(TASKS["segmentation"], made(network), without_block(network), [images(6)])
        for network in (Logit, TwoScores)
    )
    assert one == two
    assert one[0].against == "original"
    assert one[0].compressed < 1


def test_probabilities_are_not_read_as_logits():
    config = shoal.CompressConfig(task="segmentation", **QUICK)
    with pytest.raises(
        UsageError, match=r"Probability .* from 0 to 1, as those of probab.*\n *Return what the sigmoid"
    ):
        shoal.compress(made(Probability), data(), shoal.RemoveBlocks(1), config=config)
    with pytest.raises(UsageError, match=r"from 0 to 1"):
        shoal.scan(made(Probability), data(), config=shoal.ScanConfig(task="segmentation"))


def test_logits_of_one_mini_batch_may_be_from_0_to_1():
    model = nn.Conv2d(3, 1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0), model.bias.fill_(0.5)
    within = torch.zeros(2, 3, 4, 4)
    assert reading_of(model, [within, within - 1], expected=EXPECTED).outputs[0].binary
    with pytest.raises(UsageError, match="from 0 to 1"):
        reading_of(model, [within, within], expected=EXPECTED)


def test_scores_without_an_axis_of_classes_are_refused():
    with pytest.raises(DataError, match=r"\(6, 12, 12\) for inputs .*\n *Return \(6, 1, 12, 12\)"):
        shoal.scan(made(Squeezed), data(), config=shoal.ScanConfig(task="segmentation"))


def test_labels_of_a_third_class_are_refused():
    labels = masks()
    labels[0, 0, 0] = 2
    config = shoal.CompressConfig(task="segmentation", **QUICK)
    with pytest.raises(DataError, match=r"label 2 does not fit a model with 2 classes"):
        shoal.compress(made(Logit), [(images(6), labels)], shoal.RemoveBlocks(1), config=config)


def test_what_the_class_of_a_network_tells_is_refuted_by_numbers_for_each_pixel():
    """A network of torchvision with one score may have been made to predict a depth."""
    model, x = made(type("Deep", (Logit,), {"__module__": "torchvision.models.segmentation.deep"})), images(6)
    asked, depth = OutputRequest(task="segmentation"), torch.rand(6, 1, 12, 12, generator=seeded(5))
    for target in (None, masks(), masks()[:, None].float()):
        assert OutputRequest().choose(model, Batch((x,), target=target)).name == "segmentation"
    assert asked.choose(model, Batch((x,), target=depth)).name == "segmentation"
    choice = OutputRequest().choose(model, Batch((x,), target=depth))
    assert choice.name not in ("segmentation", None)
    assert [head.task for head in OutputRequest().read(choice, model, [(x, depth)]).outputs] == ["values"]


class OneClassByQueries(nn.Module):
    """A class and a mask for each of two queries; the last class stands for no object."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Trunk(4, 2)

    def forward(self, x):
        return {"class_queries_logits": torch.ones(len(x), 2, 2), "masks_queries_logits": self.trunk(x)}


def test_queries_of_one_class_are_no_logits():
    model = made(OneClassByQueries)
    assert compare_metrics(TASKS["segmentation"], model, model, [images(4)]) == []
