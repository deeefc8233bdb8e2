"""Shoal makes deep residual networks shallow.

The verbs: `trace`, `scan`, `compress`, `apply`, `certify`, `load`; and `adapter`, for blocks that Shoal cannot see
through. Each is imported when it is first used, so that `import shoal` stays cheap.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shoal.blocks import Block, Chain, Shortcut, adapter, trace
    from shoal.epsilon import epsilonize_
    from shoal.errors import ShoalError
    from shoal.pipeline import MeasureConfig, Result, compress
    from shoal.plan import Plan, read_plan
    from shoal.record import Certificate, Record, ScanRecord
    from shoal.scanning import ScanSettings, scan
    from shoal.store import load
    from shoal.surgery import apply, certify

__version__ = version("shoal")

_HOMES = {
    "Block": "blocks",
    "Certificate": "record",
    "Chain": "blocks",
    "MeasureConfig": "pipeline",
    "Plan": "plan",
    "Record": "record",
    "Result": "pipeline",
    "ScanRecord": "record",
    "ScanSettings": "scanning",
    "ShoalError": "errors",
    "Shortcut": "blocks",
    "adapter": "blocks",
    "apply": "surgery",
    "certify": "surgery",
    "compress": "pipeline",
    "epsilonize_": "epsilon",
    "load": "store",
    "read_plan": "plan",
    "scan": "scanning",
    "trace": "blocks",
}

__all__ = [
    "Block",
    "Certificate",
    "Chain",
    "MeasureConfig",
    "Plan",
    "Record",
    "Result",
    "ScanRecord",
    "ScanSettings",
    "ShoalError",
    "Shortcut",
    "adapter",
    "apply",
    "certify",
    "compress",
    "epsilonize_",
    "load",
    "read_plan",
    "scan",
    "trace",
]


# Names of version 0.1.0, which code may still use.
_FORMER = {"Settings": "MeasureConfig"}


def __getattr__(name: str) -> Any:
    name = _FORMER.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module 'shoal' has no attribute '{name}'")
    return getattr(import_module(f"shoal.{_HOMES[name]}"), name)
