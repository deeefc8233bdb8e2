"""Latents of the user's own, at timesteps of the model's own scheduler, with any condition: latents:ROOT.

ROOT/train.safetensors and ROOT/test.safetensors hold tensors by the names of the network's inputs, one row a sample:
`sample` (of a transformer of diffusers `hidden_states`), and the condition, as `encoder_hidden_states` or
`class_labels`. With a `timestep` they are what the network is given. Without one they are clean, and every sample is
noised at several timesteps by the scheduler in ROOT/scheduler; what the network should answer is then known.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shoal.batches import Batch
from shoal.errors import DataError
from shoal.files.reading import is_folder
from shoal.files.tensors import read_tensors
from shoal.sources.diffusion import LARGEST_BATCH, STEPS, load_scheduler

_INPUTS = ("sample", "hidden_states")
_LEAST = 5  # mini-batches, where there are so many samples: one in five is kept for validation
_HOW = "Write a file for train and one for test, with tensors by the names of the network's inputs."


def latent_folder(root: Path) -> tuple["Latents", "Latents"]:
    """Train and test of such a folder.

    Raises:
        DataError: a file is missing or damaged, its tensors do not fit each other, or there is no timestep and no
            scheduler.
    """
    parts = []
    for seed, name in enumerate(("train", "test")):
        path = root / f"{name}.safetensors"
        tensors, _ = read_tensors(path, DataError, f"'{path}' holds no latents", _HOW)
        scheduler = load_scheduler(root) if "timestep" not in tensors and is_folder(root / "scheduler") else None
        parts.append(Latents(path, tensors, scheduler, seed))
    train, test = ({name: tuple(tensor.shape[1:]) for name, tensor in part.tensors.items()} for part in parts)
    if train != test:
        raise DataError(f"the tensors of a sample are {train} in train, {test} in test of '{root}'", _HOW)
    return parts[0], parts[1]


@dataclass(eq=False)
class Latents:
    """Mini-batches of a denoising network's inputs; each holds all timesteps of some samples.

    Args:
        path: of the file, for messages.
        tensors: by the names of the inputs, one row a sample.
        scheduler: of diffusers, where `tensors` are clean; it is left with other timesteps set.
        seed: of the noise.
    """

    path: Path
    tensors: dict[str, Tensor]
    scheduler: Any
    seed: int = 0

    def __post_init__(self) -> None:
        rows = {name: tuple(tensor.shape[:1]) for name, tensor in self.tensors.items()}
        self.name = next((name for name in _INPUTS if name in rows), "")
        if not self.name:
            raise DataError(f"'{self.path}' holds {', '.join(sorted(rows)) or 'nothing'}, and no latents", _HOW)
        if set(rows.values()) != {rows[self.name]} or rows[self.name] in ((), (0,)):
            raise DataError(
                f"the tensors of '{self.path}' differ in their number of rows: {rows}", "Give one a sample."
            )
        latents = self.tensors[self.name]
        if latents.dim() < 2 or not latents.is_floating_point():
            raise DataError(
                f"the latents of '{self.path}' are of shape {tuple(latents.shape)} and of {latents.dtype}",
                "They are numbers with a fraction, of two axes at least: one row a sample.",
            )
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                bad = int((~torch.isfinite(tensor)).sum())
                raise DataError(
                    f"the tensor '{name}' of '{self.path}' holds NaN or Inf: {bad} of {tensor.numel()} values",
                    "Leave these samples out.",
                )
        if self.scheduler is not None and latents.dim() != 4:
            raise DataError(
                f"the clean latents of '{self.path}' are of shape {tuple(latents.shape)}, no images to be noised",
                "Expected (samples, channels, height, width), or a timestep for each sample.",
            )
        if self.scheduler is not None and not hasattr(self.scheduler, "add_noise"):
            raise DataError(
                f"{type(self.scheduler).__name__} does not noise latents by timestep, as '{self.path}' needs it",
                "Noise them as the network was trained, and write the timestep of each beside them.",
            )
        if "timestep" in rows and self.tensors["timestep"].dim() > 1:
            raise DataError(
                f"the timesteps of '{self.path}' are of shape {tuple(self.tensors['timestep'].shape)}",
                "Give one number a sample.",
            )
        if "timestep" not in rows and self.scheduler is None:
            raise DataError(
                f"'{self.path}' has no timestep, and there is no scheduler beside it to noise clean latents",
                "Copy the folder scheduler of the pipeline there, or write the timesteps.",
            )

    def __iter__(self) -> Iterator[Batch]:
        count = len(self.tensors[self.name])
        at_once = max(1, LARGEST_BATCH // (1 if self.scheduler is None else STEPS))
        at_once = min(at_once, count // _LEAST or at_once)
        generator = torch.Generator().manual_seed(self.seed)
        for start in range(0, count, at_once):
            some = {name: tensor[start : start + at_once] for name, tensor in self.tensors.items()}
            yield Batch(kwargs=some) if self.scheduler is None else self._noised(some, generator)

    def _noised(self, some: dict[str, Tensor], generator: torch.Generator) -> Batch:
        """Every sample at every timestep, with the noise, the velocity or the sample as what is to be answered."""
        self.scheduler.set_timesteps(STEPS)
        steps = self.scheduler.timesteps.cpu()
        clean = some[self.name]
        repeated = {name: tensor.repeat_interleave(len(steps), dim=0) for name, tensor in some.items()}
        latents = repeated[self.name]
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        ones = torch.ones(1, *latents.shape[1:], dtype=latents.dtype)
        zeros = torch.zeros_like(ones)
        signal, spread = self._shown(ones, zeros, steps), self._shown(zeros, ones, steps)
        signal, spread = (part.repeat(len(clean), 1, 1, 1) for part in (signal, spread))
        kind = str(getattr(self.scheduler.config, "prediction_type", None))
        target = {"epsilon": noise, "sample": latents, "v_prediction": signal * noise - spread * latents}.get(kind)
        if hasattr(self.scheduler, "precondition_outputs"):  # what such a network returns is none of the three
            target = None
        noisy = signal * latents + spread * noise
        return Batch(kwargs={**repeated, self.name: noisy, "timestep": steps.repeat(len(clean))}, target=target)

    def _shown(self, clean: Tensor, noise: Tensor, steps: Tensor) -> Tensor:
        """What the network sees of one latent at every timestep; some schedulers scale what they have noised."""
        rows = []
        for step in steps:
            self.scheduler.set_timesteps(STEPS)  # forgets where the scheduler was
            rows.append(self.scheduler.scale_model_input(self.scheduler.add_noise(clean, noise, step[None]), step))
        return torch.cat(rows)
