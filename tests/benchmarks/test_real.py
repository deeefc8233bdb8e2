"""What the loaders of real networks do without the packages that they load."""

import struct
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shoal.blocks import trace

FOLDER = Path(__file__).parents[2] / "benchmarks" / "real"
NAMES = {path.stem for path in FOLDER.glob("*.py")}


@pytest.fixture
def loader(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    yield import_module
    for name in NAMES & sys.modules.keys():
        del sys.modules[name]


@pytest.mark.parametrize("name", ["sentences", "upscaling", "faces", "classifier", "speech"])
def test_a_package_that_is_not_there_is_named(loader, name, monkeypatch, tmp_path):
    monkeypatch.setenv("REAL_MODELS", str(tmp_path))
    pytest.importorskip("onnx")
    with pytest.raises(FileNotFoundError, match=r"pkg/.* is not in the folder that REAL_MODELS names"):
        getattr(loader(name), "base" if name == "speech" else "network")()


def test_networks_have_a_chain(loader):
    upscaler = loader("upscaling").Upscaler(2).eval()
    assert upscaler(torch.rand(1, 3, 6, 5)).shape == (1, 3, 24, 20)
    assert [block.removable for block in trace(upscaler, torch.rand(1, 3, 6, 6))] == [True] * 6
    classifier = loader("classifier").ThinResNet().eval()
    assert [block.removable for block in trace(classifier, torch.randn(1, 3, 64, 64))] == [True] * 16


def test_errors_of_words(loader):
    rows = loader("speech").word_errors
    assert rows(["four queen of clubs"], ["4 queen of clothes"]).sum(0).tolist() == [1, 4]
    assert rows(["a b c d", "he sat"], ["x a b d", "he sat down"]).sum(0).tolist() == [3, 6]
    assert rows(["a b"], [""]).sum(0).tolist() == [2, 2]
    british, american = "the organisation favoured four for labour", "the organization favored 4 for labor"
    assert rows([british], [american]).tolist() == [[0, 6]]


def test_arrays_of_a_stored_network(loader):
    values = np.arange(6, dtype=np.float16).reshape(2, 3)
    text = lambda name: struct.pack("<H", len(name) + 1) + name.encode() + b"\0"
    stored = struct.pack("<I", 6) + text("Spec") + struct.pack("<II", 3, 1) + text("weight")
    stored += struct.pack("<BII", 2, 2, 3) + struct.pack("<BI", 4, values.nbytes) + values.tobytes()
    stored += struct.pack("<I", 1) + text("alias") + text("weight")
    arrays = loader("speech")._arrays(stored)
    assert set(arrays) == {"weight", "alias"}
    assert np.array_equal(arrays["alias"], values)


def test_figures_computed_apart(loader):
    vectors = {0: [1.0, 0.0], 1: [0.9, 0.1], 2: [0.0, 1.0], 3: [0.1, 0.9]}

    class Table(nn.Module):
        def forward(self, input_ids):
            return nn.functional.normalize(torch.tensor([vectors[int(row)] for row in input_ids]), dim=1)

    class Wrong(nn.Module):
        def forward(self, input_ids):
            return Table()(input_ids[[0, 2, 1, 3]])

    batch = ({"input_ids": torch.arange(4)}, torch.tensor([7, 7, 9, 9]))
    assert loader("sentences").check(Table(), Wrong(), [batch]) == {"retrieval_original": 1.0, "retrieval": 0.0}
    halved = loader("upscaling").check(
        nn.Identity(), nn.Identity(), [(torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.1))]
    )
    assert halved["psnr"] == pytest.approx(20.0, abs=1e-4)


def test_sounds_are_heard_together_as_each_by_itself(loader):
    transformers = pytest.importorskip("transformers")
    speech = loader("speech")
    torch.manual_seed(0)
    sizes = {f"{side}_{name}": 1 for side in ("encoder", "decoder") for name in ("layers", "attention_heads")}
    config = transformers.WhisperConfig(
        vocab_size=50400,
        d_model=8,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_source_positions=20,
        init_std=1.0,
        **sizes,
    )
    whisper = transformers.WhisperForConditionalGeneration(config).eval()
    sounds = list(torch.randn(3, 80, 40))
    heard = speech.tokens(whisper, sounds, 12)
    assert heard == [speech.tokens(whisper, [sound], 12)[0] for sound in sounds]
    whole = whisper(input_features=torch.stack(sounds), decoder_input_ids=torch.tensor(heard)[:, :-1]).logits
    assert whole[:, 3:, :50258].argmax(2).tolist() == [text[4:] for text in heard]  # each token is the likeliest
    assert len({tuple(text) for text in heard}) > 1


def test_windows_hold_every_sound_and_are_of_uneven_length(loader):
    speech = loader("speech")
    sounds = [np.full(32000, number, np.float32) for number in range(40)]
    windows = speech._uneven_windows(sounds)
    assert np.array_equal(np.concatenate(windows), np.concatenate(sounds))
    assert {len(window) // 16000 for window in windows[:4]} == {28, 6, 16, 12}
