"""torchmetrics, which is loaded when a metric of it is asked for."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

from shoal.errors import UsageError


def torchmetrics_functional(domain: str, name: str) -> Callable[..., Any]:
    """A function of `torchmetrics.functional.<domain>`.

    Raises:
        UsageError: torchmetrics is not installed.
    """
    return getattr(_imported(f"torchmetrics.functional.{domain}"), name)


def torchmetrics_class(domain: str, name: str) -> Callable[..., Any]:
    """A class of `torchmetrics.<domain>`.

    Raises:
        UsageError: torchmetrics is not installed.
    """
    return getattr(_imported(f"torchmetrics.{domain}"), name)


def _imported(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the metrics of this task need {error.name}, which is not installed", "pip install 'shoal[tasks]'"
        ) from error
