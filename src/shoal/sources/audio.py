"""Sound files, as a network's own processor makes features of them; with transcripts or classes where there are any.

ROOT/train and ROOT/test (or ROOT/val) hold files of sound. A file of the same name that ends in .txt is its transcript;
without transcripts the sub-folders are classes, if there are any. A network that writes text needs some to be asked
with: without a transcript it is what the network itself hears.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from shoal.batches import IGNORED, Batch, device_of
from shoal.errors import DataError, SpecError, check_memory
from shoal.files.reading import is_file, is_folder, open_file, read_text, refusing
from shoal.preserve import evaluating

SOUND_FILES = (".wav", ".flac", ".ogg", ".mp3")
FORM = "audio:ROOT"
_LONGEST = 128  # tokens that a network hears at most, where there is no transcript
_SECONDS = 3600  # of a file, at most
_HINT = "Give the folder of its processor with --tokenizer PATH."


@dataclass(frozen=True, eq=False)
class AudioFormat:
    """How a network hears.

    Args:
        network: the network, which transcribes what has no transcript.
        processor: a folder or hub name to load its processor from; None if unknown.
        fetch: it may be fetched from the network where it is not on this machine.
    """

    network: Any
    processor: str | None
    fetch: bool = True

    @property
    def aligned(self) -> bool:
        """Whether the network says at each moment which letter it hears, or none (CTC)."""
        return any(kind.__name__.endswith("ForCTC") for kind in type(self.network).__mro__)

    @property
    def generates(self) -> bool:
        """Whether the network writes text, a token after the other."""
        return bool(getattr(self.network.config, "is_encoder_decoder", False)) and hasattr(self.network, "generate")

    @property
    def writes(self) -> bool:
        """Whether text comes out, one way or the other."""
        return self.aligned or self.generates

    @property
    def classes(self) -> dict[str, int]:
        """The indices of the classes that the network's configuration names."""
        return {str(name): int(index) for name, index in (getattr(self.network.config, "label2id", None) or {}).items()}


def infer_audio_format(model: nn.Module, processor: str | Path | None = None) -> AudioFormat:
    """How a network of transformers hears.

    Args:
        model: the network.
        processor: a folder or hub name; by default where the network was loaded from.

    Raises:
        DataError: not a network of transformers, or not one that hears.
    """
    if getattr(model, "main_input_name", None) not in ("input_features", "input_values"):
        raise DataError(
            f"audio: needs a network of transformers that hears, and {type(model).__name__} is not one",
            "Give FILE.py:FUNCTION that returns loaders of features.",
        )
    place = str(processor) if processor is not None else (getattr(model, "name_or_path", "") or None)
    return AudioFormat(model, place)


@dataclass(frozen=True, eq=False)
class Processor:
    """A network's own feature extractor, and its tokenizer where it has one."""

    extractor: Any
    tokenizer: Any
    aligned: bool = False

    @property
    def rate(self) -> int:
        """Samples in a second.

        Raises:
            DataError: the processor does not say.
        """
        rate = getattr(self.extractor, "sampling_rate", None)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < math.inf or rate != int(rate):
            raise DataError(
                f"the processor of the network hears {rate} samples in a second, expected a whole number from 1",
                "`sampling_rate` stands in its preprocessor_config.json.",
            )
        return int(rate)

    def features(self, sounds: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """What the network's encoder is given.

        Raises:
            DataError: the processor raised.
        """
        padding = signature(self.extractor.__call__).parameters.get("padding")
        # Whisper's pads all sounds to its 30 seconds by itself; others pad to the longest only where they are asked to.
        asked = {"padding": True} if padding is not None and not padding.default else {}
        with refusing(DataError, "the processor of the network refused a sound", "Is it of the length it takes?"):
            return dict(self.extractor(list(sounds), sampling_rate=self.rate, return_tensors="pt", **asked))

    def texts(self, tokens: Any) -> list[str]:
        """Texts of tokens, in the spelling that words are compared in."""
        # Letters that follow each other are one letter only while blanks are between them; here they are gone.
        options = {"group_tokens": False} if self.aligned else {}
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True, **options)
        normalize = getattr(self.tokenizer, "normalize", str.lower)
        return [normalize(text) for text in texts]


