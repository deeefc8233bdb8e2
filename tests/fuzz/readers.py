"""Every reader of files that may come from elsewhere, as functions of bytes: for the suite and for `make fuzz`.

`SOUND` holds a file that each one reads; what is fed to a reader is altered from it. Only a `ShoalError` may leave.
"""

import io
import json
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load, save
from torch import nn

from shoal.epsilon.trainer import METRICS
from shoal.errors import FolderError, ShoalError
from shoal.files.jsonl import JsonlFile
from shoal.files.reading import read_json, refusing
from shoal.files.tensors import DIGEST, digest_of_tensors
from shoal.pipeline.cache import FINGERPRINT, MeasurementCache
from shoal.pipeline.latency_backends import LatencyTableFile
from shoal.plan import InputSpec, NetworkSignature, Plan, Remove, read_plan
from shoal.sources.image_sets import image_folder
from shoal.sources.npz import npz
from shoal.sources.text import documents
from shoal.sources.weights import load_weights
from shoal.store import RunFolder, read_record
from shoal.store.checkpoint import load_checkpoint, save_checkpoint
from shoal.store.save import restore_weights, save_weights
from shoal.surgery import example_of
from shoal.training.metrics import MetricsLog
from shoal.training_record import EpochRow


def _written(write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        write(path)
        return path.read_bytes()


def _torch(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def _npz() -> bytes:
    buffer = io.BytesIO()
    x, y = np.zeros((12, 1, 4, 4), np.uint8), np.arange(12) % 3
    np.savez_compressed(buffer, x_train=x, y_train=y, x_test=x, y_test=y)
    return buffer.getvalue()


def _picture() -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (9, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def _sealed(line: dict[str, object]) -> bytes:
    return _written(lambda path: JsonlFile(path).append(line))


NETWORK = nn.Linear(2, 2)
STATE = {name: tensor.clone() for name, tensor in NETWORK.state_dict().items()}
_PLAN = Plan(
    model="digits-resnet",
    inputs=[InputSpec(shape=[1, 8, 8], dtype="float32")],
    network=NetworkSignature(state={"a": "float32[2]"}, chain=["a"]),
    actions=[Remove(path="a")],
)
_TABLE = {"entries": {"a": {"ms": 1.0}}, "whole_ms": 2.0, "batch": 4, "device": "cpu"}
_PRICES = {"kind": "prices", "source": "here", "ms": {"a": 1.5}}
_EPOCH = EpochRow(
    epoch=1, rate=0.1, decay=1e-4, epsilon=2.5, loss=0.7, train_error=0.3, alive=3, closed=["a"], shares={"b": 0.5},
    seconds=1.5,
)  # fmt: skip
_OLD = Path(__file__).parent.parent / "fixtures" / "folders-0.1.0"
_CLAIM = {"command": "compress", "arguments": {"seed": 0}, "shoal": "0.1.0"}

SOUND: dict[str, bytes] = {
    "plan": _PLAN.model_dump_json().encode(),
    "record": (_OLD / "planned" / "record.json").read_bytes(),
    "claim": json.dumps(_CLAIM).encode(),
    "journal": _sealed({"n": 1}) * 2,
    "tables": _sealed(_PRICES),
    "metrics": _sealed(_EPOCH.model_dump(mode="json")) * 2,
    "latencies": json.dumps(_TABLE).encode(),
    "weights": _written(lambda path: save_weights(NETWORK, path)),
    "checkpoint": _written(lambda path: save_checkpoint(path, STATE, {"epoch": 1})),
    "safetensors": save(STATE),
    "pt": _torch({"state_dict": STATE}),
    "shards": b'{"weight_map": {"weight": "b.safetensors", "bias": "b.safetensors"}}',
    "npz": _npz(),
    "picture": _picture(),
    "jsonl": b"".join(b'{"text": "document %d"}\n' % number for number in range(12)),
    "text": b"\n\n".join(b"document %d" % number for number in range(12)),
}


def _sums(content: bytes) -> bytes:
    """Lines with checksums that fit them, so that what stands in them is read too."""
    lines = (line.rpartition(b'"crc32"')[0] for line in content.split(b"\n"))
    return b"".join(line + b'"crc32": "%08x"}\n' % zlib.crc32(line) for line in lines if line)


def _digests(content: bytes) -> bytes:
    """A file of tensors with the digest that fits it, if it is one, so that what stands in it is read too."""
    try:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + min(length, len(content))])
        text = {key: value for key, value in header.get("__metadata__", {}).items() if key != DIGEST}
        tensors = load(content)
        return save(tensors, {**text, DIGEST: digest_of_tensors(tensors, text)})
    except Exception:  # noqa: BLE001 - no such file: the reader has to see that
        return content


def _repaired(kind: str, content: bytes) -> bytes:
    """With checksums and digests that fit an altered content: without, every reader would refuse it for these alone."""
    if kind in ("tables", "metrics", "journal"):
        return _sums(content)
    return _digests(content) if kind in ("weights", "checkpoint") else content


def _read(kind: str, content: bytes, folder: Path) -> None:
    names = {"weights": "model.safetensors", "pt": "a.pt", "npz": "a.npz", "jsonl": "a.jsonl", "text": "a.txt"}
    names |= {"shards": "a.safetensors.index.json", "safetensors": "b.safetensors", "record": "record.json"}
    names |= {"claim": "run.json", "tables": "tables.jsonl", "metrics": METRICS}
    path = folder / names.get(kind, "file")
    path.write_bytes(content)
    if kind == "shards":
        (folder / "b.safetensors").write_bytes(SOUND["safetensors"])
    _READERS[kind](path)


def _tables(path: Path) -> None:
    (path.parent / FINGERPRINT).write_text("{}")
    cache = MeasurementCache(path.parent, {})
    cache.latencies("here")
    cache.damages()


def _picture_of(content: bytes, folder: Path) -> None:
    for part in ("train", "test"):
        (folder / part / "a").mkdir(parents=True)
        (folder / part / "a" / "0.png").write_bytes(content)
    image_folder(folder, 8).train.take(torch.tensor([0]))


_READERS: dict[str, Callable[[Path], object]] = {
    "plan": lambda path: example_of(read_plan(path).inputs),
    "record": lambda path: read_record(path.parent),
    "claim": lambda path: RunFolder(path.parent, "compress", {"seed": 0}).release(),
    "journal": lambda path: JsonlFile(path).read(),
    "tables": _tables,
    "metrics": lambda path: MetricsLog(EpochRow, "epoch", JsonlFile(path)).resume(1, count=1),
    "latencies": LatencyTableFile,
    "weights": lambda path: restore_weights(nn.Linear(2, 2), path),
    "checkpoint": load_checkpoint,
    "safetensors": lambda path: load_weights(nn.Linear(2, 2), path),
    "pt": lambda path: load_weights(nn.Linear(2, 2), path),
    "shards": lambda path: load_weights(nn.Linear(2, 2), path),
    "npz": npz,
    "picture": lambda path: _picture_of(path.read_bytes(), path.parent),
    "jsonl": documents,
    "text": documents,
}


def feed(kind: str, content: bytes) -> ShoalError | None:
    """Give a reader a file of these bytes, then one with checksums that fit; returns why it refused the last."""
    refusal = None
    for version in dict.fromkeys((content, _repaired(kind, content))):
        refusal = None
        with tempfile.TemporaryDirectory() as folder:
            try:
                _read(kind, version, Path(folder))
            except ShoalError as error:
                refusal = error
    return refusal


def anything_read_as_json(content: bytes) -> None:
    """The layer below the readers."""
    with tempfile.TemporaryDirectory() as folder, refusing(FolderError, "no document"):
        path = Path(folder) / "a.json"
        path.write_bytes(content)
        json.dumps(read_json(path), allow_nan=False).encode()
