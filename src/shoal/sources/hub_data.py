"""Documents by the library `datasets`: a data set of the hub, or a local folder, read as a stream; chats by template.

Only data files are read. A data set that is a script is refused, and nothing of it is run.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from shoal.errors import DataError, SpecError
from shoal.files.reading import from_home, is_folder
from shoal.sources.text import Documents

_CHATS = ("messages", "conversations", "conversation")
_HELD_OUT = ("test", "validation")
_MOST = 20_000  # documents that are taken from the stream
_FEWEST = 3  # calibration, validation and test need a document each


def hub_documents(place: str, tokenizer: Any, characters: int | None = None) -> Documents:
    """The documents of a data set.

    Args:
        place: `NAME` or `NAME:SPLIT`, a name on the hub or a folder of data files (JSON lines, Parquet, CSV, text). Of
            a split named, a part is held out for test; else the split `train` is read, and `test` or `validation`.
        tokenizer: whose template writes chats as text.
        characters: stop reading a split behind so many.

    Raises:
        SpecError: the library is missing.
        DataError: no such data set or split, a script, no column of text, or too few documents.
    """
    name, split = _name_and_split(place)
    if split:
        return Documents(_taken(_opened(name, split), tokenizer, characters, place))
    splits = _splits(name)
    train = "train" if "train" in splits else splits[0]
    held_out = next((other for other in _HELD_OUT if other in splits and other != train), None)
    documents = _taken(_opened(name, train), tokenizer, characters, place)
    test = _taken(_opened(name, held_out), tokenizer, characters, place, fewest=1) if held_out else None
    return Documents(documents, test)


def _name_and_split(place: str) -> tuple[str, str]:
    """Name and split: what stands behind the last colon, unless that is a part of a path."""
    name, colon, split = place.rpartition(":")
    return (name, split) if colon and name and not {"/", "\\"} & set(split) else (place, "")


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise SpecError(f"hf-data: needs the package {error.name}", "pip install 'shoal[hub]'") from error
    return datasets


def _splits(name: str) -> list[str]:
    datasets = _library()
    return list(_asked(name, datasets.get_dataset_split_names))


def _opened(name: str, split: str) -> Any:
    datasets = _library()
    return _asked(name, lambda path: datasets.load_dataset(path, split=split, streaming=True))


def _asked(name: str, ask: Any) -> Any:
    path = from_home(name)
    if is_folder(path) and any(path.glob("*.py")):
        raise DataError(
            f"the data set '{name}' holds Python files, and only data is read",
            "Convert it to Parquet or JSON lines first; or give FILE.py:FUNCTION, which runs that file.",
        )
    try:
        return ask(str(path) if is_folder(path) else name)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"the data set '{name}' cannot be read: {reason}", "Check its name and split.") from error


def _taken(rows: Iterable[Any], tokenizer: Any, characters: int | None, place: str, fewest: int = _FEWEST) -> list[str]:
    """The documents of a stream, as far as they are needed."""
    documents, total = [], 0
    for text in _texts(rows, tokenizer, place):
        documents.append(text)
        total += len(text)
        enough = characters is not None and total >= characters and len(documents) >= fewest
        if enough or len(documents) == _MOST:
            break
    if len(documents) < fewest:
        raise DataError(f"'{place}' holds {len(documents)} documents, expected {fewest} or more", "Give more text.")
    return documents


def _texts(rows: Iterable[Any], tokenizer: Any, place: str) -> Iterator[str]:
    try:
        for row in rows:
            text = _text_of(row, tokenizer, place)
            if text.strip():
                yield text
    except DataError:
        raise
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"the data set '{place}' cannot be read: {reason}", "Check its files.") from error


def _text_of(row: dict[str, Any], tokenizer: Any, place: str) -> str:
    """The text of a row: its column `text`, a chat by the tokenizer's template, or its only column of strings."""
    if isinstance(row.get("text"), str):
        return row["text"]
    for name in _CHATS:
        if isinstance(row.get(name), list):
            return _chat(row[name], tokenizer, place)
    strings = [value for value in row.values() if isinstance(value, str)]
    if len(strings) != 1:
        raise DataError(
            f"'{place}' has no column of text: its columns are {', '.join(row)}",
            f"Expected `text`, a chat in {' or '.join(f'`{name}`' for name in _CHATS[:2])}, or one column of strings.",
        )
    return strings[0]


def _chat(messages: list[dict[str, Any]], tokenizer: Any, place: str) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        raise DataError(
            f"'{place}' holds chats, and the network's tokenizer has no template that writes them as text",
            "Give a tokenizer with one: --tokenizer PATH.",
        )
    named = [
        {"role": message.get("role", message.get("from")), "content": message.get("content", message.get("value"))}
        for message in messages
    ]
    return str(tokenizer.apply_chat_template(named, tokenize=False))