def open_processor(audio_format: AudioFormat) -> Processor:
    """The network's processor; code next to it is never run.

    Raises:
        SpecError: transformers is missing.
        DataError: there is none, or it cannot be read.
    """
    place = audio_format.processor
    if place is None:
        raise DataError("the processor of this network is unknown: the network was not loaded from a folder", _HINT)
    try:
        from transformers import AutoFeatureExtractor, AutoTokenizer
    except ImportError as error:
        raise SpecError("transformers is not installed", "pip install 'shoal[audio]'") from error
    options = {"trust_remote_code": False, "local_files_only": not audio_format.fetch}
    with refusing(DataError, f"there is no processor in '{place}'", _HINT):
        extractor = AutoFeatureExtractor.from_pretrained(place, **options)
    if not audio_format.writes:
        return Processor(extractor, None)
    with refusing(DataError, f"there is no tokenizer in '{place}', which this network's transcripts need", _HINT):
        return Processor(extractor, AutoTokenizer.from_pretrained(place, **options), audio_format.aligned)


@dataclass(frozen=True, eq=False)
class Sounds(Dataset[tuple[int, np.ndarray]]):
    """Files of sound with what is known of each: a transcript, a class, or nothing. Read by index.

    Args:
        files: in order.
        rate: samples in a second that they are brought to.
        transcripts: of each, or None.
        labels: of each, or None.
    """

    files: tuple[Path, ...]
    rate: int
    transcripts: tuple[str, ...] | None
    labels: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[int, np.ndarray]:
        return index, read_sound(self.files[index], self.rate)


