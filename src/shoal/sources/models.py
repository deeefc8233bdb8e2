"""Networks by specification: the embedded one, a library's, or what the user's own function returns."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shoal.alignment import align_
from shoal.errors import (
    ConsentError,
    ShoalError,
    SpecError,
    UsageError,
    WeightsError,
    check_memory,
    did_you_mean,
    expect_type,
)
from shoal.files.reading import from_home, is_file, is_folder
from shoal.sources.builtin_networks import cifar_preact_resnet, digits_resnet
from shoal.sources.diffusion import diffusers_network
from shoal.sources.registry import ModelSource, source_table, takes_rest
from shoal.sources.spec_hints import model_hint
from shoal.sources.user_code import call_function, is_file_spec
from shoal.sources.weights import load_weights

_PRETRAINED = "@pretrained"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network and where it came from.

    Args:
        model: in eval mode, on the CPU.
        spec: the specification that loads it again.
        runs_code: whether loading it again runs the user's own code.
        num_classes: outputs of its classifier, where it has one.
    """

    model: nn.Module
    spec: str
    runs_code: bool = False
    num_classes: int | None = None


def load_model(spec: str, weights: Path | None = None, *, fetch: bool = True) -> LoadedModel:
    """Load a network.

    Args:
        spec: one of
            `digits-resnet`: the embedded network, trained;
            `cifar-preact-resnet:DEPTH` or `:DEPTH:CLASSES`: for 32x32 images, random weights;
            `torchvision:NAME`, `timm:NAME`: random weights unless `weights` is given; with `@pretrained` at
            the end, the library's own weights, which it fetches once from the network;
            `hf:PATH_OR_ID`: a folder or hub name of transformers, from safetensors only; code that lies in
            the repository is never run;
            `hf-diffusers:PATH_OR_ID`: the denoising network of a pipeline of diffusers, or a network alone;
            `FILE.py:FUNCTION`: a function without arguments that returns an `nn.Module`.
        weights: a checkpoint to load into it, see `load_weights`.
        fetch: a library may fetch weights from the network; else only what is on this machine is used.

    Raises:
        ConsentError: it would have to be fetched, and may not.
        SpecError: unknown, a folder, or not a network; with near matches.
        UsageError: `@pretrained` and `weights` together.
        ModelRaisedError: the user's file or function raised.
        WeightsError: the checkpoint does not fit.
    """
    spec = expect_type(spec, str, "MODEL", "Like 'timm:resnet18'; a network of yours needs no loading.").strip()
    if weights is not None and spec.endswith(_PRETRAINED):
        raise UsageError(f"'{spec}' brings its own weights", f"Leave out {_PRETRAINED} or --weights.")
    runs_code = is_file_spec(spec)
    model = _build(spec, from_config=weights is not None, fetch=fetch)
    if weights is not None:
        load_weights(model, weights)
    align_(model)  # transformers maps its files, and a user's own function may do so too
    return LoadedModel(model.eval(), spec, runs_code, _classes(model))


def _build(spec: str, from_config: bool, fetch: bool) -> nn.Module:
    if is_file_spec(spec):
        return _from_file(spec)
    name, colon, rest = spec.partition(":")
    source = MODEL_SOURCES.get(name)
    if isinstance(source, ModelSource) and bool(colon) == bool(rest) == takes_rest(source.form):
        return source.build(str(from_home(rest)) if rest.startswith("~") else rest, from_config, fetch)
    if spec and is_folder(Path(spec)):
        raise SpecError(
            f"'{spec}' is a folder, but not an output folder of Shoal",
            "A Hugging Face folder is loaded with hf:PATH.",
        )
    raise SpecError(f"unknown MODEL '{spec}'", _hint(spec, name, colon))


def _hint(spec: str, name: str, colon: str) -> str:
    from shoal.sources.data import data_names

    names = [f"{name}:" if takes_rest(source.form) else name for name, source in _BUILTIN.items()]
    near = did_you_mean(
        f"{name}:" if colon else spec, [*names, *(f"{key}:" for key in MODEL_SOURCES if key not in _BUILTIN)]
    )
    forms = [*(source.form for source in _BUILTIN.values()), "FILE.py:FUNCTION"]
    hints = (
        near if near.startswith("Did") else "",
        model_hint(spec, data_names()),
        f"Known forms: {', '.join(forms)}.",
    )
    return " ".join(hint for hint in hints if hint)


def _from_file(spec: str) -> nn.Module:
    model = call_function(spec)
    if not isinstance(model, nn.Module):
        extra = " Did you mean to return an instance of it?" if inspect.isclass(model) else ""
        raise SpecError(
            f"'{spec}' returned {getattr(model, '__name__', type(model).__name__)}, not a torch.nn.Module",
            f"Let the function return the network.{extra}",
        )
    return model


def _torchvision(name: str, from_config: bool, fetch: bool) -> nn.Module:
    torchvision = _library("torchvision", "vision")
    name, pretrained = name.removesuffix(_PRETRAINED), name.endswith(_PRETRAINED)
    names = torchvision.models.list_models()
    if name not in names:
        raise SpecError(f"torchvision has no network '{name}'", did_you_mean(name, names))
    builder = torchvision.models.get_model_builder(name)
    # Detection and segmentation networks would fetch a trained backbone unasked.
    backbone = {"weights_backbone": None} if "weights_backbone" in inspect.signature(builder).parameters else {}
    if not pretrained:
        return builder(weights=None, **backbone)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    if not (fetch or is_file(Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name)):
        raise _unasked(f"torchvision:{name}{_PRETRAINED}")
    try:
        # Fetched here, so that a file with more than tensors in it is refused before the builder reads it.
        weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
        return builder(weights=weights, progress=False, **backbone)
    except (OSError, RuntimeError, AttributeError) as error:
        raise _not_fetched("torchvision", name, error) from error


