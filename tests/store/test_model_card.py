"""The card of a folder says what was done to which network, with figures and licence, and nothing of this machine."""

import pytest
import yaml
from torch import nn

import language
from shoal.plan import NetworkSignature, Plan, Remove
from shoal.record import Comparison, MetricComparison, Quality
from shoal.store.model_card import CardFigures, licence_of, model_card, short_spec, what_was_done
from shoal.store.save import save

MEASURED = CardFigures(
    "imagefolder:/home/me/secret/flowers",
    3,
    Quality(split="test", n=450, top1=0.98, top1_interval=(0.96, 0.99)),
    Quality(split="test", n=450, top1=0.97, top1_interval=(0.95, 0.98)),
    Comparison(
        split="test", n=450, kl=0.01, kl_interval=(0.008, 0.012), agreement=0.99, top1_drop=0.01,
        top1_drop_interval=(-0.002, 0.022),
    ),
    "a processor",
    ("Latency at batch 8: 12 ms before, 6 ms after.",),
)  # fmt: skip


def plan_of(model=None, *removed):
    return Plan(
        model=model, inputs=[], network=NetworkSignature(state={}, chain=[]), actions=[Remove.named(p) for p in removed]
    )


def header(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_figures_come_with_intervals_and_without_the_places_of_files():
    card = model_card(nn.Linear(2, 2), plan_of("/home/me/secret/net.py:build", "blocks.1", "blocks.2#0"), MEASURED)
    assert "2 removed (`blocks.1`, `blocks.2#0`)" in card
    assert "98.00 % (96.00 to 99.00) before, 97.00 % (95.00 to 98.00) after" in card
    assert "Drop: 1.00 points, paired 95 % interval -0.20 to 2.20" in card
    assert "12 ms before, 6 ms after" in card
    assert "a processor" in card
    assert "`imagefolder:flowers` (seed 3), test part, n = 450" in card
    assert "from `net.py:build`" in card
    assert "secret" not in card


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        (
            {"name": "psnr", "label": "PSNR", "unit": "dB", "original": 30.0, "compressed": 29.5, "drop": 0.5},
            "PSNR: 30 dB before, 29.5 dB after. Worse by 0.5 dB, paired 95 % interval -0.01 to 0.02.",
        ),
        (
            {"name": "miou", "label": "mIoU", "unit": "%", "original": 0.7, "compressed": 0.69, "drop": 0.01},
            "mIoU: 70.00 % before, 69.00 % after. Worse by 1 points, paired 95 % interval -1 to 2.",
        ),
        (
            {"name": "cosine", "label": "Cosine", "unit": "%", "compressed": 0.99, "against": "original"},
            "Cosine: 99.00 %, against the original's own output.",
        ),
    ],
)
def test_the_metric_of_a_task_stands_on_the_card(figures, expected):
    metric = MetricComparison.model_validate(
        {"better": "higher", "against": "labels", "n": 7, "drop_interval": (-0.01, 0.02), "drop": None, **figures}
        | {"original": figures.get("original"), "compressed_interval": (0, 1)}
    )
    quality = Quality(split="test", n=7)
    seen = Comparison(split="test", n=7, kl=0.1, kl_interval=(0, 1), cosine_distance=0.1, metrics=[metric])
    card = model_card(nn.Linear(2, 2), plan_of("a"), CardFigures("d", 0, quality, quality, seen, "a processor", ("l",)))
    assert f"- {expected}\n" in card
    assert "one minus the cosine with the original's output: 0.1" in card
    assert "- Timed on a processor." in card


def test_the_header_is_one_that_the_hub_reads():
    card = model_card(nn.Linear(2, 2), plan_of("digits-resnet", "blocks.1"), None)
    assert header(card) == {"license": "apache-2.0", "library_name": "shoal", "tags": ["shoal", "pruned"]}
    assert "whose licence applies: apache-2.0" in card
    assert "## Licence" in card


def test_an_unknown_licence_is_said_to_be_unknown():
    card = model_card(nn.Linear(2, 2), plan_of("torchvision:resnet18", "layer1.1"), None)
    assert "license" not in header(card)
    assert "could not find out which it is" in card


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("---\nlicense: mit\n---\n# Tiny\n", "mit"),
        ("---\nlicense: llama3.1\ntags: [a]\n---\n", "llama3.1"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\nlicense: 'mit\\nbase_model: evil'\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.getcwd []\n---\n", None),
        ("---\nlicense", None),
        ("# No header\nlicense: mit\n", None),
        ("---\n- a\n---\n", None),
    ],
)
def test_the_licence_of_the_original_is_taken_from_its_card(text, expected, tmp_path):
    (tmp_path / "README.md").write_text(text)
    assert licence_of(nn.Linear(2, 2), "hf:x", tmp_path) == expected


def test_timm_says_the_licence_of_its_weights():
    network = nn.Linear(2, 2)
    network.pretrained_cfg = {"license": "cc-by-nc-4.0"}
    assert licence_of(network, "timm:x", None) == "cc-by-nc-4.0"


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (None, "a network made in Python"),
        ("timm:resnet18", "timm:resnet18"),
        ("hf:org/name", "hf:org/name"),
        ("hf:/data/name", "hf:name"),
        ("../nets/net.py:build", "net.py:build"),
    ],
)
def test_a_specification_without_folders(spec, expected):
    assert short_spec(spec) == expected


def test_nothing_done_is_said():
    assert what_was_done(plan_of()) == "the same blocks, with other weights"


def test_every_saved_folder_has_one(tmp_path):
    model = language.llama(layers=2)
    save(tmp_path, model, plan_of("hf:org/name"), measured=MEASURED)
    assert "Top-1 accuracy" in (tmp_path / "README.md").read_text()
