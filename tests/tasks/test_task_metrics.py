"""Every figure of a task against a few independent lines."""

import logging

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score
from transformers import WhisperConfig, WhisperForConditionalGeneration

from networks_by_task import Denoiser, Encoder, Restorer, Segmenter, images, made, seeded
from shoal.batches import Batch
from shoal.tasks import TASKS, Reference, compare_metrics, seq2seq
from shoal.tasks.seq2seq import Generated


def changed(model):
    """The network with its second block doing nothing."""
    import copy

    other = copy.deepcopy(model)
    block = other.trunk.blocks[1]
    torch.nn.init.zeros_(block.conv2.weight)
    torch.nn.init.zeros_(block.conv2.bias)
    return other


def figures(task, model, other, loader):
    return {metric.name: metric for metric in compare_metrics(TASKS[task], model, other, loader)}


def test_miou_counts_classes_that_occur_and_leaves_void_out():
    model = made(Segmenter)
    x, y = images(6), torch.randint(0, 3, (6, 12, 12), generator=seeded())
    y[:, :2] = 255
    with torch.no_grad():
        answer = changed(model)(x)["out"].argmax(1)
    counted = y != 255
    ious = [((answer == c) & (y == c) & counted).sum() / (((answer == c) | (y == c)) & counted).sum() for c in range(3)]
    got = figures("segmentation", model, changed(model), [(x, y)])
    assert got["miou"].compressed == pytest.approx(float(torch.stack(ious).mean()))
    assert got["pixel_accuracy"].compressed == pytest.approx(float((answer == y)[counted].double().mean()))
    assert got["miou"].against == "labels"
    assert got["miou"].n == 6
    assert got["miou"].drop == pytest.approx(got["miou"].original - got["miou"].compressed)


def test_without_labels_the_original_is_the_reference():
    model = made(Segmenter)
    [miou, _] = compare_metrics(TASKS["segmentation"], model, model, [images(6)])
    assert (miou.against, miou.original, miou.compressed, miou.drop) == ("original", None, 1.0, 0.0)
    # Six images without a difference do not prove that there is none.
    assert miou.drop_interval == pytest.approx((-0.5, 0.5))


def test_psnr_is_that_of_each_image_and_its_drop_is_paired():
    model = made(Restorer)
    x = images(8)
    y = (x + 0.1 * torch.rand(x.shape, generator=seeded(1))).clamp(0, 1)
    with torch.no_grad():
        outputs = [network(x).double() for network in (model, changed(model))]
    psnr = [-10 * (output - y).square().flatten(1).mean(1).log10() for output in outputs]
    got = figures("restoration", model, changed(model), [(x[:5], y[:5]), (x[5:], y[5:])])["psnr"]
    assert got.original == pytest.approx(float(psnr[0].mean()))
    assert got.compressed == pytest.approx(float(psnr[1].mean()))
    assert got.drop == pytest.approx(float((psnr[0] - psnr[1]).mean()))
    low, high = got.drop_interval
    assert low <= got.drop <= high
    spread = np.ptp(got.compressed_interval)
    assert high - low < spread  # images differ more than networks: the pairing must show


@pytest.mark.parametrize(("scale", "shift", "peak"), [(1, 0, 1.0), (255, 0, 255.0), (2, -1, 2.0), (4.4, -2, None)])
def test_decibels_do_not_depend_on_how_pixels_are_scaled(scale, shift, peak):
    model, x = made(Restorer), images(4)
    with torch.no_grad():
        y, output = (scale * values + shift for values in (x, model(x)))
    peak = peak or float(y.max() - y.min())
    expected = 10 * (peak**2 / (output.double() - y).square().flatten(1).mean(1)).log10()
    [psnr, _] = TASKS["restoration"].metrics
    rows = psnr.rows(output, Reference("labels", y), Batch((x,)))
    assert psnr.prepare(rows) == pytest.approx(expected.tolist(), rel=1e-5)


def test_a_map_drawn_by_queries_is_that_of_semantic_inference():
    """As MaskFormer has it: each query has a class, or none, and a mask."""

    class Queries(Restorer):
        def forward(self, x):
            masks = super().forward(x)
            return {
                "class_queries_logits": masks.mean(3) * torch.arange(12.0),
                "masks_queries_logits": 4 * masks - 1,
            }

    model, x = made(Queries), images(5)
    with torch.no_grad():
        answer = model(x)
    classes = answer["class_queries_logits"].softmax(-1)
    scores = torch.zeros(5, 11, 12, 12)
    for query in range(3):
        for label in range(11):
            mask = answer["masks_queries_logits"][:, query].sigmoid()
            scores[:, label] += classes[:, query, label, None, None] * mask
    labels = torch.randint(0, 11, (5, 12, 12), generator=seeded())
    labels[:, 4:] = scores.argmax(1)[:, 4:]
    got = figures("segmentation", model, model, [(x, labels)])["pixel_accuracy"]
    assert got.against == "labels"
    assert got.original == pytest.approx(float((scores.argmax(1) == labels).double().mean()))


