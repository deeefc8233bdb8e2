"""The network and the mini-batch of a row, the same in every process."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from shoal.batches import Batch, call
from shoal.errors import ShoalError
from shoal.preserve import evaluating
from shoal.tasks import OutputRequest, dense_copy

_SIZES = (64, 128, 224, 256, 384)


@dataclass(frozen=True)
class Row:
    """One row of the table: a network, and the path below which its blocks are meant (of two towers, one)."""

    source: str
    name: str
    inside: str = ""

    @property
    def key(self) -> str:
        """Names it in files and in the table."""
        return f"{self.source}:{self.name}" + (f" ({self.inside.rstrip('.')})" if self.inside else "")


@dataclass(frozen=True)
class Way:
    """How a network was made: a number is a size it was built for (None: its own), the other that of its images."""

    built: int | None
    side: int | None


def made(row: Row, way: Way, seed: int) -> nn.Module:
    """The network of a row with random weights.

    No parameter is left at one number for all its elements: branches that begin at zero would hide what is wrong.
    """
    torch.manual_seed(seed)
    usual = _MAKERS[row.source](row.name, way.built).eval()
    model = dense_copy(OutputRequest().known(usual).task, usual)  # detectors: what their boxes are selected from
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
                parameter += 0.1 * torch.randn_like(parameter)
    return model


def batch_of(row: Row, way: Way) -> Batch:
    """Its mini-batch, two samples."""
    if row.source == "transformers":
        from covering.tiny_transformers import inputs

        return Batch(kwargs=inputs(row.name))
    if row.source == "diffusers":
        from covering import tiny_diffusers

        return Batch(kwargs=tiny_diffusers.inputs(row.name))
    generator = torch.Generator().manual_seed(0)
    return Batch(args=(torch.randn(2, 3, way.side, way.side, generator=generator),))


def way_of(row: Row) -> Way:
    """The smallest images the network takes, in the size it is built for or in its own.

    Raises:
        RuntimeError: it takes none of them; says what it raised at last.
    """
    if row.source in ("transformers", "diffusers"):
        return Way(None, None)
    failure: Exception | None = None
    for side in _SIZES:
        for built in (side, None):
            way = Way(built, side)
            try:
                _run(row, way)
            except Exception as error:  # noqa: BLE001 - each network refuses in its own way
                failure = error
            else:
                return way
    raise RuntimeError(f"it takes no images of {_SIZES}: {failure}")


def _run(row: Row, way: Way) -> None:
    model, batch = made(row, way, 0), batch_of(row, way)
    with evaluating(model):
        try:
            call(model, batch)
        except ShoalError as error:
            raise RuntimeError(str(error)) from error


def _torchvision(name: str, built: int | None) -> nn.Module:
    import torchvision

    given: dict[str, Any] = {}
    if built is not None and name.startswith("vit"):
        given["image_size"] = built
    elif built is not None and name.startswith("maxvit"):
        given["input_size"] = (built, built)
    elif built is not None and name.endswith("_fpn"):  # it resizes what it gets
        given["min_size"] = given["max_size"] = built
    if name.endswith("_fpn") or name.startswith(("fcn", "deeplab", "lraspp", "ssdlite")):
        given["weights_backbone"] = None
    return torchvision.models.get_model(name, weights=None, **given)


def _timm(name: str, built: int | None) -> nn.Module:
    import timm

    return timm.create_model(name, **({} if built is None else {"img_size": built}))


def _transformers(name: str, built: int | None) -> nn.Module:
    from covering import tiny_transformers

    return tiny_transformers.made(name)


def _diffusers(name: str, built: int | None) -> nn.Module:
    from covering import tiny_diffusers

    return tiny_diffusers.made(name)


_MAKERS = {"torchvision": _torchvision, "timm": _timm, "transformers": _transformers, "diffusers": _diffusers}
