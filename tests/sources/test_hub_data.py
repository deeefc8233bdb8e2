import json
import sys
import types

import pytest

import language
from shoal.errors import DataError, SpecError
from shoal.sources import infer_text_format, load_data
from shoal.sources.hub_data import hub_documents


class FakeLibrary(types.ModuleType):
    """What Shoal calls of `datasets`, over JSON lines: one file for each split."""

    def get_dataset_split_names(self, path):
        from pathlib import Path

        names = sorted(file.stem for file in Path(path).glob("*.jsonl"))
        if not names:
            raise FileNotFoundError(f"no data files in {path}\nmore")
        return names

    def load_dataset(self, path, split, streaming):
        from pathlib import Path

        assert streaming
        file = Path(path) / f"{split}.jsonl"
        if not file.exists():
            raise ValueError(f"Bad split: {split}")
        return (json.loads(line) for line in file.read_text().splitlines())


@pytest.fixture(params=["fake", "real"])
def library(request, monkeypatch, tmp_path):
    if request.param == "fake":
        monkeypatch.setitem(sys.modules, "datasets", FakeLibrary("datasets"))
    else:
        pytest.importorskip("datasets", reason="shoal[hub] is not installed")
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "data"
    path.mkdir()
    return path


def write(folder, split, rows):
    (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_splits_are_kept_apart(folder, library):
    write(folder, "train", [{"text": f"train {n}"} for n in range(5)] + [{"text": " "}])
    name = write(folder, "test", [{"text": f"test {n}"} for n in range(2)])
    read = hub_documents(name, None)
    assert read.train == [f"train {n}" for n in range(5)]
    assert read.test == ["test 0", "test 1"]
    only = hub_documents(f"{name}:train", None)
    assert (only.train, only.test) == (read.train, None)


def test_no_more_is_read_than_needed(folder, library):
    name = write(folder, "train", [{"text": "x" * 10} for n in range(50)])
    assert len(hub_documents(name, None, characters=75).train) == 8
    assert len(hub_documents(name, None, characters=1).train) == 3


def test_chats_are_written_by_the_template(folder, library, tmp_path):
    tokenizer = language.save_tokenizer(tmp_path / "tokenizer")
    chat = [{"role": "user", "content": "a fish"}, {"role": "assistant", "content": "swims"}]
    name = write(folder, "train", [{"messages": chat} for _ in range(3)])
    with pytest.raises(DataError, match="holds chats, and the network's tokenizer has no template"):
        hub_documents(name, tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    assert hub_documents(name, tokenizer).train == ["<user>a fish<assistant>swims"] * 3
    other = [{"from": "user", "value": "a fish"}, {"from": "assistant", "value": "swims"}]
    name = write(folder, "train", [{"conversations": other} for _ in range(3)])
    assert hub_documents(name, tokenizer).train == ["<user>a fish<assistant>swims"] * 3


def test_the_only_column_of_strings_is_the_text_and_two_are_refused(folder, library):
    assert hub_documents(write(folder, "train", [{"n": 1, "story": "a"}] * 3), None).train == ["a"] * 3
    name = write(folder, "train", [{"question": "a", "answer": "b"}] * 3)
    with pytest.raises(DataError, match="no column of text: its columns are question, answer"):
        hub_documents(name, None)


def test_scripts_are_refused_and_never_run(folder, library, tmp_path):
    name = write(folder, "train", [{"text": "a"}] * 3)
    (folder / "data.py").write_text(f"open({str(tmp_path / 'was-run')!r}, 'w')\n")
    for place in (name, f"{name}:train"):
        with pytest.raises(DataError, match="holds Python files, and only data is read"):
            hub_documents(place, None)
    assert not (tmp_path / "was-run").exists()


def test_what_is_not_there_is_named(folder, library):
    with pytest.raises(DataError, match="cannot be read"):
        hub_documents(str(folder), None)
    name = write(folder, "train", [{"text": "a"}] * 2)
    with pytest.raises(DataError, match="cannot be read"):
        hub_documents(f"{name}:nowhere", None)
    with pytest.raises(DataError, match="holds 2 documents, expected 3 or more"):
        hub_documents(name, None)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SpecError, match="hf-data: needs the package datasets") as caught:
        hub_documents("fish", None)
    assert "shoal[hub]" in caught.value.hint


def test_it_is_data_for_a_network(folder, library, tmp_path):
    language.save_tokenizer(tmp_path / "tokenizer")
    rows = [{"text": language.text(60, seed=n)} for n in range(12)]
    name = write(folder, "train", rows)
    reading = infer_text_format(language.llama(1), tmp_path / "tokenizer", 16)
    data = load_data(f"hf-data:{name}:train", text_format=reading, limit=4, batch_size=2)
    batch = next(iter(data.calibration()))
    assert batch.kwargs["input_ids"].shape == (2, 16)
    with pytest.raises(SpecError, match="does not say where") as caught:
        load_data("hf-data:", text_format=reading)
    assert "hf-data:NAME:SPLIT" in caught.value.hint
