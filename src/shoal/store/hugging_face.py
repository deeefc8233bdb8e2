"""Write a shortened network of transformers as a folder that plain transformers loads, checked by loading it again.

Whole layers can be removed that way, and attentions and MLPs of a Llama where what is left packs into whole layers;
for other changes a note says why transformers has no class for them.
"""

import logging
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from shoal.alignment import align_
from shoal.batches import Batch, call
from shoal.errors import ExportError, FolderError, ModelRaisedError, ShoalError, SurgeryError
from shoal.files.reading import read_bytes, read_text, reason_of, refusing
from shoal.files.writing import PARTIAL, write_text
from shoal.outputs import Outputs, distance, mismatch, read_outputs, shown
from shoal.plan import InputSpec, Plan
from shoal.preserve import evaluating, shared_copy
from shoal.record import Record
from shoal.store.folder import CARD
from shoal.store.model_card import CardFigures, figures
from shoal.store.origin import is_own, source_folder
from shoal.store.serving.decoder import read_decoder
from shoal.store.serving.plain_llama import as_plain_llama
from shoal.surgery import example_of
from shoal.surgery.hugging_face import compact_hf_model, is_hugging_face

HF, NOTE = "hf", "hf-not-written.md"
_TOKENS = 4  # that the cache is tried on
# Everything of the original folder that is not weights, configuration or code: what a user of it would miss.
_CARRIED = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.spm", "*.jinja",
    "chat_template*", "preprocessor_config.json", "processor_config.json", "image_processor_config.json",
    "video_preprocessor_config.json", "generation_config.json", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*",
    "COPYING*",
)  # fmt: skip
_LOADED = "Shoal loads the output folder itself: shoal.load(folder)."
_SERVED = f"`shoal export OUT --nemotron-nas` or `--gguf` may hold it. {_LOADED}"
_SAME = "Loaded again with plain transformers: the same outputs as Shoal's, to the bit, on random input."


def write_hugging_face(folder: Path, model: nn.Module, plan: Plan, record: Record | None = None) -> str | None:
    """Write `hf/` into an output folder: the network as its authors' class, without Shoal.

    It is loaded again by plain transformers before it is put in place: the same outputs to the bit, and where it
    generates text the same tokens with the cache as without.

    Args:
        folder: an existing output folder.
        model: the network that came out; any other than one of transformers is passed over.
        plan: what was done to it.
        record: for the section of the model card.

    Returns:
        Why there is no `hf/`, which is also in a note in the folder; None if it was written or not requested.

    Raises:
        FolderError: the folder cannot be written.
    """
    if not _is_requested(model, plan):
        return None
    plain = shared_copy(model).to("cpu").eval()
    reason = None
    try:
        place = folder / f".{HF}-{secrets.token_hex(6)}{PARTIAL}"
        place.mkdir()  # with the permissions of the umask, unlike a temporary folder
    except OSError as error:
        raise FolderError(f"cannot write in '{folder}': {error.strerror}", "Choose another --out.") from error
    try:
        with quiet():
            _write_checked(place, plain, plan, record)
        put_in_place(place, folder / HF)
        (folder / NOTE).unlink(missing_ok=True)
    except ShoalError as error:
        if isinstance(error, FolderError):
            raise
        reason = error.message
        write_text(folder / NOTE, _note(error))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return reason


def _is_requested(model: nn.Module, plan: Plan) -> bool:
    return bool(plan.actions) and (is_hugging_face(model) or hasattr(model, "peft_config"))


def _write_checked(place: Path, model: nn.Module, plan: Plan, record: Record | None) -> None:
    _check_plan(plan)
    absent = [*plan.removed, *plan.folded_away]
    short: Any = _packed(model, plan) if plan.removed_units else compact_hf_model(model, absent)
    trial = _trial(plan.inputs, model)
    _check_indices(model, short, trial)
    try:
        short.save_pretrained(place)
    except (OSError, SafetensorError) as error:  # a full disk comes as one of these
        raise FolderError(f"cannot write '{place.name}': {reason_of(error)}", "Free some space.") from error
    except Exception as error:
        raise SurgeryError(f"transformers cannot save it: {_first_line(error)}") from error
    carry_files(model, place, plan, record, _SAME)
    _check_reload(place, model, trial)


def carry_files(model: nn.Module, place: Path, plan: Plan, record: Record | None, checked: str) -> None:
    """Put next to written weights what a user of the original would miss, and a card with what was done and `checked`.

    Raises:
        FolderError: the files of the original cannot be read, or the folder cannot be written.
    """
    source = source_folder(model)
    left_out = _carry(source, place) if source is not None else []
    write_text(place / CARD, _card(source, plan, record, left_out, checked))
    mode = (place / CARD).stat().st_mode & 0o777
    for file in place.iterdir():
        if file.is_file():
            file.chmod(mode)  # as the umask gives it, which not every library that writes here asks


