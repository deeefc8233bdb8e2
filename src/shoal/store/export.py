"""Write the network of an output folder for others: each file is loaded again and compared with the network."""

import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from shoal.arguments import as_path
from shoal.batches import Batch
from shoal.errors import ExportError, FolderError, UsageError, did_you_mean, expect_type
from shoal.files.reading import refusing
from shoal.files.writing import PARTIAL, check_writable, write_atomically
from shoal.plan import Plan
from shoal.record import Record
from shoal.sources import Consent
from shoal.store.folder import GGUF, ONNX, PROGRAM
from shoal.store.hugging_face import HF, carry_files, put_in_place, quiet, write_hugging_face
from shoal.store.load import load_folder, read_folder_plan, read_record
from shoal.store.origin import source_folder
from shoal.store.program import Exported, export_onnx, export_program
from shoal.store.serving.decoder import Agreement, Decoder
from shoal.store.serving.gguf_file import (
    GgufContent,
    NumberType,
    check_gguf,
    decoder_for_gguf,
    gguf_library,
    number_type,
    write_gguf,
)
from shoal.store.serving.gguf_vocabulary import Vocabulary, read_vocabulary
from shoal.store.serving.nemotron_nas import write_nemotron_nas
from shoal.surgery import example_of
from shoal.surgery.signature import random_like

Format = Literal["torch_export", "onnx", "hf", "nemotron_nas", "gguf"]
NAS = "nemotron-nas"
_CHECKED_NAS = (
    "In the form of Nemotron-NAS: `block_configs` in config.json says which layers have no attention "
    "(`attention.no_op`) or no MLP (`ffn.no_op`). vLLM reads it with `--trust-remote-code`, transformers with "
    "`trust_remote_code=True`, by the code in this folder. Loaded again and compared with Shoal's outputs on random "
    "input."
)


@dataclass(frozen=True)
class ExportConfig:
    """How a file is written, where there is a choice.

    Args:
        dtype: of the matrices in a GGUF file: `f32`, `f16`, `bf16`; `auto` keeps the network's.
        tokenizer: the folder of the tokenizer for a GGUF file; by default where the network came from.
        with_tokenizer: False leaves it out.
        opset: version of the operators of an ONNX file; by default the one that torch prefers.
        dynamic: leave the batch size of an ONNX file free, where the network allows it.
    """

    dtype: NumberType = "auto"
    tokenizer: Path | None = None
    with_tokenizer: bool = True
    opset: int | None = None
    dynamic: bool = True


@dataclass(frozen=True)
class FinishedFolder:
    """An output folder that was read: its plan, its record where there is one, and the network."""

    path: Path
    plan: Plan
    record: Record | None
    model: nn.Module


def export(
    folder: str | Path,
    to: Format = "torch_export",
    *,
    config: ExportConfig | None = None,
    model: nn.Module | Callable[[], nn.Module] | None = None,
    trust_code: bool = False,
) -> Exported:
    """Write the network of an output folder for others, into that folder; what is written is read again and compared.

    Args:
        folder: of a finished run.
        to: `torch_export` (model.pt2), `onnx` (model.onnx), `hf` (hf/, for plain transformers), `nemotron_nas`
            (nemotron-nas/: vLLM, TensorRT-LLM, MLX) or `gguf` (model.gguf: llama.cpp).
        config: type of numbers and tokenizer of a GGUF file.
        model: the original network or its factory, where the folder does not know it; see `load`.
        trust_code: run code and fetch networks that the folder names; see `load`.

    Returns:
        What was written, and how far it is from the network.

    Raises:
        UsageError: there is no such format, or its library is not installed.
        ExportError: the format cannot hold the network, or the file computes something else; nothing was changed.
        ShoalError: the folder cannot be read; see `load`.
    """
    _check_format(to)
    config = expect_type(
        ExportConfig() if config is None else config, ExportConfig, "config", "Like shoal.ExportConfig()."
    )
    return export_finished(open_finished(as_path("folder", folder), Consent(trust_code=trust_code), model), to, config)


def _check_format(to: str) -> None:
    if expect_type(to, str, "the format", f"Give one of {', '.join(get_args(Format))}.") not in get_args(Format):
        raise UsageError(f"there is no format '{to}'", did_you_mean(to, list(get_args(Format))))


