"""Data by specification, and who sees what: calibration, validation, test."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

from shoal.arguments import real_number, whole_number
from shoal.batches import Batch, batches
from shoal.errors import DataError, SpecError, count_of, did_you_mean, expect_type
from shoal.files.reading import from_home
from shoal.sources import audio
from shoal.sources.audio import AudioFormat
from shoal.sources.diffusion import pipeline_trajectories
from shoal.sources.hub_data import hub_documents
from shoal.sources.image_sets import cifar10, cifar100, digits, image_folder, svhn
from shoal.sources.image_targets import TargetSource, coco_folder, pair_folder, segmentation_folder
from shoal.sources.image_transform import ImageTransform
from shoal.sources.latents import latent_folder
from shoal.sources.npz import npz
from shoal.sources.parts import NEEDS_MORE, ImagePart, NoPart, Part, Source, hold_out, random_subset, why_none_held
from shoal.sources.registry import DataSource, source_table, takes_rest
from shoal.sources.spec_hints import data_hint
from shoal.sources.text import documents
from shoal.sources.tiles import tiled_folder
from shoal.sources.tokens import TextFormat, length_of, open_tokenizer, text_parts, tokens_of
from shoal.sources.user_code import call_function, is_file_spec
from shoal.sources.user_data import user_parts

_VALIDATION = 0.2
_CHARACTERS = 32  # read for each token of a limited part: most texts have four a token, and a part is a fifth or more
AUDIO = "audio"
TEXT_SUMMARIES = {
    "text": "plain text; .jsonl: one document a line",
    "hf-data": "text by the library datasets: a name on the hub, or a folder",
}
TEXT_SOURCES = {"text": "text:FILE or text:FOLDER", "hf-data": "hf-data:NAME or hf-data:NAME:SPLIT"}
_BUILTIN = {
    "digits": DataSource("digits", lambda path, size: digits(), "1,797 images of 8 x 8; comes with scikit-learn"),
    "cifar10": DataSource("cifar10:ROOT", lambda path, size: cifar10(path), "ROOT holds cifar-10-batches-py"),
    "cifar100": DataSource("cifar100:ROOT", lambda path, size: cifar100(path), "ROOT holds cifar-100-python"),
    "svhn": DataSource("svhn:ROOT", lambda path, size: svhn(path), "ROOT holds train_32x32.mat and test_32x32.mat"),
    "imagefolder": DataSource(
        "imagefolder:ROOT", image_folder, "images by class: ROOT/train/CLASS/*.jpg, ROOT/test/CLASS/*.jpg"
    ),
    "npz": DataSource("npz:FILE", lambda path, size: npz(path), "arrays x_train, y_train, x_test, y_test"),
    "segmentation": DataSource("segmentation:ROOT", segmentation_folder, "images, and for each a map of classes"),
    "pairs": DataSource("pairs:ROOT", pair_folder, "images, and for each the image that should come out"),
    "tiles": DataSource(
        "tiles:SIDE:pairs:ROOT", tiled_folder, "squares cut out of large images; tiles:SIDE:segmentation:ROOT too"
    ),
    "coco": DataSource("coco:ROOT", coco_folder, "images with boxes, as COCO has them"),
    "diffusion": DataSource(
        "diffusion:PIPELINE",
        lambda path, size: pipeline_trajectories(path),
        "noisy samples that a pipeline of diffusers makes",
    ),
    "latents": DataSource(
        "latents:ROOT", lambda path, size: latent_folder(path), "your own latents for a network of diffusers"
    ),
}
DATA_SOURCES = source_table(_BUILTIN)


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in three parts: calibration (fit, choose, recover), validation (choose), test (the record).

    Every loader can be read again and again and gives the same mini-batches in the same order: `(x, y)`, or
    `x` where there are no labels; `x` is float32, shape (batch, ...), `y` int64, shape (batch,). Those of text are
    `Batch`es of `input_ids`, int64, shape (batch, length), with the next token at each position as the target where the
    network says it.

    Args:
        spec: the specification that loads it again.
        num_classes: how many, or None where there are no labels.
        runs_code: whether loading it again runs the user's own code.
        parts: calibration, validation, test.
    """

    spec: str
    num_classes: int | None
    runs_code: bool
    parts: tuple[Part, Part, Part]

    def calibration(self, augment: bool = True, limit: int | None = None, epoch: int = 0) -> Iterable[Any]:
        """Four fifths of train, in seeded random order.

        Args:
            augment: shift and mirror as the source allows, the same way each time.
            limit: at most this many samples, the first ones.
            epoch: any other than 0 draws another order and another augmentation, for training.
        """
        return self.parts[0].loader(augment=augment, limit=limit, epoch=epoch)

    def validation(self, augment: bool = False, limit: int | None = None) -> Iterable[Any]:
        """One fifth of train, each class in proportion, in seeded random order.

        Raises:
            DataError: no sample could be kept for it.
        """
        return self.parts[1].loader(augment=augment, limit=limit)

    def test(self) -> Iterable[Any]:
        """The test part, never augmented."""
        return self.parts[2].loader()

    def example(self, batch: int = 2) -> Batch:
        """One mini-batch of up to `batch` samples from test.

        Raises:
            DataError: test is empty.
        """
        for first in batches(self.test()):
            return first.take(batch)
        raise DataError(f"the test part of '{self.spec}' is empty", "Give data that is not empty.")

    @property
    def decode(self) -> Callable[[Any], list[str]] | None:
        """Texts of tokens, by the tokenizer of a network that writes what it hears; None for other data."""
        return audio.decoder_of(getattr(self.parts[2], "collate", None))

    def describe(self) -> dict[str, Any]:
        """Sizes of the parts (None: unknown before reading), classes, and the shape of one sample."""
        names = ("calibration", "validation", "test")
        sizes = {name: part.size for name, part in zip(names, self.parts, strict=True)}
        shape = list(self.example(1).tensors[0].shape[1:])
        return {"spec": self.spec, **sizes, "num_classes": self.num_classes, "shape": shape}


