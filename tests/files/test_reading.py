import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from shoal.errors import DataError, FolderError, PlanError, ShoalError, SpecError, WeightsError
from shoal.files.jsonl import JsonlFile
from shoal.files.reading import from_home, parse_json, read_bytes, read_text, refusing
from shoal.pipeline.latency_backends import LatencyTableFile
from shoal.plan import read_plan
from shoal.sources import load_data
from shoal.sources.image_sets import image_folder
from shoal.sources.models import load_model
from shoal.sources.npz import npz
from shoal.sources.text import documents
from shoal.sources.weights import load_weights
from shoal.store import read_record
from shoal.store.checkpoint import load_checkpoint
from shoal.store.load import open_model
from shoal.store.save import restore_weights

READERS = {
    "plan.json": read_plan,
    "record.json": lambda path: read_record(path.parent),
    "a.jsonl": documents,
    "a.txt": documents,
    "a.npz": npz,
    "a.pt": lambda path: load_weights(nn.Linear(2, 2), path),
    "a.safetensors": lambda path: load_weights(nn.Linear(2, 2), path),
    "a.safetensors.index.json": lambda path: load_weights(nn.Linear(2, 2), path),
    "model.safetensors": lambda path: restore_weights(nn.Linear(2, 2), path),
    "checkpoint.safetensors": load_checkpoint,
    "table.json": LatencyTableFile,
    "progress.jsonl": lambda path: JsonlFile(path).read(),
}
STRANGE = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "dangling": lambda path: path.symlink_to(path.with_name("nowhere")),
}


@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
@pytest.mark.parametrize("name", READERS)
def test_only_regular_files_are_opened_and_nothing_hangs(tmp_path, name, make):
    make(tmp_path / name)
    if (name, make) in ((one, os.mkdir) for one in ("a.jsonl", "a.txt")):
        pytest.skip("a folder of texts is meant")
    with pytest.raises(ShoalError):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' is there twice"),
        ('[{"b": {"c": 1, "d": 2, "c": 1}}]', "the key 'c' is there twice"),
        ("[NaN]", "a number is nan"),
        ("-Infinity", "a number is -inf"),
        ("1e999", "a number is inf"),
        ("1" + "0" * 400, "out of range"),
        ("1" * 9000, "limit"),
        ("[" * 65 + "]" * 65, "nested too deeply"),
        ("[" * 10**6, "nested too deeply"),
        ('{"a":' * 10**5, "nested too deeply"),
        (r'"\ud800"', "surrogates"),
        (r'{"\udfff": 1}', "surrogates"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
    ],
)
def test_what_is_refused_as_json(text, reason):
    with pytest.raises(FolderError, match=reason), refusing(FolderError, "no document"):
        parse_json(text)


def test_what_is_read_as_json():
    assert parse_json('{"a": [1.5, -3, null, true, "\\u00e9\\ud83d\\ude00"]}') == {"a": [1.5, -3, None, True, "é😀"]}
    assert parse_json("[" * 64 + "]" * 64)
    assert parse_json("[NaN, Infinity]", finite=False)[1] == float("inf")


def test_many_keys_one_of_them_twice_take_no_time():
    keys = ", ".join(f'"{number}": 1' for number in range(200_000))
    with pytest.raises(ValueError, match="the key '7' is there twice"):
        parse_json(f'{{{keys}, "7": 2}}')


def test_a_file_larger_than_the_bound_is_not_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"it holds 1099511627776 bytes, at most \d+ are read"):
        read_bytes(tmp_path / "sparse")
    (tmp_path / "latin").write_bytes("Übergröße".encode("latin-1"))
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "latin")


@pytest.mark.parametrize("panic", [True, False])
def test_panics_of_rust_are_refused_and_ctrl_c_is_not(panic):
    kind = type("PanicException", (BaseException,), {}) if panic else KeyboardInterrupt
    with pytest.raises(FolderError if panic else KeyboardInterrupt), refusing(FolderError, "damaged"):
        raise kind("range end index 9 out of range")