def _check_plan(plan: Plan) -> None:
    if plan.linear_attentions:
        listed = ", ".join(plan.linear_attentions)
        raise SurgeryError(f"a linear map took the place of {listed}, and transformers has no class with it", _SERVED)
    replaced = [action for action in plan.replaced if not action.stand_in.folded]
    if replaced:
        spans = "; ".join(", ".join(action.paths) for action in replaced)
        raise SurgeryError(f"a fitted stand-in took the place of {spans}, and transformers has no class with it")
    if plan.folds:
        raise SurgeryError(
            f"layers were folded ('{plan.folds[0].path}' first), and transformers has no class without them"
        )


def _packed(model: nn.Module, plan: Plan) -> nn.Module:
    """A shorter Llama of what is left of a cut by units, where it makes up whole layers.

    Raises:
        SurgeryError: it does not; says which layers lack a part.
    """
    units = f"of some layers only attention or MLP was removed ({', '.join(plan.removed_units)})"
    try:
        decoder = read_decoder(model)
        return as_plain_llama(model, decoder)
    except ExportError as error:
        raise SurgeryError(
            f"{units}, and transformers has no class with half a layer: {error.message}", _SERVED
        ) from error


def _carry(source: Path, place: Path) -> list[str]:
    """Copy what a user of the original would miss; returns what stayed behind, since it lies elsewhere."""
    left_out = []
    with refusing(FolderError, f"cannot carry the files of '{source}' over", "Check them, and the space on the disk."):
        for file in sorted({file for pattern in _CARRIED for file in source.glob(pattern)}):
            if not file.is_file() or (place / file.name).exists():
                continue
            if is_own(file, source):
                (place / file.name).write_bytes(read_bytes(file))
            else:
                left_out.append(file.name)
    return left_out


def put_in_place(place: Path, target: Path) -> None:
    """Let a folder that is whole take the place of what was there.

    Raises:
        FolderError: the folder around it cannot be written.
    """
    try:
        if target.exists():
            shutil.rmtree(target)
        place.rename(target)
    except OSError as error:
        raise FolderError(f"cannot write '{target}': {error.strerror or error}", "Choose another --out.") from error


def _check_indices(model: nn.Module, short: nn.Module, trial: Batch) -> None:
    """Refuse a network whose layers compute something else once those before them are gone and they move up.

    Raises:
        SurgeryError: names how far the outputs are off, or what its class raised.
    """
    moved = "its layers depend on their index or on how many there are, which change when layers are removed"
    with evaluating(model), evaluating(short):
        expected = read_outputs(call(model, trial))
        try:
            outputs = read_outputs(call(short, trial))
        except ModelRaisedError as error:
            cause = error.__cause__ or error
            raise SurgeryError(
                f"{moved}: a shorter network of its class raises {type(cause).__name__}: {_first_line(cause)}", _LOADED
            ) from error
    if mismatch(expected, outputs) is None:
        off = {name: distance(tensor, outputs.tensors[name]) for name, tensor in expected.tensors.items()}
        name = max(off, key=lambda name: off[name].largest, default=None)
        if name is not None and not all(each.bitwise for each in off.values()):
            raise SurgeryError(
                f"{moved}: {shown(name)} of a shorter network of its class is up to {off[name].largest:.3g} away",
                _LOADED,
            )


def _check_reload(place: Path, model: Any, trial: Batch) -> None:
    """Load it with plain transformers and refuse what computes something else.

    Raises:
        SurgeryError: it does not load whole, or its outputs are not the same to the bit, or the cache changes them.
    """
    try:
        loaded, info = type(model).from_pretrained(
            place,
            use_safetensors=True,
            output_loading_info=True,
            attn_implementation=model.config._attn_implementation,
        )
        align_(loaded)
    except Exception as error:
        raise SurgeryError(f"transformers does not load it again: {_first_line(error)}") from error
    wrong = sorted(name for key in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in info[key])
    if wrong:
        raise SurgeryError(f"loaded again it has other tensors: {', '.join(map(str, wrong[:3]))}")
    with evaluating(model), evaluating(loaded):
        expected, actual = read_outputs(call(model, trial)), read_outputs(call(loaded, trial))
        _check_same(expected, actual)
        _check_cache(loaded.float(), trial)


def _check_same(expected: Outputs, actual: Outputs) -> None:
    reason = mismatch(expected, actual)
    if not expected.tensors or reason is not None:
        raise SurgeryError(f"loaded again it returns something else{f': {reason}' if reason else ''}")
    off = {name: distance(tensor, actual.tensors[name]) for name, tensor in expected.tensors.items()}
    if not all(difference.bitwise for difference in off.values()):
        name = max(off, key=lambda name: off[name].largest)
        raise SurgeryError(
            f"loaded again it computes something else: {shown(name)} is up to {off[name].largest:.3g} away",
            "Was its precision changed after it was loaded? Load it in that precision (from_pretrained, dtype=...).",
        )


