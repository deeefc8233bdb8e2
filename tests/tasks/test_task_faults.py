"""What does not fit a task is refused in one sentence with the way out, before anything is measured."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

import shoal
from networks_by_task import Denoiser, Encoder, Restorer, Segmenter, classifier, images, made, seeded
from shoal.batches import Batch, TilePlace
from shoal.errors import DataError, NonFiniteError, ShoalError, UsageError
from shoal.measure.classes import checked_labels
from shoal.tasks import TASKS, Metric, Task, check_annotations, check_metrics, compare_metrics
from shoal.tasks.evaluation import _Bootstrap
from shoal.tasks.mosaic import Mosaics

QUICK = {"latency_seconds": 0.01}


def compress(model, data, **options):
    return shoal.compress(model, data, shoal.RemoveBlocks(1), config=shoal.CompressConfig(**QUICK, **options))


@pytest.mark.parametrize(
    ("task", "network", "reason"),
    [
        ("segmentation", Encoder, r"needs scores of classes for each pixel .*, and the output is of shape \(4, 8\)"),
        ("restoration", Encoder, r"needs images .*, and the output is of shape \(4, 8\)"),
        ("classification", Restorer, r"needs scores of classes \(samples, classes\), and the output is of shape"),
        ("classification", Segmenter, r"needs scores of classes .*'out' is of shape .*, 'aux' is of shape"),
        ("detection", Encoder, "needs a network that returns boxes, and Encoder returns none"),
        ("detection", Segmenter, "needs a network that returns boxes"),
        ("seq2seq", Encoder, r"needs a network that writes sequences, with generate\(\) or for CTC"),
    ],
)
def test_a_task_that_the_outputs_cannot_be_of_is_refused(task, network, reason):
    seen = []
    with pytest.raises(
        UsageError, match=rf"the task {task} does not fit \w+: it {reason}[^\n]*\n.*name another: "
    ) as e:
        shoal.compress(
            made(network),
            [images(4)],
            shoal.RemoveBlocks(1),
            config=shoal.CompressConfig(task=task, **QUICK),
            callbacks=lambda stage, done, total: seen.append(stage),
        )
    assert "Traceback" not in str(e.value)
    assert set(seen) <= {"tracing"}
    with pytest.raises(UsageError, match="does not fit"):
        shoal.scan(made(network), [images(4)], config=shoal.ScanConfig(task=task))


def test_the_output_that_is_named_is_the_one_that_has_to_fit():
    class Both(Segmenter):
        def forward(self, x):
            maps = super().forward(x)
            return {"maps": maps["out"], "pooled": maps["out"].mean((2, 3))}

    with pytest.raises(UsageError, match=r"does not fit Both: it needs .*'pooled' is of shape \(4, 3\)"):
        compress(made(Both), [images(4)], task="segmentation", output="pooled")
    assert compress(made(Both), [images(4)], task="segmentation", output="maps").record.outputs.task == "segmentation"
    with pytest.raises(UsageError, match=r"no output 'mask': it returns 'maps', 'pooled'"):
        compress(made(Both), [images(4)], task="segmentation", output="mask")


def raising(*_):
    raise KeyError("left")


FAULTS = {
    "rows": ({"rows": raising}, r"raised KeyError in `rows`: 'left'"),
    "too few rows": ({"rows": lambda output, reference, batch: [0.0]}, r"returned 1 rows for 2 samples"),
    "no rows": ({"rows": lambda output, reference, batch: None}, r"raised TypeError in `rows`"),
    "value": ({"value": raising}, r"raised KeyError in `value`"),
    "a text": ({"value": lambda rows: "good"}, r"returned 'good' in `value`, expected a number"),
    "several numbers": ({"value": lambda rows: torch.ones(2)}, r"returned tensor.* in `value`, expected a number"),
    "nothing": ({"value": lambda rows: None}, r"returned None in `value`, expected a number"),
    "fits": ({"fits": raising}, r"raised KeyError in `fits`"),
    "applies": ({"applies": raising}, r"raised KeyError in `applies`"),
    "groups": ({"groups": raising}, r"raised KeyError in `groups`"),
    "prepare": ({"prepare": raising}, r"raised KeyError in `prepare`"),
    "prepared too few": ({"prepare": lambda rows: rows[:1]}, r"made 1 rows of 2 in `prepare`"),
    "respond": ({"respond": raising}, r"raised KeyError in `respond`"),
}


def own_task(**parts):
    metric = Metric("mine", "Mine", lambda output, reference, batch: [1.0] * batch.size, np.mean)
    return Task("mine", (replace(metric, **parts),))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_metric_of_the_users_own_that_fails_is_named_before_the_work_begins(fault):
    parts, reason = FAULTS[fault]
    seen = []
    with pytest.raises(UsageError, match=rf"the metric Mine {reason}"):
        shoal.compress(
            made(Encoder),
            [(images(4), torch.zeros(4, 8))],
            shoal.RemoveBlocks(1),
            config=shoal.CompressConfig(task=own_task(**parts), **QUICK),
            callbacks=lambda stage, done, total: seen.append(stage),
        )
    assert set(seen) <= {"tracing"}


def metric(**parts):
    return Metric(**({"name": "mine", "label": "Mine", "rows": raising, "value": raising} | parts))


MISMADE = {
    "better": (lambda: metric(better="up"), "the metric Mine has better='up', expected 'higher' or 'lower'"),
    "against": (lambda: metric(against="truth"), "the metric Mine has against='truth', expected 'labels' or"),
    "rows": (lambda: metric(rows="rows"), "the metric Mine has rows='rows', expected a function"),
    "value": (lambda: metric(value=None), "the metric Mine has value=None, expected a function"),
    "respond": (lambda: metric(respond=3), "the metric Mine has respond=3, expected a function"),
    "label": (lambda: metric(label=""), "the metric mine has label='', expected a text"),
    "no name": (lambda: Task(""), "has name='', expected a text"),
    "no tuple": (lambda: Task("t", metric()), r"the task t has metrics=Metric\(.*expected a tuple of metrics"),
    "names": (lambda: Task("t", ("top1",)), r"the task t has metrics=\('top1',\), expected a tuple of metrics"),
    "twice": (lambda: Task("t", (metric(), metric())), r"metrics=\['mine', 'mine'\], expected .* different names"),
    "expectation": (lambda: Task("t", expectation="values"), "expectation='values', expected an Expectation or None"),
    "obstacle": (lambda: Task("t", obstacle="no"), "the task t has obstacle='no', expected a function"),
}


@pytest.mark.parametrize("fault", MISMADE)
def test_a_task_of_the_users_own_is_checked_as_it_is_made(fault):
    make, reason = MISMADE[fault]
    with pytest.raises(UsageError, match=reason):
        make()


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ({"obstacle": raising}, "raised KeyError in `obstacle`: 'left'"),
        ({"dense": raising}, "raised KeyError in `dense`: 'left'"),
        ({"dense": lambda model: "Encoder"}, "raised TypeError in `dense`"),
        ({"annotation_fault": raising}, "raised KeyError in `annotation_fault`: 'left'"),
    ],
)
def test_a_function_of_a_task_that_raises_is_named(parts, reason):
    model = made(Encoder)
    with pytest.raises(UsageError, match=f"the task mine {reason}"):
        compress(model, [(images(2), [{"boxes": 1}, {"boxes": 2}])], task=Task("mine", **parts))
    assert type(model) is Encoder


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), np.float32("nan")])
def test_a_metric_without_a_figure_decides_about_no_drop_and_is_left_out_of_the_record(figure):
    task = own_task(value=lambda rows: figure)
    data = [images(4)]
    record = compress(made(Encoder), data, task=task).record
    assert record.comparison.metrics == []
    assert any("the metric Mine of the original is" in warning for warning in record.warnings)
    with pytest.raises(NonFiniteError, match=r"the metric Mine of the original is .* on 4 samples\n.*Give others"):
        shoal.compress(
            made(Encoder),
            data,
            shoal.MaxDrop(1.0),
            validation=data,
            config=shoal.CompressConfig(task=task, **QUICK),
        )


def test_a_constant_target_has_no_r2_and_says_so():
    record = compress(made(Encoder), [(images(4), torch.ones(4, 8))]).record
    assert [metric.name for metric in record.comparison.metrics] == ["rmse"]
    assert any("R² of the original is nan on 4 samples" in warning for warning in record.warnings)


@pytest.mark.parametrize("label", [7, 3, -1, -2])
def test_labels_that_do_not_fit_are_not_passed_over_in_silence(label):
    labels = torch.zeros(4, 12, 12, dtype=torch.int64)
    labels[0, 0, 0] = label  # of three classes
    model = made(Segmenter)
    notes = []
    [miou, _] = compare_metrics(TASKS["segmentation"], model, model, [(images(4), labels)], notes=notes)
    assert miou.against == "original"
    assert any("labels do not fit the metric mIoU: it compares with the original's" in note for note in notes)


def test_labels_that_are_no_classes_are_no_labels_of_neighbours_and_it_says_so():
    for labels in (torch.arange(4.0) / 3, torch.tensor([0, 1, -100, -100])):
        notes: list[str] = []
        found = compare_metrics(TASKS["embedding"], made(Encoder), made(Encoder), [(images(4), labels)], notes=notes)
        assert [metric.name for metric in found] == ["neighbours", "cosine"]
        assert notes == ["the labels do not fit the metric Nearest neighbour of the same label: it is left out"]


def test_a_single_sample_has_no_neighbours():
    notes: list[str] = []
    data = [(images(1), torch.tensor([0]))]
    found = compare_metrics(TASKS["embedding"], made(Encoder), made(Encoder), data, notes=notes)
    assert [metric.name for metric in found] == ["cosine"]
    assert any("Nearest neighbour of the same label of the original is nan on 1 sample" in note for note in notes)


def test_an_error_is_no_share_of_targets_of_zero():
    """It was said to be all of them for any network, and so no removal cost anything."""
    batch = {"sample": images(4), "timestep": torch.tensor([1, 1, 2, 2]), "labels": torch.zeros(4, 3, 12, 12)}
    model, notes = made(Denoiser), []
    assert compare_metrics(TASKS["denoising"], model, model, [batch], notes=notes) == []
    assert any("is nan on 4 samples; it is left out" in note for note in notes)
    batch["labels"][:2] = 1
    [found] = compare_metrics(TASKS["denoising"], model, model, [batch], notes=notes)
    assert list(found.groups) == ["1"]  # at the other one there is nothing to be a share of


@pytest.mark.parametrize(
    ("task", "network", "labels", "figure"),
    [
        ("regression", Encoder, torch.randn(4, 8, generator=seeded()) + 100, r"R² is -\d+\.\d %, .* nothing 0\.0 %"),
        ("denoising", Denoiser, torch.full((4, 3, 12, 12), -0.1), r"square is \d+\.\d %, .* nothing 100\.0 %"),
    ],
)
def test_an_original_that_knows_nothing_is_not_passed_over_in_silence(task, network, labels, figure):
    model = made(network)
    inputs = {"sample": images(4), "timestep": torch.ones(4)} if network is Denoiser else {"x": images(4)}
    with torch.no_grad():
        right = model(**inputs)
    for target, is_said in ((labels, True), (right, False)):
        notes: list[str] = []
        compare_metrics(TASKS[task], model, model, [inputs | {"labels": target}], notes=notes)
        assert any(re.search(f"no better than chance: the metric .*{figure}", note) for note in notes) is is_said


def test_boxes_of_classes_that_the_network_does_not_know_are_not_passed_over_in_silence():
    pytest.importorskip("pycocotools", reason="pip install 'shoal[tasks]'")
    truth = {"boxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]]), "class_labels": torch.tensor([41])}
    model, notes = Queries().eval(), []
    data = [{"pixel_values": images(2), "labels": [truth, truth]}]
    compare_metrics(TASKS["detection"], model, model, data, notes=notes)
    assert any("no better than chance: the metric mAP is 0.0 %" in note for note in notes)


def test_texts_that_are_alike_do_not_prove_that_all_are():
    [metric] = TASKS["seq2seq"].metrics
    rows = [np.array([1, 4]) for _ in range(4)]
    assert _Bootstrap(metric, rows, rows).drop == pytest.approx((-0.75, 0.75))


def test_pixels_without_a_class_count_nowhere():
    """255, as 8-bit masks have it, is what -100 is; whatever the metric, the damage, the score or the loss."""
    model, x = made(Segmenter), images(4)
    labels = torch.randint(0, 3, (4, 12, 12), generator=seeded())
    labels[:, :3] = 255
    labels[3] = 255
    marks = [labels, labels.masked_fill(labels == 255, -100), labels.to(torch.uint8)]
    seen = []
    for target in marks:
        data = [(x[:3], target[:3]), (x[3:], target[3:])]
        config = shoal.CompressConfig(task="segmentation", **QUICK)
        result = shoal.compress(model, data, shoal.RemoveBlocks(1), validation=list(data), recovery=2, config=config)
        scores = shoal.scan(model, data, config=shoal.ScanConfig(task="segmentation", layers=False)).blocks
        figures = [
            (metric.against, metric.n, metric.original, metric.compressed)
            for metric in result.record.comparison.metrics
        ]
        seen.append((figures, [block.scores for block in scores], result.record.recovery.divergence_after))
    assert seen[0] == seen[1] == seen[2]
    assert {figure[:2] for figure in seen[0][0]} == {("labels", 4)}
    known = [(x[:3], labels[:3])]
    [alone, _] = compare_metrics(TASKS["segmentation"], model, model, known)
    [both, _] = compare_metrics(TASKS["segmentation"], model, model, [*known, (x[3:], labels[3:])])
    assert (both.n, both.original) == (4, pytest.approx(alone.original))


def test_without_a_single_pixel_of_a_class_there_is_no_figure_and_it_says_so():
    labels = torch.full((4, 12, 12), -100)
    record = compress(made(Segmenter), [(images(4), labels)], task="segmentation").record
    assert record.comparison.metrics == []
    assert any("the metric mIoU of the original is nan on 4 samples" in warning for warning in record.warnings)


def test_of_more_classes_than_eight_bits_hold_255_is_one():
    log_probs = torch.zeros(1, 2, 2, 300)
    target = torch.full((1, 2, 2), 255)
    assert checked_labels(target, log_probs).tolist() == target.tolist()
    assert checked_labels(target, log_probs[..., :255]).unique().tolist() == [-100]
    with pytest.raises(DataError, match="label 255 does not fit a model with 255 classes"):
        checked_labels(torch.full((1, 4), 255), torch.zeros(1, 4, 255))  # tokens


def test_without_a_word_there_is_no_word_error_rate():
    [metric] = TASKS["seq2seq"].metrics
    assert np.isnan(metric.value([np.array([3, 0]), np.array([0, 0])]))
    assert metric.value([np.array([3, 0]), np.array([1, 4])]) == 1.0


def test_targets_that_are_no_numbers_are_refused():
    target = images(4)
    target[1, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="targets of a mini-batch hold NaN or Inf: 1 of"):
        compress(made(Restorer), [(images(4), target)])


def box(*values):
    return torch.tensor([values], dtype=torch.float32)


ANNOTATIONS = {
    "nan": ({"boxes": box(0, 0, float("nan"), 4), "labels": torch.tensor([1])}, "NaN or Inf in a box"),
    "backwards": ({"boxes": box(5, 0, 1, 4), "labels": torch.tensor([1])}, "a box that ends before it begins"),
    "no labels": ({"boxes": box(0, 0, 1, 4)}, "an annotation has boxes, expected the tensors boxes and labels"),
    "no tensors": ({"boxes": [[0, 0, 1, 1]], "labels": [1]}, "expected the tensors boxes and labels"),
    "empty": ({}, "an annotation has nothing, expected"),
    "too few labels": ({"boxes": box(0, 0, 1, 4), "labels": torch.tensor([], dtype=torch.int64)}, r"shape \(1, 4\)"),
    "three numbers": ({"boxes": torch.zeros(4, 3), "labels": torch.tensor([1, 1, 1])}, r"boxes of shape \(4, 3\)"),
    "float labels": ({"boxes": box(0, 0, 1, 4), "labels": torch.tensor([1.0])}, "float labels"),
}


@pytest.mark.parametrize("fault", ANNOTATIONS)
def test_annotations_that_cannot_be_used_are_refused(fault):
    annotation, reason = ANNOTATIONS[fault]
    good = {"boxes": torch.zeros(0), "labels": torch.tensor([], dtype=torch.int64)}
    check_annotations(TASKS["detection"], [Batch((images(1),), annotations=(good,))])
    with pytest.raises(DataError, match=rf"{reason}.*\n.*labels are not needed"):
        check_annotations(TASKS["detection"], [Batch((images(2),), annotations=(good, annotation))])


def test_nothing_to_find_is_no_precision():
    pytest.importorskip("pycocotools", reason="pip install 'shoal[tasks]'")
    [metric] = TASKS["detection"].metrics
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    assert np.isnan(metric.value([(empty | {"scores": torch.zeros(0)}, empty)]))


class Queries(torch.nn.Module):
    """A detector as transformers has it: boxes by their middle and size, one class more for no object."""

    class config:  # noqa: N801
        num_labels = 2

    def __init__(self) -> None:
        super().__init__()
        self.encoder = made(Encoder)

    def forward(self, pixel_values):
        sure, nothing, of_class = torch.tensor(
            [[5.0, 0.0], [0.0, 9.0], [0.0, 0.0]]
        )  # of the first query and the second
        logits = torch.stack([sure, of_class, nothing], -1) + 0 * self.encoder(pixel_values)[:, :1, None]
        return {"logits": logits, "pred_boxes": torch.full((len(logits), 2, 4), 0.5)}


def test_boxes_of_queries_are_measured_as_boxes():
    pytest.importorskip("pycocotools", reason="pip install 'shoal[tasks]'")
    truth = {"boxes": torch.tensor([[0.5, 0.5, 0.5, 0.5]]), "class_labels": torch.tensor([0])}
    other = {"boxes": torch.tensor([[0.2, 0.2, 0.1, 0.1]]), "class_labels": torch.tensor([0])}
    model = Queries().eval()
    for label, expected in ((truth, 1.0), (other, 0.0)):
        data = [{"pixel_values": images(2), "labels": [label, label]}]
        [precision] = compare_metrics(TASKS["detection"], model, model, data)
        assert precision.against == "labels"
        assert precision.original == pytest.approx(expected, abs=0.01)
    without = [{"pixel_values": images(2)}]
    [precision] = compare_metrics(TASKS["detection"], model, model, without)
    assert (precision.against, precision.compressed) == ("original", pytest.approx(1.0))


def tiles(image, target, side, starts, number=0):
    places = tuple(TilePlace(number, top, left, *image.shape[-2:]) for top in starts for left in starts)

    def cut(tensor):
        scale = tensor.shape[-1] // image.shape[-1]
        return torch.stack(
            [
                tensor[..., scale * p.top : scale * (p.top + side), scale * p.left : scale * (p.left + side)]
                for p in places
            ]
        )

    return Batch((cut(image),), target=cut(target) if target is not None else None, places=places)


class Double(torch.nn.Module):
    """Twice as large, and brighter by what it was told."""

    def __init__(self, brightness: float) -> None:
        super().__init__()
        self.brightness = brightness

    def forward(self, x):
        return torch.nn.functional.interpolate(x, scale_factor=2) + self.brightness


def test_metrics_of_tiles_are_of_the_image_that_they_are_blended_to():
    image, target = images(1)[0], images(1, size=24, seed=1)[0]
    batch = tiles(image, target, 8, (0, 4))
    parts = [batch.take(3), batch.rest(3)]
    tiled, whole = (
        compare_metrics(TASKS["restoration"], Double(0.0), Double(0.2), data)
        for data in (parts, [(image[None], target[None])])
    )
    for ours, expected in zip(tiled, whole, strict=True):
        assert ours.n == 1
        assert ours.original == pytest.approx(expected.original, abs=1e-4)
        assert ours.compressed == pytest.approx(expected.compressed, abs=1e-4)


def test_where_tiles_overlap_the_nearer_middle_weighs_more():
    class Edges(torch.nn.Module):
        """Wrong by one at the first column of each tile."""

        def forward(self, x):
            y = x.clone()
            y[..., 0] += 1
            return y

    image = torch.zeros(3, 12, 12)
    [[_, psnr]] = [
        [metric.original, metric.compressed]
        for metric in compare_metrics(
            TASKS["restoration"], torch.nn.Identity(), Edges(), [tiles(image, image, 8, (0, 4))]
        )
        if metric.name == "psnr"
    ]
    # The column at 0 is in one tile; that at 4 is the fourth of one tile, which weighs 4 against 1.
    error = (1.0 + (1 / 5) ** 2) / 12
    assert psnr == pytest.approx(-10 * np.log10(error), abs=1e-4)


def test_masks_of_tiles_are_put_together_and_images_count_once():
    image = images(1)[0]
    mask = torch.randint(0, 3, (12, 12), generator=seeded())
    model = made(Segmenter)
    batch = tiles(image, mask, 12, (0,))
    [tiled, _] = compare_metrics(TASKS["segmentation"], model, model, [batch])
    [whole, _] = compare_metrics(TASKS["segmentation"], model, model, [(image[None], mask[None])])
    assert tiled.original == pytest.approx(whole.original)
    both = [batch, tiles(image, mask, 12, (0,), number=1)]
    assert compare_metrics(TASKS["segmentation"], model, model, both)[0].n == 2


def test_an_image_cut_short_counts_by_its_tiles_where_none_is_whole():
    image = images(1)[0]
    batch = tiles(image, image, 6, (0, 6))
    model = made(Restorer)
    assert compare_metrics(TASKS["restoration"], model, model, [batch.take(3)])[0].n == 3
    assert (
        compare_metrics(TASKS["restoration"], model, model, [batch, tiles(image, image, 6, (0, 6), 1).take(3)])[0].n
        == 1
    )


def test_tiles_for_a_network_that_returns_no_image_count_one_by_one():
    image = images(1)[0]
    metrics = compare_metrics(TASKS["embedding"], made(Encoder), made(Encoder), [tiles(image, None, 6, (0, 6))])
    assert {metric.n for metric in metrics} == {4}


def test_what_is_smaller_than_a_window_has_no_ssim():
    metrics = compare_metrics(TASKS["restoration"], made(Restorer), made(Restorer), [images(3, size=8)])
    assert [metric.name for metric in metrics] == ["psnr"]


def test_a_task_on_a_network_without_real_numbers_is_refused():
    class Counts(torch.nn.Module):
        def forward(self, x):
            return {"count": (x > 0.5).flatten(1).sum(1)}

    for task in ("restoration", "regression", "embedding", "denoising", "segmentation"):
        with pytest.raises(ShoalError, match="a tensor of real numbers"):
            check_metrics(TASKS[task], Counts(), Batch((images(3),)))


def test_a_denoiser_without_labels_and_a_classifier_pass_the_check():
    step = torch.tensor([1.0, 2.0, 3.0])
    check_metrics(TASKS["denoising"], made(Denoiser), Batch(kwargs={"sample": images(3), "timestep": step}))
    check_metrics(TASKS["classification"], classifier(), Batch((images(3),)))


def test_large_tiles_of_half_precision_are_blended_to_numbers():
    """The weight of the middle of a tile of 512 pixels is above what float16 can hold."""
    image = torch.ones(1, 512, 512, dtype=torch.float16)
    batch = Batch((image[None],), target=image[None], places=(TilePlace(0, 0, 0, 512, 512),))
    [(original, _, whole)] = list(Mosaics().add(image[None], image[None], batch))
    assert torch.equal(original.float(), image[None].float())
    assert torch.equal(whole.target.float(), image[None].float())