def _timm(name: str, from_config: bool, fetch: bool) -> nn.Module:
    timm = _library("timm", "vision")
    name, pretrained = name.removesuffix(_PRETRAINED), name.endswith(_PRETRAINED)
    if not timm.is_model(name.partition(".")[0]):
        raise SpecError(f"timm has no network '{name}'", did_you_mean(name, timm.list_models()))
    if pretrained and not fetch:  # timm asks the hub even for what is here
        raise _unasked(f"timm:{name}{_PRETRAINED}")
    try:
        return timm.create_model(name, pretrained=pretrained)
    except (OSError, RuntimeError) as error:
        raise _not_fetched("timm", name, error) from error


def _hugging_face(name: str, from_config: bool, fetch: bool) -> nn.Module:
    transformers = _library("transformers", "text")
    _check_whole(name)
    local_folder = is_folder(Path(name))
    local = local_folder or not fetch
    try:
        config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, local_files_only=local)
        kind = _architecture(transformers, config, name)
        if from_config:
            # The configuration knows its folder, which is where the tokenizer lies.
            return kind(config)
        model, info = kind.from_pretrained(
            name, config=config, use_safetensors=True, output_loading_info=True, local_files_only=local
        )
    except ShoalError:
        raise
    except Exception as error:  # a configuration from elsewhere makes transformers raise anything
        check_memory(error, f"while 'hf:{name}' was loaded")
        if isinstance(error, OSError) and not (fetch or local_folder):
            raise _unasked(f"hf:{name}") from error
        if "custom code" in str(error) or "trust_remote_code" in str(error):
            raise SpecError(
                f"'hf:{name}' brings its own code, which Shoal does not run",
                "Read it, then load the network yourself in a function: FILE.py:FUNCTION.",
            ) from error
        raise _not_fetched("transformers", name, error) from error
    missing = sorted(info["missing_keys"])
    if missing:
        # transformers fills them with random numbers and only logs it.
        raise WeightsError(
            f"'hf:{name}' has no weights for {len(missing)} tensors, such as {', '.join(missing[:3])}",
            "Use a repository that is complete for the class named in its config.json.",
        )
    return model


def _check_whole(name: str) -> None:
    """Refuse a folder that holds an adapter alone: what it adapts is elsewhere."""
    if is_file(Path(name) / "adapter_config.json"):
        raise SpecError(
            f"'hf:{name}' holds an adapter (PEFT, LoRA), not a network",
            "Merge it into its network first: merge_and_unload(), then save_pretrained().",
        )


def _architecture(transformers: Any, config: Any, name: str) -> Any:
    """The class of transformers that config.json names, or the one for the bare model type."""
    architectures = getattr(config, "architectures", None)
    if not architectures:
        kind = transformers.MODEL_MAPPING.get(type(config), None)
    else:
        kind = getattr(transformers, architectures[0], None)
    if isinstance(kind, type) and issubclass(kind, nn.Module):
        return kind
    raise SpecError(
        f"transformers has no class for 'hf:{name}', which asks for {architectures or type(config).__name__}",
        "Update transformers; Shoal never runs code from a model repository.",
    )


def _library(name: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SpecError(f"{name} is not installed", f"pip install 'shoal[{extra}]'") from error


def _unasked(spec: str) -> ConsentError:
    return ConsentError(
        f"'{spec}' would have to be downloaded, which was not requested",
        "A folder names it. Repeat with --trust-code (in Python: trust_code=True), or name it yourself.",
    )


def _not_fetched(library: str, name: str, error: Exception) -> ShoalError:
    reason = str(error).strip().splitlines()
    return WeightsError(
        f"{library} could not load '{name}': {reason[0] if reason else type(error).__name__}",
        "Check the name and the connection to the internet, or load a file that you have with --weights.",
    )


def _classes(model: nn.Module) -> int | None:
    """The number of classes: what the network says of itself, or the outputs of a linear layer at its end."""
    num_classes = getattr(model, "num_classes", None)
    if isinstance(num_classes, int) and num_classes > 0:
        return num_classes
    config = getattr(model, "config", None)
    if config is not None:
        is_classifier = type(model).__name__.endswith("Classification")
        labels = getattr(config, "num_labels", None)
        return labels if is_classifier and isinstance(labels, int) else None
    layers = [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]
    return layers[-1].out_features if layers and isinstance(layers[-1], nn.Linear) else None


_BUILTIN = {
    "digits-resnet": ModelSource(
        "digits-resnet", lambda rest, from_config, fetch: digits_resnet(), "ships with Shoal, trained"
    ),
    "cifar-preact-resnet": ModelSource(
        "cifar-preact-resnet:DEPTH",
        lambda rest, from_config, fetch: cifar_preact_resnet(rest),
        "for images of 32 x 32, with random weights",
    ),
    "torchvision": ModelSource(
        "torchvision:NAME", _torchvision, f"random weights; NAME{_PRETRAINED} fetches trained ones"
    ),
    "timm": ModelSource("timm:NAME", _timm, f"random weights; NAME{_PRETRAINED} fetches trained ones"),
    "hf": ModelSource("hf:PATH_OR_ID", _hugging_face, "a network of transformers: a folder, or a name on the hub"),
    "hf-diffusers": ModelSource(
        "hf-diffusers:PATH_OR_ID", diffusers_network, "the denoising network of a pipeline of diffusers"
    ),
}
MODEL_SOURCES = source_table(_BUILTIN)