def test_an_error_quotes_no_more_than_fits_a_screen(tmp_path):
    error = SpecError("x" * 15_000_000 + "\x1b[2J\u202e", "y" * 15_000_000)
    assert len(str(error)) < 5000
    assert "\\u001b[2J\\u202e" in error.message
    assert "more" in error.message
    for spec in ("x" * 10**6, "hf:" + "a/" * 10**5, "\x00", "~nobody-of-this-name/a.py:f", "a\x00.py:f", "a\nb"):
        with pytest.raises(ShoalError) as caught:
            load_model(spec)
        assert len(str(caught.value)) < 6000
        with pytest.raises(ShoalError):
            open_model(spec)


# Weights


def holding_itself():
    content: dict[str, object] = {}
    content["state_dict"] = content
    return content


def in_a_circle():
    first: dict[str, object] = {}
    first["model"] = {"state_dict": {"model_state_dict": first}}
    return first


@pytest.mark.parametrize("make", [holding_itself, in_a_circle])
def test_a_checkpoint_that_holds_itself(tmp_path, make):
    torch.save(make(), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match="holds no state dict"):
        load_weights(nn.Linear(2, 2), tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (torch.zeros(1).expand(2, 2), "holds 4 bytes"),
        (torch.zeros(1).expand(10**6, 10**6), "holds 4 bytes"),
        (torch.zeros(2, 2).to_sparse(), "no plain tensor"),
        (torch.zeros(2, 2, dtype=torch.int64), "whole numbers, expected floating-point numbers"),
        (torch.zeros(2, 2, dtype=torch.complex64), "complex numbers, expected floating-point numbers"),
        (torch.zeros(2, 2, dtype=torch.bool), "truth values, expected floating-point numbers"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_are_something_else(tmp_path, value, reason, suffix):
    network, state = nn.Linear(2, 2), {"weight": value, "bias": torch.zeros(2)}
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    if suffix == ".pt":
        torch.save(state, tmp_path / "a.pt")
    elif "expected" not in reason:
        return
    else:
        from safetensors.torch import save_file

        save_file(state, tmp_path / "a.safetensors")
        with pytest.raises(WeightsError, match=reason):
            restore_weights(network, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=reason):
        load_weights(network, tmp_path / f"a{suffix}")
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_torch_file_that_unpacks_to_a_thousand_times_its_size(tmp_path):
    torch.save({"weight": torch.zeros(2**25)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "a.pt", "w", 8) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert (tmp_path / "a.pt").stat().st_size < 2**20
    with pytest.raises(WeightsError, match=r"would unpack to 134217728"):
        load_weights(nn.Linear(2, 2), tmp_path / "a.pt")


# Data


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)


def as_npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


IMAGES = as_npy(np.arange(12 * 16, dtype=np.uint8).reshape(12, 1, 4, 4))


def test_arrays_that_nobody_needs_are_not_unpacked(tmp_path, monkeypatch):
    archive(tmp_path / "a.npz", x_train=IMAGES, x_test=IMAGES, x_more=bytes(2**28), other=pickle.dumps(print))
    unpacked = []
    plain = zipfile.ZipFile.open

    def opened(self, member, *args, **kwargs):
        unpacked.append(member.filename)
        return plain(self, member, *args, **kwargs)

    monkeypatch.setattr(zipfile.ZipFile, "open", opened)
    assert len(npz(tmp_path / "a.npz").train) == 12
    assert unpacked == ["x_train.npy", "x_test.npy"]


def test_an_array_that_unpacks_to_a_thousand_times_its_size(tmp_path):
    archive(tmp_path / "a.npz", x_train=as_npy(np.zeros((2**24, 2, 2, 2), np.uint8)), x_test=IMAGES)
    with pytest.raises(DataError, match=r"would unpack to 134217856"):
        npz(tmp_path / "a.npz")


def test_a_header_that_promises_more_than_there_is(tmp_path):
    archive(tmp_path / "a.npz", x_train=IMAGES.replace(b"(12, 1, 4, 4)", b"(9**9,1,4, 4)"), x_test=IMAGES)
    with pytest.raises(DataError, match="cannot be read as"):
        npz(tmp_path / "a.npz")
    archive(tmp_path / "b.npz", x_train=IMAGES.replace(b"(12, 1, 4, 4)", b"(99999,1,4,4)"), x_test=IMAGES)
    with pytest.raises(DataError, match="would take 1599984 bytes, it has"):
        npz(tmp_path / "b.npz")


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_come_back_as_numpy_reads_them(tmp_path, order):
    x = np.asarray(np.random.default_rng(0).normal(size=(12, 2, 3)).astype(np.float32), order=order)
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x[:5], y_train=np.arange(12) % 2, y_test=np.arange(5) % 2)
    found = npz(tmp_path / "a.npz")
    assert torch.equal(found.train.take(torch.arange(12)), torch.from_numpy(np.ascontiguousarray(x)))
    assert found.test_labels.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("label", [10**9, 2**63 - 1, 2**64 - 1])
def test_labels_that_no_data_set_has(tmp_path, label):
    y = np.array([0] * 11 + [label], np.uint64)
    archive(tmp_path / "a.npz", x_train=IMAGES, x_test=IMAGES, y_train=as_npy(y), y_test=as_npy(y))
    with pytest.raises(DataError, match=f"holds a label of {label}"):
        npz(tmp_path / "a.npz")


@pytest.mark.parametrize("size", [(1, 200_000), (20_000, 20_000)])
def test_a_small_picture_that_becomes_gigabytes(tmp_path, size):
    from PIL import Image

    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        Image.new("1", size).save(tmp_path / part / "a" / "0.png")
    with pytest.raises(DataError, match=r"cannot be read as an image: (it would take|Image size)"):
        image_folder(tmp_path, 224).train.take(torch.tensor([0]))


def test_lines_end_where_json_lines_do(tmp_path):
    texts = ["a\u2028b", "c\x0bd\x1ce\x85f", "g\u2029"]
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
    (tmp_path / "a.jsonl").write_bytes("\r\n".join(lines).encode())
    assert documents(tmp_path / "a.jsonl").train == texts
    (tmp_path / "b.txt").write_text("one\u2028still one\n\ntwo\n\nthree", encoding="utf-8")
    assert documents(tmp_path / "b.txt").train == ["one\u2028still one", "two", "three"]
    (tmp_path / "c.jsonl").write_text(3 * '{"text": "\\ud800"}\n')
    with pytest.raises(DataError, match="line 1 is no text"):
        documents(tmp_path / "c.jsonl")
    (tmp_path / "d.jsonl").write_text("[" * 100_000)
    with pytest.raises(DataError, match="line 1 is no JSON: it is nested too deeply"):
        documents(tmp_path / "d.jsonl")


# Plans and tables


@pytest.mark.parametrize(
    "inputs",
    ['[{"shape": [100000, 100000], "dtype": "float32"}]', '[{"shape": [-1], "dtype": "float32"}]', "[" * 1000],
)
def test_plans_that_would_take_all_memory(tmp_path, inputs):
    text = f'{{"inputs": {inputs}, "network": {{"state": {{}}, "chain": []}}, "actions": []}}'
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(PlanError, match="is no plan of version"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("ms", ["1e999", "NaN", "1" + "0" * 400, "-1", '"x"', "null", "[]"])
def test_times_that_are_none(tmp_path, ms):
    (tmp_path / "t.json").write_text(f'{{"entries": {{"a": {{"ms": {ms}}}}}, "whole_ms": 1, "batch": 1}}')
    with pytest.raises(SpecError, match="is an invalid latency table"):
        LatencyTableFile(tmp_path / "t.json")


def test_the_home_folder_is_known_where_no_shell_puts_it_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert from_home("~/a") == tmp_path / "a"
    assert from_home("b/~") == Path("b/~")
    assert from_home("~nobody-of-this-name/c") == Path("~nobody-of-this-name/c")
    arrays = {f"x_{part}": np.zeros((4, 3)) for part in ("train", "test")}
    np.savez(tmp_path / "data.npz", **arrays, y_train=np.arange(4), y_test=np.arange(4))
    assert load_data("npz:~/data.npz").describe()["shape"] == [3]
    with pytest.raises(SpecError, match="'~nobody-of-this-name"):
        load_model("~nobody-of-this-name/net.py:build")
    with pytest.raises(DataError, match="there is no file '~nobody-of-this-name/data"):
        load_data("npz:~nobody-of-this-name/data.npz")