def _check_cache(model: Any, trial: Batch) -> None:
    if not model.can_generate():
        return
    inputs = {key: _as_float(value) for key, value in trial.kwargs.items() if not key.startswith("decoder")}
    inputs = {key: _beginning(key, value) for key, value in inputs.items()}
    settings = {"max_new_tokens": _TOKENS, "min_new_tokens": _TOKENS, "do_sample": False, "num_beams": 1}
    try:
        without = model.generate(**inputs, **settings, use_cache=False)
    except Exception:  # noqa: BLE001 - it cannot generate from these inputs at all, so there is no cache to break
        return
    try:
        cached = model.generate(**inputs, **settings, use_cache=True)
    except Exception as error:
        raise SurgeryError(f"cached generation fails: {_first_line(error)}") from error
    if not torch.equal(cached, without):
        raise SurgeryError("generation with the cache gives other tokens than without")


def _beginning(key: str, value: Any) -> Any:
    # Room for the tokens to come: a network may take no more than it was traced with.
    is_tokens = isinstance(value, Tensor) and value.dim() == 2
    return value[:, : max(1, value.shape[1] // 2)] if is_tokens else value


def _as_float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


def _trial(specs: list[InputSpec], model: Any) -> Batch:
    """Random input of the kinds the plan remembers: tokens of the vocabulary, masks of ones, zeros, normal numbers."""
    generator = torch.Generator().manual_seed(0)
    batch = example_of(specs)
    kwargs = {key: _filled(key, value, model, generator) for key, value in batch.kwargs.items()}
    args = tuple(_filled("input_ids", value, model, generator) for value in batch.args)
    return Batch(args, kwargs)


def _filled(key: str, value: Any, model: Any, generator: torch.Generator) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.is_floating_point():
        return torch.randn(value.shape, generator=generator).to(value.dtype)
    if "mask" in key:
        return torch.ones_like(value)
    if key.endswith("input_ids"):
        return torch.randint(vocabulary(model), value.shape, generator=generator).to(value.dtype)
    return value


def vocabulary(model: Any) -> int:
    """How many tokens a network of transformers knows."""
    text = model.config.get_text_config()
    return int(getattr(text, "vocab_size", None) or model.get_input_embeddings().num_embeddings)


def _note(error: ShoalError) -> str:
    hint = f"\n{error.hint}\n" if error.hint else ""
    return (
        f"# Why there is no `{HF}/` in this folder\n\nPlain transformers cannot hold this network: {error.message}.\n"
        f"{hint}\nThe other files of the folder are whole: `shoal.load` opens it, and where there is a `model.pt2` "
        "torch loads it without Shoal.\n"
    )


def _card(source: Path | None, plan: Plan, record: Record | None, left_out: list[str], checked: str) -> str:
    """The card of the original, where there was one, and behind it what was done."""
    original = ""
    if source is not None and is_own(source / CARD, source):
        with suppress(OSError, ValueError):
            original = read_text(source / CARD).rstrip() + "\n\n"
    bare = {removal.path for removal in plan.removals if removal.norms == "drop"}
    removed = [*plan.removed, *plan.folded_away]
    with_norms = {path: " and the norms behind its additions" if path in bare else "" for path in removed}
    with_norms |= dict.fromkeys(plan.removed_units, "")
    layers = "\n".join(f"- `{path}`{more}" for path, more in with_norms.items())
    hosts = [action.paths[0] for action in plan.replaced if action.stand_in.folded]
    lines = [
        "## Layers removed with Shoal",
        f"Shoal {version('shoal')} took residual blocks{_units_too(plan)} out of this network. "
        f"{_changed_weights(hosts)}Numbers of layers and indices are those of the shorter network.",
        f"Removed ({len(with_norms)}, by their names in the original):\n\n{layers}",
        *(figures(CardFigures.of_record(record)) if record is not None else []),
        *([f"Links to other folders, not carried over: {', '.join(left_out)}."] if left_out else []),
        checked,
    ]
    return original + "\n\n".join(lines) + "\n"


def _units_too(plan: Plan) -> str:
    return ", and of some only attention (`#0`) or MLP (`#1`)," if plan.removed_units else ""


def _changed_weights(hosts: list[str]) -> str:
    if not hosts:
        return ""
    return (
        f"The last linear layer of {', '.join(f'`{path}`' for path in hosts)} was fitted to take over what they did. "
    )


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bars and warnings of transformers off the user's terminal."""
    from transformers.utils import logging as chatter

    level, bars = logging.root.manager.disable, chatter.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    chatter.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(level)
        if bars:
            chatter.enable_progress_bar()
