"""What is each block, branch and kernel worth? Nothing here changes a network."""

from shoal.scanning.damage import DamageFunction, OutputDamage, divergence
from shoal.scanning.responses import Response, responses
from shoal.scanning.scanner import ScanRunInfo, ScanSettings, scan
from shoal.scanning.sweep import RemovalDamage, removal_sweep

__all__ = [
    "DamageFunction",
    "OutputDamage",
    "RemovalDamage",
    "Response",
    "ScanRunInfo",
    "ScanSettings",
    "divergence",
    "removal_sweep",
    "responses",
    "scan",
]