def test_ssim_is_that_of_torchmetrics():
    functional = pytest.importorskip("torchmetrics.functional.image", reason="pip install 'shoal[tasks]'")
    model, x = made(Restorer), images(4, size=16)
    with torch.no_grad():
        outputs = [network(x) for network in (model, changed(model))]
    expected = functional.structural_similarity_index_measure(outputs[1], outputs[0], data_range=1.0)
    got = figures("restoration", model, changed(model), [x])
    assert got["ssim"].compressed == pytest.approx(float(expected), abs=1e-5)
    assert got["psnr"].drop is None  # two equal images have no finite ratio


def test_neighbours_are_those_of_the_whole_set():
    model, x = made(Encoder), images(14)
    with torch.no_grad():
        vectors = [torch.nn.functional.normalize(network(x).double()) for network in (model, changed(model))]
    overlap = []
    for index in range(14):
        nearest = []
        for vector in vectors:
            similarity = vector @ vector[index]
            similarity[index] = -torch.inf
            nearest.append(set(similarity.topk(10).indices.tolist()))
        overlap.append(len(nearest[0] & nearest[1]) / 10)
    got = figures("embedding", model, changed(model), [x[:8], x[8:]])
    assert got["neighbours"].compressed == pytest.approx(sum(overlap) / 14)
    cosine = float((vectors[0] * vectors[1]).sum(1).mean())
    assert got["cosine"].compressed == pytest.approx(cosine)
    labels = torch.arange(14) % 2
    hits = [labels[(v @ v.T).fill_diagonal_(-9.0).argmax(1)] == labels for v in vectors]
    got = figures("embedding", model, changed(model), [(x, labels)])["nearest_label"]
    assert (got.original, got.compressed) == pytest.approx(tuple(float(hit.double().mean()) for hit in hits))


def test_denoising_shows_each_timestep():
    model, x = made(Denoiser), images(6)
    steps = torch.tensor([10, 10, 500, 500, 999, 999])
    batch = {"sample": x, "timestep": steps}
    with torch.no_grad():
        before, after = (network(x, steps).double() for network in (model, changed(model)))
    error, squares = (before - after).square().flatten(1).sum(1), before.square().flatten(1).sum(1)
    [got] = compare_metrics(TASKS["denoising"], model, changed(model), [batch])
    assert got.compressed == pytest.approx(float(error.sum() / squares.sum()))
    assert list(got.groups) == ["10", "500", "999"]
    assert got.groups["500"] == pytest.approx(float(error[2:4].sum() / squares[2:4].sum()))
    assert got.better == "lower"
    assert got.drop == got.compressed


def test_r2_and_rmse_are_those_of_scikit_learn():
    model, x = made(Encoder), images(6)
    y = torch.randn(6, 8, generator=seeded())
    y[:, 1] += 50  # two numbers of different size do not explain each other
    with torch.no_grad():
        answers = model(x).double()
    got = figures("regression", model, model, [(x, y)])
    assert got["rmse"].original == pytest.approx(float((answers - y).square().mean().sqrt()))
    assert got["r2"].original == pytest.approx(r2_score(y, answers))
    y[:, 3] = 0.1  # alike for all: nothing to explain
    got = figures("regression", model, model, [(x[:2], y[:2]), (x[2:], y[2:])])
    others = [0, 1, 2, 4, 5, 6, 7]
    assert got["r2"].original == pytest.approx(r2_score(y[:, others], answers[:, others]))


def test_a_vector_of_zeros_is_like_another_one():
    class Half(Encoder):
        def forward(self, x):
            return super().forward(x) * (torch.arange(len(x)) % 2)[:, None]

    model = made(Half)
    assert figures("embedding", model, model, [images(6)])["cosine"].compressed == pytest.approx(1.0)
    other = made(Encoder)
    assert figures("embedding", model, other, [images(6)])["cosine"].compressed == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("answer", "truth", "edits", "words"),
    [([5, 6, 7], [5, 6, 7], 0, 3), ([5, 7], [5, 6, 7], 1, 3), ([5, 6, 7, 8, 9], [5, 6], 3, 2), ([1], [5], 1, 1)],
)
def test_error_rates_count_edits_and_skip_special_tokens(answer, truth, edits, words):
    pytest.importorskip("torchmetrics", reason="pip install 'shoal[tasks]'")
    output = Generated(torch.tensor([[2, *answer, 1]]), frozenset({1, 2}), 1)
    labels = torch.tensor([[*truth, 1, -100]])
    [metric] = TASKS["seq2seq"].metrics
    [row] = metric.rows(output, Reference("labels", labels), Batch((torch.zeros(1, 1),)))
    if answer == [1]:  # nothing was said
        edits = 1
    assert row.tolist() == [edits, words]


