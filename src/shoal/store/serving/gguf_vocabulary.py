"""The tokenizer of a folder as llama.cpp knows it: byte-level BPE, with the rule by which text is cut before it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shoal.errors import ExportError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = 1, 2, 3, 4, 5
_WITHOUT = "Or leave it out: --no-tokenizer; a program then works with numbers of tokens."
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# How text is cut into words before the merges, and what llama.cpp calls that.
_CUTS = {
    ("bytes",): "gpt-2",
    ("digits", "bytes"): "smollm",
    (_WORDS % "{1,3}", "plain bytes"): "llama-bpe",
    ("NFC", _WORDS % "", "plain bytes"): "qwen2",
}
_IGNORES_MERGES = ("llama-bpe",)  # a word that is a token is not merged again


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with their kinds, merges, and how llama.cpp is to use them."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    cut: str
    special: dict[str, int] = field(default_factory=dict)
    begins: bool = False
    ends: bool = False
    template: str | None = None


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """The tokenizer in a folder of transformers.

    Args:
        folder: holds the tokenizer's files.
        size: how many tokens the network knows; what the tokenizer lacks is filled up.

    Raises:
        ExportError: no tokenizer, or one that llama.cpp has no name for; says which part.
    """
    tokenizer = _opened(folder)
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    cut = _cut(parts)
    model = parts["model"]
    tokens: dict[int, tuple[str, int]] = {index: (token, NORMAL) for token, index in model["vocab"].items()}
    for added in parts["added_tokens"]:
        tokens[added["id"]] = (added["content"], CONTROL if added["special"] else USER_DEFINED)
    if max(tokens) >= size:
        raise ExportError(
            f"the tokenizer in '{folder}' has tokens up to number {max(tokens)}, the network only {size}", _WITHOUT
        )
    filled = [tokens.get(index, (f"[PAD{index}]", UNUSED)) for index in range(size)]
    ids, bare = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    special = {
        name: getattr(tokenizer, f"{name}_token_id")
        for name in ("bos", "eos", "unk", "pad")
        if getattr(tokenizer, f"{name}_token_id", None) is not None
    }
    before, after = _around(ids, bare, special)
    template = tokenizer.chat_template
    return Vocabulary(
        tokens=[token for token, _ in filled],
        kinds=[kind for _, kind in filled],
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
        cut=cut,
        special=special,
        begins=before,
        ends=after,
        template=template if isinstance(template, str) else None,
    )


def _opened(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ExportError(f"there is no tokenizer to open in '{folder}': {_first_line(error)}", _WITHOUT) from error
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        raise ExportError(f"the tokenizer {type(tokenizer).__name__} in '{folder}' runs code of its own", _WITHOUT)
    return tokenizer


def _cut(parts: dict[str, Any]) -> str:
    """What llama.cpp calls the rule by which this tokenizer cuts text.

    Raises:
        ExportError: it has no name for it.
    """
    model = parts["model"]
    steps = tuple(_steps(parts))
    cut = _CUTS.get(steps)
    usual = not any(model.get(key) for key in ("byte_fallback", "continuing_subword_prefix", "end_of_word_suffix"))
    if model["type"] != "BPE" or cut is None or not usual:
        kind = model["type"] if model["type"] != "BPE" else f"BPE behind {' + '.join(steps) or 'nothing'}"
        raise ExportError(
            f"llama.cpp has no name that Shoal knows for this tokenizer ({kind})",
            f"Known are the byte-level ones of GPT-2, SmolLM, Llama 3 and Qwen 2. {_WITHOUT}",
        )
    if bool(model.get("ignore_merges")) != (cut in _IGNORES_MERGES):
        raise ExportError(
            f"the tokenizer cuts text as '{cut}' does, but has ignore_merges {bool(model.get('ignore_merges'))}",
            _WITHOUT,
        )
    return cut


def _steps(parts: dict[str, Any]) -> list[str]:
    """Normaliser and pre-tokenizer as a list of steps; one that Shoal does not know stands there by its name."""
    return [_step(step) for key in ("normalizer", "pre_tokenizer") for step in _flat(parts.get(key))]


def _flat(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    if step is None:
        return []
    if step["type"] != "Sequence":
        return [step]
    inner = step.get("pretokenizers") or step.get("normalizers") or []
    return [part for each in inner for part in _flat(each)]


def _step(step: dict[str, Any]) -> str:
    kind = step["type"]
    if kind == "ByteLevel" and not step.get("add_prefix_space"):
        return "bytes" if step.get("use_regex", True) else "plain bytes"
    if kind == "Digits" and step.get("individual_digits"):
        return "digits"
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return str(step["pattern"].get("Regex", kind))
    return str(kind)


def _around(ids: Sequence[int], bare: Sequence[int], special: dict[str, int]) -> tuple[bool, bool]:
    """Whether the tokenizer puts its token of the beginning before a text, and that of the end behind it.

    Raises:
        ExportError: it puts others there.
    """
    for begins, ends in ((False, False), (True, False), (False, True), (True, True)):
        before = [special.get("bos")] if begins else []
        after = [special.get("eos")] if ends else []
        if list(ids) == [*before, *bare, *after]:
            return begins, ends
    raise ExportError(
        f"the tokenizer makes {list(ids)} of a text that is {list(bare)}, and llama.cpp adds nothing but the tokens of "
        "the beginning and the end",
        _WITHOUT,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
