"""Shoal makes deep residual networks shallow.

The verbs: `trace`, `scan`, `compress`, `distill`, `train`, `apply`, `certify`, `fold`, `load`, `export`. The goals of
`compress`: `Budget`, `MaxDrop`, `RemoveBlocks`, `Blocks`, `ExactOnly`, `ParetoPoint`. And `adapter`, for blocks that
Shoal cannot see through. Each is imported when it is first used, so that `import shoal` stays cheap.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING

from shoal.deprecated import former_names

if TYPE_CHECKING:
    from shoal.blocks import Block, Chain, Shortcut, adapter, trace
    from shoal.epsilon import EpsilonConfig, TrainResult, epsilonize_, train
    from shoal.errors import ShoalError
    from shoal.pipeline import (
        Blocks,
        Budget,
        CompressConfig,
        CompressResult,
        ExactOnly,
        MaxDrop,
        MeasureConfig,
        ParetoPoint,
        RecoveryConfig,
        RemoveBlocks,
        compress,
    )
    from shoal.plan import Plan, read_plan
    from shoal.progress import Callbacks
    from shoal.record import Certificate, Record, ScanRecord
    from shoal.recover import DistillConfig, DistillData, TrainingBudget
    from shoal.recover.distill import DistillResult, distill
    from shoal.scanning import ScanConfig, scan
    from shoal.sources import Data, load_data, load_model
    from shoal.store import ExportConfig, export, load
    from shoal.surgery import FoldResult, apply, certify, fold
    from shoal.workers import RayWorkers

__version__ = version("shoal")

_HOMES = {
    "blocks": ("Block", "Chain", "Shortcut", "adapter", "trace"),
    "epsilon": ("EpsilonConfig", "TrainResult", "epsilonize_", "train"),
    "errors": ("ShoalError",),
    "pipeline": (
        *("Blocks", "Budget", "ExactOnly", "MaxDrop", "ParetoPoint", "RemoveBlocks"),
        *("CompressConfig", "CompressResult", "MeasureConfig", "RecoveryConfig", "compress"),
    ),
    "plan": ("Plan", "read_plan"),
    "record": ("Certificate", "Record", "ScanRecord"),
    "progress": ("Callbacks",),
    "recover": ("DistillConfig", "DistillData", "DistillResult", "TrainingBudget", "distill"),
    "scanning": ("ScanConfig", "scan"),
    "sources": ("Data", "load_data", "load_model"),
    "store": ("ExportConfig", "export", "load"),
    "surgery": ("FoldResult", "apply", "certify", "fold"),
    "workers": ("RayWorkers",),
}

__all__ = [
    "Block",
    "Blocks",
    "Budget",
    "Callbacks",
    "Certificate",
    "Chain",
    "CompressConfig",
    "CompressResult",
    "Data",
    "DistillConfig",
    "DistillData",
    "DistillResult",
    "EpsilonConfig",
    "ExactOnly",
    "ExportConfig",
    "FoldResult",
    "MaxDrop",
    "MeasureConfig",
    "ParetoPoint",
    "Plan",
    "RayWorkers",
    "Record",
    "RecoveryConfig",
    "RemoveBlocks",
    "ScanConfig",
    "ScanRecord",
    "ShoalError",
    "Shortcut",
    "TrainResult",
    "TrainingBudget",
    "adapter",
    "apply",
    "certify",
    "compress",
    "distill",
    "epsilonize_",
    "export",
    "fold",
    "load",
    "load_data",
    "load_model",
    "read_plan",
    "scan",
    "trace",
    "train",
]

__getattr__ = former_names(
    __name__,
    {
        "Result": "shoal.pipeline:CompressResult",
        "ScanSettings": "shoal.scanning:ScanConfig",
        "Settings": "shoal.pipeline:MeasureConfig",
    },
    lazy={name: f"shoal.{room}" for room, names in _HOMES.items() for name in names},
)