def load_data(
    spec: str,
    *,
    mean: Sequence[float] | float | None = None,
    std: Sequence[float] | float | None = None,
    size: int | None = None,
    seed: int = 0,
    batch_size: int = 128,
    limit: int | None = None,
    text_format: TextFormat | AudioFormat | None = None,
) -> Data:
    """Load data. Nothing is downloaded but what `hf-data:` names, nothing is unpickled.

    Args:
        spec: `digits` (embedded), `cifar10:ROOT`, `cifar100:ROOT`, `svhn:ROOT`, `imagefolder:ROOT`, `npz:FILE`,
            `segmentation:ROOT`, `pairs:ROOT`, `coco:ROOT` (see `sources.image_targets`), `text:FILE` or `text:FOLDER`,
            `hf-data:NAME` (a data set of the hub, or a folder), `audio:ROOT` (see `sources.audio`), or
            `FILE.py:FUNCTION`, a function without arguments
            that returns train and test data sets or loaders.
        mean: per channel, or one for all, of pixels in 0..1 (of the values as they are for floats); by
            default the data set's usual one, for npz none.
        std: likewise.
        size: images are resized to this height and width in pixels.
        seed: of the validation split (but for `digits`, whose split is fixed) and of the augmentation.
        batch_size: samples in a mini-batch.
        limit: at most this many samples of each part, chosen at random.
        text_format: for text and sound: how the network reads it, see `infer_text_format`, or hears it, see
            `infer_audio_format`.

    Raises:
        SpecError: unknown DATA, with near matches.
        DataError: data that is missing or does not fit; a mean, std, size, batch size or limit out of range.
        ModelRaisedError: the user's file or function raised.
    """
    spec = expect_type(spec, str, "DATA", "Like 'npz:FILE'; loaders of yours need no loading.").strip()
    _check_numbers(size, batch_size, limit, seed)
    mean, std = _per_channel("mean", mean), _per_channel("std", std)
    if std is not None and any(not value > 0 for value in std):
        raise DataError(f"a standard deviation is not above 0: {list(std)}", "Give positive numbers.")
    is_transformed = mean is not None or std is not None or size is not None
    if is_file_spec(spec):
        if is_transformed:
            raise DataError("--mean, --std and --size do not apply to FILE.py:FUNCTION", "Let the function do that.")
        parts = user_parts(call_function(spec), seed=seed, batch_size=batch_size, limit=limit)
        return Data(spec, None, True, parts)
    if spec.partition(":")[0] in (*TEXT_SOURCES, AUDIO):
        if is_transformed:
            raise DataError("--mean, --std and --size do not apply to text and sound", "Leave them out.")
        if spec.partition(":")[0] == AUDIO:
            loaders = _sounds(spec, text_format, batch_size)
            return Data(spec, None, False, user_parts(loaders, seed=seed, batch_size=batch_size, limit=limit))
        return Data(spec, None, False, _text(spec, text_format, seed, batch_size, limit))
    source = _opened(spec, size)
    if isinstance(source, TargetSource):
        loaders = source.loaders(batch_size, mean, std)
        return Data(spec, None, False, user_parts(loaders, seed=seed, batch_size=batch_size, limit=limit))
    if not isinstance(source, Source):
        if mean is not None or std is not None:
            raise DataError(f"--mean and --std do not apply to '{spec}'", "Leave them out.")
        return Data(spec, None, False, user_parts(source, seed=seed, batch_size=batch_size, limit=limit))
    transform = _adapted(source.transform, source.train.shape, mean, std, size)
    return Data(spec, _classes(source), False, _parts(source, transform, seed, batch_size, limit))


def _opened(spec: str, size: int | None) -> Any:
    name, colon, place = spec.partition(":")
    source = DATA_SOURCES.get(name)
    if isinstance(source, DataSource) and bool(colon) == bool(place) == takes_rest(source.form):
        return source.open(from_home(place), size)
    if isinstance(source, DataSource) and takes_rest(source.form):
        raise SpecError(f"'{spec}' does not say where the data is", f"Write {source.form}.")
    raise SpecError(f"unknown DATA '{spec}'", _hint(spec, name))


