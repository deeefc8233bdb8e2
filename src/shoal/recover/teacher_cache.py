"""What a teacher says to the samples that a student learns from, on disk: then it need not be beside the student.

Of scores of classes the k largest log-probabilities are kept, and what is left to all others together, which is spread
evenly over them; every other output is kept whole. A file holds the outputs for one part of a mini-batch, under a
digest of its inputs: the same inputs are computed once, however often they come, and other inputs are never mistaken
for them.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from shoal.batches import Batch
from shoal.errors import FolderError
from shoal.files.tensors import read_tensors, write_tensors
from shoal.fingerprint import digest_of
from shoal.measure import Reading
from shoal.measure.output_reading import OutputReading
from shoal.outputs import read_outputs
from shoal.record import TeacherCacheRecord
from shoal.recover.checkpoint import ensure_dir
from shoal.recover.trainable import forward_in_format
from shoal.training.engine import Engine

FOLDER = "teacher"
_ERROR = "truncation"


class TeacherCache:
    """The outputs of one teacher in a folder, and the teacher for those that are not there yet.

    Args:
        folder: of the run.
        teacher: in eval mode; until `release` on the engine's device.
        digest: of the teacher.
        engine: runs it.
        reading: how its outputs are read.
        top_k: how many classes of each sample or position are kept.
    """

    def __init__(
        self, folder: Path, teacher: nn.Module, digest: str, engine: Engine, reading: Reading, top_k: int
    ) -> None:
        self.folder = ensure_dir(folder / FOLDER / f"{digest}-{top_k}")
        self.teacher, self.engine, self.reading, self.top_k = teacher, engine, reading, top_k
        self.missed, self._released = 0, False
        self._errors: dict[str, tuple[float, int]] = {}

    def keep(self, batch: Batch) -> None:
        """Have the outputs for these inputs on the disk.

        Raises:
            FolderError: the disk is full, or the folder is not writable.
        """
        path = self._path(batch)
        if path.exists():
            return
        outputs = self._run(batch)
        tensors: dict[str, Tensor] = {}
        error = torch.zeros(2, dtype=torch.float64)
        for output in self.reading.outputs:
            tensors |= _reduced(output, outputs[output.name].detach(), self.top_k, error)
        write_tensors(path, {**tensors, _ERROR: error}, {})

    def release(self) -> None:
        """The teacher leaves the device; it comes back for inputs that are missed alone."""
        self.teacher.to("cpu")
        self._released = True

    def outputs(self, batch: Batch) -> dict[str, Tensor]:
        """The teacher's outputs for these inputs, on their device.

        Raises:
            FolderError: a file is damaged, or cannot be written.
        """
        path = self._path(batch)
        if not path.exists():
            self.missed += self._released
            self.keep(batch)
        message, hint = f"'{path}' is damaged", "Remove it: it is made again."
        tensors, _ = read_tensors(path, FolderError, message, hint, sealed=True)
        error = tensors.pop(_ERROR)
        self._errors[path.stem] = float(error[0]), int(error[1])
        device = batch.tensors[0].device
        tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
        return {output.name: _restored(output, tensors) for output in self.reading.outputs}

    def _run(self, batch: Batch) -> Mapping[str, Tensor]:
        self.teacher.to(self.engine.device)
        try:
            with torch.no_grad(), self.engine.autocast():
                return read_outputs(forward_in_format(self.teacher, batch)).tensors
        finally:
            if self._released:
                self.teacher.to("cpu")

    def record(self) -> TeacherCacheRecord:
        """What was kept of all that was asked for, and what that leaves out."""
        total = sum(error for error, _ in self._errors.values())
        positions = sum(count for _, count in self._errors.values())
        size = sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))
        return TeacherCacheRecord(
            top_k=self.top_k, error=total / max(1, positions), n=positions, bytes=size, missed=self.missed
        )

    def _path(self, batch: Batch) -> Path:
        return self.folder / f"{digest_of([Batch(batch.args, batch.kwargs)])}.safetensors"


def _reduced(output: OutputReading, tensor: Tensor, top_k: int, error: Tensor) -> dict[str, Tensor]:
    """What is kept of an output; the divergence that is left out, and at how many positions, is added to `error`."""
    if output.task != "classes" or tensor.shape[output.axis] <= top_k:
        return {f"{output.name}.whole": tensor}
    log_probabilities = tensor.float().movedim(output.axis, -1).log_softmax(dim=-1)
    values, indices = log_probabilities.topk(top_k, dim=-1)
    others = log_probabilities.scatter(-1, indices, -math.inf)
    rest = others.logsumexp(dim=-1)
    even = rest - math.log(tensor.shape[output.axis] - top_k)
    lost = torch.where(others.isinf(), 0.0, others.exp() * (others - even.unsqueeze(-1)))
    error += torch.tensor([float(lost.sum(dtype=torch.float64)), rest.numel()], dtype=torch.float64)
    size = torch.tensor(tensor.shape[output.axis])
    kept = {"values": values, "indices": indices.int(), "even": even, "classes": size}
    return {f"{output.name}.{name}": value for name, value in kept.items()}


def _restored(output: OutputReading, tensors: Mapping[str, Tensor]) -> Tensor:
    """The output, as log-probabilities where it was reduced."""
    whole = tensors.get(f"{output.name}.whole")
    if whole is not None:
        return whole
    values, indices, even, classes = (
        tensors[f"{output.name}.{name}"] for name in ("values", "indices", "even", "classes")
    )
    spread = even.unsqueeze(-1).expand(*even.shape, int(classes)).clone()
    return spread.scatter_(-1, indices.long(), values).movedim(-1, output.axis)
