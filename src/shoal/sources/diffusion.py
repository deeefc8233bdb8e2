"""Denoising networks of diffusers, and what to calibrate them on: the latents of the model's own trajectories.

A denoising network is used at every timestep, and what it sees there is what itself has made of noise so far. So
calibration samples are (latent, timestep, condition) triples from trajectories that the original network and its own
scheduler run from noise; no data set is needed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shoal.errors import DataError, ShoalError, SpecError, WeightsError, check_memory
from shoal.files.reading import is_file, is_folder, read_json, refusing

_PARTS = ("transformer", "unet")
TRAJECTORIES, STEPS, LARGEST_BATCH = 40, 12, 16
_HOW = "Write a function that yields dicts of the network's inputs: FILE.py:FUNCTION."


def diffusers_network(name: str, from_config: bool, fetch: bool) -> nn.Module:
    """The denoising network of a pipeline, or a network alone: a folder or hub name of diffusers.

    Raises:
        SpecError: diffusers is not installed, or there is no such network.
        WeightsError: it cannot be loaded.
    """
    diffusers = _library()
    subfolder = _subfolder(name)
    try:
        config = diffusers.UNet2DModel.load_config(name, subfolder=subfolder, local_files_only=not fetch)
        kind = getattr(diffusers, str(config.get("_class_name")), None)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise SpecError(
                f"diffusers has no network '{config.get('_class_name')}', which 'hf-diffusers:{name}' asks for",
                "Update diffusers; Shoal never runs code from a model repository.",
            )
        if from_config:
            return kind.from_config(config)  # type: ignore[attr-defined]
        loaded: nn.Module = kind.from_pretrained(  # type: ignore[attr-defined]
            name, subfolder=subfolder, use_safetensors=True, local_files_only=not fetch
        )
    except ShoalError:
        raise
    except Exception as error:  # a configuration from elsewhere makes diffusers raise anything
        check_memory(error, f"while 'hf-diffusers:{name}' was loaded")
        lines = str(error).strip().splitlines()
        raise WeightsError(
            f"diffusers could not load '{name}': {lines[0] if lines else type(error).__name__}",
            "Give a folder with config.json and safetensors, or with model_index.json.",
        ) from error
    return loaded


def _subfolder(name: str) -> str | None:
    """Where in a pipeline its denoising network lies; None for a network alone."""
    if not is_folder(Path(name)):
        return None
    if is_file(Path(name) / "model_index.json"):
        part = next((part for part in _PARTS if is_folder(Path(name) / part)), None)
        if part is None:
            raise SpecError(f"the pipeline '{name}' has neither of {', '.join(_PARTS)}", "Give the network's folder.")
        return part
    return None


def pipeline_trajectories(path: Path) -> tuple["Trajectories", "Trajectories"]:
    """Train and test mini-batches of a pipeline's folder: scheduler and network are its own.

    Raises:
        DataError: no pipeline, or a network that is conditioned on text or images.
        And what `diffusers_network` may raise.
    """
    _library()
    with refusing(DataError, f"'{path}' is no pipeline of diffusers", "Expected model_index.json and scheduler/."):
        kind = read_json(path / "model_index.json")["scheduler"][1]
    scheduler = load_scheduler(path, str(kind))
    model = diffusers_network(str(path), False, False).eval()
    return Trajectories(model, scheduler, seed=0), Trajectories(model, scheduler, TRAJECTORIES // 4, seed=1)


def load_scheduler(path: Path, kind: str | None = None) -> Any:
    """The scheduler in the folder `scheduler` of a pipeline.

    Args:
        path: of the pipeline.
        kind: its class; None: as the scheduler's configuration says.

    Raises:
        DataError: there is none, or it cannot be loaded.
    """
    diffusers = _library()
    with refusing(DataError, f"the scheduler of '{path}' cannot be loaded", "Is scheduler/ complete?"):
        kind = kind or str(read_json(path / "scheduler" / "scheduler_config.json")["_class_name"])
        return getattr(diffusers, kind).from_pretrained(path, subfolder="scheduler", local_files_only=True)


@dataclass(eq=False)
class Trajectories:
    """Mini-batches of what a denoising network sees while its scheduler runs from noise; made once, then kept.

    Every mini-batch holds all timesteps of some trajectories, so that any part of the data has all of them.

    Args:
        model: called as diffusers does: `sample` or `hidden_states`, `timestep`, perhaps `class_labels`.
        scheduler: of diffusers; it is left with other timesteps set.
        count: trajectories.
        steps: timesteps of each.
        seed: of noise and classes.
    """

    model: nn.Module
    scheduler: Any
    count: int = TRAJECTORIES
    steps: int = STEPS
    seed: int = 0

    def __post_init__(self) -> None:
        self._made: list[dict[str, Tensor]] | None = None

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        if self._made is None:
            self._made = list(self._run())
        return iter(self._made)

    @torch.no_grad()
    def _run(self) -> Iterator[dict[str, Tensor]]:
        config: Any = self.model.config
        generator = torch.Generator().manual_seed(self.seed)
        at_once = max(1, LARGEST_BATCH // self.steps)
        like = next(self.model.parameters())
        for start in range(0, self.count, at_once):
            count = min(at_once, self.count - start)
            self.scheduler.set_timesteps(self.steps)
            shape = (count, config.in_channels, *_sides(config))
            latents = torch.randn(shape, generator=generator).to(like) * float(self.scheduler.init_noise_sigma)
            condition = self._condition(count, generator)
            seen = []
            for timestep in self.scheduler.timesteps:
                inputs = self.scheduler.scale_model_input(latents, timestep)
                batch = {_input_name(self.model): inputs, "timestep": timestep.repeat(count), **condition}
                seen.append(batch)
                noise = self.model(**batch).sample[:, : config.in_channels]  # the rest is a learned variance
                latents = self.scheduler.step(noise, timestep, latents, generator=generator).prev_sample
                if not torch.isfinite(latents).all():
                    raise DataError(f"the latents of the pipeline are NaN or Inf at timestep {timestep}", _HOW)
            yield {name: torch.cat([batch[name] for batch in seen]) for name in seen[0]}

    def _condition(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random classes, where the network takes classes.

        Raises:
            DataError: it is conditioned on something else.
        """
        config: Any = self.model.config
        if getattr(config, "cross_attention_dim", None) or getattr(config, "joint_attention_dim", None):
            raise DataError(
                f"{type(self.model).__name__} is conditioned on text, which this source does not have", _HOW
            )
        kind = getattr(config, "class_embed_type", None)
        if kind is not None:
            raise DataError(
                f"{type(self.model).__name__} takes its class_labels as '{kind}', which this source does not have", _HOW
            )
        classes = getattr(config, "num_class_embeds", None) or _adaptive_norms(config)
        if not classes:
            return {}
        return {"class_labels": torch.randint(0, classes, (count,), generator=generator)}


def _adaptive_norms(config: Any) -> int | None:
    """The classes of a network whose norms depend on the class (DiT)."""
    norms = getattr(config, "norm_type", None)
    return getattr(config, "num_embeds_ada_norm", None) if norms == "ada_norm_zero" else None


def _sides(config: Any) -> tuple[int, int]:
    size = getattr(config, "sample_size", None)
    if not size:
        raise DataError("the network's configuration names no sample_size", _HOW)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _input_name(model: nn.Module) -> str:
    return "hidden_states" if "Transformer" in type(model).__name__ else "sample"


def _library() -> Any:
    try:
        import diffusers
    except ImportError as error:
        raise SpecError("diffusers is not installed", "pip install 'shoal[diffusion]'") from error
    return diffusers