def test_word_error_rate_is_of_decoded_texts():
    pytest.importorskip("torchmetrics", reason="pip install 'shoal[tasks]'")
    vocabulary = {0: "", 3: "a", 4: "tree", 5: "green"}
    [metric] = seq2seq(lambda rows: [" ".join(vocabulary[int(t)] for t in row if t) for row in rows]).metrics
    output = Generated(torch.tensor([[3, 4, 0]]), frozenset({0}), 0)
    [row] = metric.rows(output, Reference("labels", torch.tensor([[3, 5, 4]])), Batch((torch.zeros(1, 1),)))
    assert metric.name == "wer"
    assert row.tolist() == [1, 3]


def test_generation_says_nothing_about_a_length_that_nobody_gave():
    """A configuration's own limit beside that of the metric: transformers warned of both for each mini-batch."""
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=20,
            d_model=8,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=1,
            decoder_attention_heads=1,
            encoder_ffn_dim=8,
            decoder_ffn_dim=8,
            num_mel_bins=4,
            max_source_positions=10,
            max_target_positions=40,
            decoder_start_token_id=1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            suppress_tokens=None,
            begin_suppress_tokens=None,
        )
    ).eval()
    model.generation_config.max_length = 12
    said, handler = [], logging.Handler()
    handler.emit = said.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        batch = Batch(kwargs={"input_features": torch.zeros(1, 4, 20)}, target=torch.full((1, 3), 5))
        TASKS["seq2seq"].metrics[0].respond(model, batch)
    finally:
        logger.removeHandler(handler)
    assert not [record.getMessage() for record in said if "max_" in record.getMessage()]
    assert model.generation_config.max_length == 12


@pytest.mark.parametrize("shape", ["as they are", "one channel", "floats", "floats of one channel"])
def test_masks_with_a_channel_of_one_or_of_floats_are_classes(shape):
    model, x = made(Segmenter), images(4)
    classes = torch.randint(0, 3, (4, 12, 12), generator=seeded())
    classes[0, 0] = 255
    masks = classes.unsqueeze(1) if "one channel" in shape else classes
    got = figures("segmentation", model, changed(model), [(x, masks.float() if "floats" in shape else masks)])["miou"]
    expected = figures("segmentation", model, changed(model), [(x, classes)])["miou"]
    assert (got.against, got.original, got.compressed) == ("labels", expected.original, expected.compressed)


def test_masks_of_shares_are_no_classes():
    model, x = made(Segmenter), images(4)
    shares = torch.rand(4, 12, 12, generator=seeded())
    assert figures("segmentation", model, changed(model), [(x, shares)])["miou"].against == "original"


@pytest.mark.parametrize(("scale", "shift"), [(255, 0), (2, -1), (4.4, -2)])
@pytest.mark.parametrize("metric", ["psnr", "ssim"])
def test_an_image_has_the_range_of_all_of_them(metric, scale, shift):
    """A dark image alone in a mini-batch was taken for one in 0..1: it lost 48 dB."""
    pytest.importorskip("torchmetrics", reason="pip install 'shoal[tasks]'")
    model, x = made(Restorer), images(3, size=12)
    y = scale * x + shift
    y[2] = 0.3 * x[2] + min(shift, 0)
    together, alone = (
        figures("restoration", model, changed(model), data)[metric]
        for data in ([(x, y)], [(x[index : index + 1], y[index : index + 1]) for index in range(3)])
    )
    assert alone.original == pytest.approx(together.original)
    assert alone.compressed == pytest.approx(together.compressed)


def test_ssim_of_a_range_that_came_to_light_too_late_is_left_out_with_the_reason():
    """In -2.2..2.6, but the first mini-batch looks like pixels of 0..1."""
    pytest.importorskip("torchmetrics", reason="pip install 'shoal[tasks]'")
    model, x = made(Restorer), images(2)
    data, notes = [(x[:1], x[:1]), (x[1:], 4.8 * x[1:] - 2.2)], []
    [psnr] = compare_metrics(TASKS["restoration"], model, changed(model), data, notes=notes)
    assert psnr.name == "psnr"
    assert any("SSIM has no figure: pixels reach from -2" in note and "left out" in note for note in notes)