def data_names() -> list[str]:
    """The names that DATA begins with."""
    return [*DATA_SOURCES, *TEXT_SOURCES, AUDIO]


def _hint(spec: str, name: str) -> str:
    from shoal.sources.models import MODEL_SOURCES

    near = did_you_mean(name, data_names())
    meant = data_hint(spec, list(MODEL_SOURCES)) or (near if near.startswith("Did") else "")
    forms = [
        *(source.form for source in _BUILTIN.values()),
        "text:FILE",
        "hf-data:NAME",
        audio.FORM,
        "FILE.py:FUNCTION",
    ]
    return f"{meant} Known forms: {', '.join(forms)}.".strip()


def _sounds(spec: str, audio_format: Any, batch_size: int) -> tuple[Any, Any]:
    _, _, place = spec.partition(":")
    if not place:
        raise SpecError(f"'{spec}' does not say where the data is", f"Write {audio.FORM}.")
    if not isinstance(audio_format, AudioFormat):
        raise DataError(
            "sound can only be read for a network: its features are made by the network's own processor",
            "In Python: load_data(spec, text_format=infer_audio_format(model)).",
        )
    return audio.audio_loaders(from_home(place), audio_format, batch_size)


def _text(spec: str, text_format: Any, seed: int, batch_size: int, limit: int | None) -> tuple[Part, Part, Part]:
    name, _, place = spec.partition(":")
    if not place:
        raise SpecError(f"'{spec}' does not say where the data is", f"Write {TEXT_SOURCES[name]}.")
    if not isinstance(text_format, TextFormat):
        raise DataError(
            "text can only be read for a network: its tokens are those of the network",
            "In Python: load_data(spec, text_format=infer_text_format(model)).",
        )
    tokenizer = open_tokenizer(text_format)
    if name == "text":
        texts = documents(from_home(place))
    else:
        needed = limit * length_of(text_format) * _CHARACTERS if limit is not None else None
        texts = hub_documents(place, tokenizer, needed)
    tokens = tokens_of(tokenizer, text_format)
    return text_parts(texts, tokens, text_format, seed=seed, batch_size=batch_size, limit=limit)


def _parts(
    source: Source, transform: ImageTransform, seed: int, batch_size: int, limit: int | None
) -> tuple[Part, Part, Part]:
    split_seed = seed if source.split_seed is None else source.split_seed
    kept, held = hold_out(len(source.train), _VALIDATION, split_seed, source.train_labels)
    if len(source.train) == 0:
        raise DataError("train is empty", "Give data that is not empty.")
    validation: Part = ImagePart(source.train, source.train_labels, held[:limit], transform, batch_size, seed)
    if len(held) == 0:
        validation = NoPart(why_none_held(len(kept)), NEEDS_MORE)
    rows = random_subset(len(source.test), limit, seed)
    return (
        ImagePart(source.train, source.train_labels, kept[:limit], transform, batch_size, seed),
        validation,
        ImagePart(source.test, source.test_labels, rows, transform, batch_size, seed),
    )


def _adapted(
    transform: ImageTransform,
    shape: tuple[int, ...],
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    size: int | None,
) -> ImageTransform:
    if size is not None and len(shape) != 3:
        raise DataError(f"samples of shape {shape} have no size to change", "Leave out --size.")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) not in (1, shape[0]):
            raise DataError(
                f"{count_of(len(values), 'value')} of {name} for {count_of(shape[0], 'channel')}",
                "Give 1." if shape[0] == 1 else f"Give 1 or {shape[0]}.",
            )
    return replace(
        transform,
        mean=transform.mean if mean is None else tuple(mean),
        std=transform.std if std is None else tuple(std),
        size=size,
    )


def _classes(source: Source) -> int | None:
    labels = [part for part in (source.train_labels, source.test_labels) if part is not None]
    return int(max(part.max() for part in labels)) + 1 if labels else None


def _check_numbers(size: int | None, batch_size: int, limit: int | None, seed: int) -> None:
    for name, value in (("size", size), ("batch size", batch_size), ("limit", limit)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, Integral) or value < 1):
            raise DataError(f"the {name} is {value!r}", "Give a whole number from 1.")
    whole_number("the seed", seed, -(2**62), "The same number gives the same split.")


def _per_channel(name: str, values: Sequence[float] | float | None) -> tuple[float, ...] | None:
    """The numbers of `mean` or `std`; a single one is for all channels."""
    if values is None:
        return None
    hint = "Give one number for all channels, or a list of one for each."
    numbers = values if isinstance(values, Iterable) and not isinstance(values, str) else (values,)
    values = tuple(real_number(name, number, hint) for number in numbers)
    if not all(map(math.isfinite, values)):
        raise DataError(f"{name} is {list(values)}, expected finite numbers", hint)
    return values