def open_finished(
    path: Path, consent: Consent, model: nn.Module | Callable[[], nn.Module] | None = None
) -> FinishedFolder:
    """Read an output folder; its plan may name nothing but what `consent` covers."""
    plan = read_folder_plan(path)
    try:
        record = read_record(path)
    except FolderError:  # of another command, or none: a card then tells no measurements
        record = None
    return FinishedFolder(path, plan, record, load_folder(path, consent, model))


def export_finished(finished: FinishedFolder, to: Format, config: ExportConfig | None = None) -> Exported:
    """Write one format of a folder that was read; see `export`."""
    check_writable(finished.path)
    return _WRITERS[to](finished, config or ExportConfig())


def _torch_export(finished: FinishedFolder, config: ExportConfig) -> Exported:
    return export_program(finished.model, _example(finished), finished.path / PROGRAM)


def _onnx(finished: FinishedFolder, config: ExportConfig) -> Exported:
    return export_onnx(
        finished.model, _example(finished), finished.path / ONNX, opset=config.opset, dynamic=config.dynamic
    )


def _example(finished: FinishedFolder) -> Batch:
    return random_like(example_of(finished.plan.inputs, batch=4))


def _hugging_face(finished: FinishedFolder, config: ExportConfig) -> Exported:
    reason = write_hugging_face(finished.path, finished.model, finished.plan, finished.record)
    if reason is not None:
        raise ExportError(f"plain transformers cannot hold this network: {reason}", "Try --nemotron-nas or --gguf.")
    if not (finished.path / HF).is_dir():
        raise ExportError(
            f"{type(finished.model).__name__} is no network of transformers, or nothing of it was changed",
            "Where nothing was removed, the original is the network.",
        )
    return Exported(finished.path / HF, 0.0, 1.0, 2, True)


def _nemotron_nas(finished: FinishedFolder, config: ExportConfig) -> Exported:
    place = finished.path / f".{NAS}-{secrets.token_hex(6)}{PARTIAL}"
    try:
        with refusing(
            FolderError, f"cannot write '{finished.path / NAS}'", "Free some space, or choose another folder."
        ):
            place.mkdir()
            with quiet():
                agreement = write_nemotron_nas(place, finished.model)
            carry_files(finished.model, place, finished.plan, finished.record, _CHECKED_NAS)
        put_in_place(place, finished.path / NAS)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return _exported(finished.path / NAS, agreement)


def _gguf(finished: FinishedFolder, config: ExportConfig) -> Exported:
    gguf_library()
    decoder = decoder_for_gguf(finished.model)
    content = GgufContent(
        decoder=decoder,
        dtype=number_type(config.dtype, decoder),
        name=_name(finished),
        vocabulary=_vocabulary(finished, decoder, config) if config.with_tokenizer else None,
    )
    checked: list[Agreement] = []

    def write(temporary: Path) -> None:
        write_gguf(temporary, content)
        checked.append(check_gguf(temporary, finished.model, content.dtype))

    write_atomically(finished.path / GGUF, write)
    return _exported(finished.path / GGUF, checked[0])


def _vocabulary(finished: FinishedFolder, decoder: Decoder, config: ExportConfig) -> Vocabulary:
    folder = config.tokenizer or source_folder(finished.model)
    if folder is None:
        raise ExportError(
            "it is not known where the tokenizer of this network is", "Give --tokenizer PATH, or --no-tokenizer."
        )
    return read_vocabulary(folder, decoder.vocabulary)


def _name(finished: FinishedFolder) -> str:
    """What people call the network: the last part of where it came from."""
    source = str(getattr(finished.model, "name_or_path", "") or finished.path.resolve())
    return Path(source).name


def _exported(path: Path, agreement: Agreement) -> Exported:
    return Exported(path, agreement.max_abs_diff, agreement.same_token, agreement.n, True, "tokens")


_WRITERS: dict[Format, Callable[[FinishedFolder, ExportConfig], Exported]] = {
    "torch_export": _torch_export,
    "onnx": _onnx,
    "hf": _hugging_face,
    "nemotron_nas": _nemotron_nas,
    "gguf": _gguf,
}