def read_sound(path: Path, rate: int) -> np.ndarray:
    """Mono, float32 in -1..1, at this rate.

    Raises:
        SpecError: soundfile is missing.
        DataError: no sound, or too much of it.
    """
    try:
        import soundfile
    except ImportError as error:
        raise SpecError("soundfile is not installed", "pip install 'shoal[audio]'") from error
    from scipy.signal import resample_poly

    with refusing(DataError, f"'{path}' cannot be read as sound", "Remove or repair the file."):
        with open_file(path) as content, soundfile.SoundFile(content) as file:
            if file.frames > _SECONDS * file.samplerate:
                raise ValueError(f"it lasts longer than {_SECONDS} seconds")
            values, stored = file.read(dtype="float32", always_2d=True).mean(axis=1), int(file.samplerate)
        if not len(values):
            raise ValueError("it is empty")
        if not np.isfinite(values).all():
            raise ValueError("it holds NaN or Inf")
        common = math.gcd(stored, rate)
        return np.asarray(resample_poly(values, rate // common, stored // common), np.float32)


def audio_loaders(root: Path, audio_format: AudioFormat, batch_size: int) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Train and test.

    Args:
        root: the folder.
        audio_format: how the network hears.
        batch_size: sounds in a mini-batch.

    Raises:
        SpecError, DataError: see `open_processor` and `read_sound`; folders that are not there or do not fit.
    """
    processor = open_processor(audio_format)
    test = next((name for name in ("test", "val") if is_folder(root / name)), "test")
    classes: dict[str, int] = {}
    loaders: list[DataLoader[Any]] = []
    for name in ("train", test):
        files = _files(root / name)
        transcripts = _transcripts(files) if audio_format.writes else None
        labels = None if audio_format.writes else _labels(root / name, files, classes, audio_format)
        sounds = Sounds(files, processor.rate, transcripts, labels)
        loaders.append(DataLoader(sounds, batch_size, collate_fn=Collate(sounds, processor, audio_format)))
    return loaders[0], loaders[1]


def _files(folder: Path) -> tuple[Path, ...]:
    if not is_folder(folder):
        raise DataError(f"there is no folder '{folder}'", "Expected sounds in ROOT/train and ROOT/test.")
    files = tuple(sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUND_FILES and is_file(path)))
    if not files:
        raise DataError(f"there is no sound in '{folder}'", f"Expected files of these kinds: {', '.join(SOUND_FILES)}.")
    return files


def _transcripts(files: Sequence[Path]) -> tuple[str, ...] | None:
    places = [path.with_suffix(".txt") for path in files]
    missing = [path.name for path, place in zip(files, places, strict=True) if not is_file(place)]
    if len(missing) == len(files):
        return None
    if missing:
        raise DataError(
            f"{len(missing)} of {len(files)} sounds have no transcript, the first is {missing[0]}",
            "Give each a .txt file of the same name, or none.",
        )
    with refusing(DataError, f"a transcript in '{files[0].parent}' cannot be read", "Transcripts are UTF-8 text."):
        return tuple(read_text(place).strip() for place in places)


def _labels(
    folder: Path, files: Sequence[Path], classes: dict[str, int], audio_format: AudioFormat
) -> tuple[int, ...] | None:
    """The class of each file: the index that the network's configuration has for its sub-folder, else its place."""
    names = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in files]
    if not all(names):
        return None
    own = audio_format.classes
    if not classes:
        known = set(names) <= own.keys()
        classes.update({name: own[name] if known else index for index, name in enumerate(sorted(set(names)))})
    strange = sorted(set(names) - classes.keys())
    if strange:
        raise DataError(
            f"'{folder}' has classes that train has not: {', '.join(strange[:5])}",
            "The same class must have the same folder name in both.",
        )
    return tuple(classes[name] for name in names)


class Collate:
    """Mini-batches of sounds: features, and for a network that writes the text before each token that it should say."""

    def __init__(self, sounds: Sounds, processor: Processor, audio_format: AudioFormat) -> None:
        self.sounds, self.processor, self.format = sounds, processor, audio_format
        self._heard: dict[int, list[int]] = {}

    def __call__(self, samples: list[tuple[int, np.ndarray]]) -> Batch:
        """One mini-batch."""
        rows = [index for index, _ in samples]
        features = self.processor.features([sound for _, sound in samples])
        if not self.format.writes:
            labels = self.sounds.labels
            target = None if labels is None else torch.tensor([labels[row] for row in rows])
            return Batch(kwargs=features, target=target)
        texts = self.sounds.transcripts
        if texts is not None:
            self._check_lengths(samples)
        if self.format.aligned:
            tokens = None if texts is None else [self.processor.tokenizer(texts[row])["input_ids"] for row in rows]
            return Batch(kwargs=features, target=None if tokens is None else _padded(tokens))
        spoken = self._hear(rows, features) if texts is None else [self._tokens(texts[row]) for row in rows]
        return self._answered(features, spoken, labelled=texts is not None)

    def _check_lengths(self, samples: list[tuple[int, np.ndarray]]) -> None:
        """Refuse a sound of which the processor would cut the end off: its transcript is of all.

        Raises:
            DataError: with the file and both lengths.
        """
        most = getattr(self.processor.extractor, "n_samples", None)
        index, sound = max(samples, key=lambda sample: len(sample[1]))
        if isinstance(most, int) and len(sound) > most:
            rate = self.processor.rate
            raise DataError(
                f"'{self.sounds.files[index]}' lasts {len(sound) / rate:.1f} s, and the network hears {most / rate:g} s"
                " at a time",
                "Cut the sound and its transcript into pieces of that length.",
            )

    def _tokens(self, text: str) -> list[int]:
        tokens = [int(token) for token in self.processor.tokenizer(text)["input_ids"]]
        return tokens[1:] if tokens[:1] == [self._start] else tokens

    @property
    def _start(self) -> int:
        return int(getattr(self.format.network.config, "decoder_start_token_id", None) or 0)

    def _hear(self, rows: list[int], features: dict[str, Tensor]) -> list[list[int]]:
        """What the network writes, greedily; of each sound once."""
        if any(row not in self._heard for row in rows):
            network = self.format.network
            inputs = {name: value.to(device_of(network)) for name, value in features.items()}
            try:
                with evaluating(network), torch.no_grad():
                    written = network.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=_LONGEST)
            except Exception as error:
                check_memory(error, "while sounds were transcribed")
                raise DataError(
                    f"generate() of {type(network).__name__} raised {type(error).__name__}: {error}",
                    "Give each sound a transcript: a .txt file of the same name.",
                ) from error
            for row, tokens in zip(rows, written.tolist(), strict=True):
                self._heard[row] = tokens[1:] if tokens[:1] == [self._start] else tokens
        return [self._heard[row] for row in rows]

    def _answered(self, features: dict[str, Tensor], spoken: list[list[int]], *, labelled: bool) -> Batch:
        target = _padded(spoken)
        before = torch.cat([torch.full((len(spoken), 1), self._start), target[:, :-1]], dim=1)
        mask = (before != IGNORED).long()
        inputs = {
            "decoder_input_ids": before.masked_fill(before == IGNORED, self._start),
            "decoder_attention_mask": mask,
        }
        return Batch(kwargs={**features, **inputs}, target=target if labelled else None)


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(rows, the longest), with the label that is skipped behind the shorter ones."""
    padded = torch.full((len(rows), max(1, *map(len, rows))), IGNORED)
    for row, tokens in enumerate(rows):
        padded[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
    return padded


def decoder_of(data_collate: Any) -> Callable[[Any], list[str]] | None:
    """What makes text of a network's tokens, of the loader of sounds; None where it writes none."""
    return data_collate.processor.texts if isinstance(data_collate, Collate) and data_collate.format.writes else None
