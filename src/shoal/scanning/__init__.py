"""What is each block, branch and kernel worth? Nothing here changes a network."""

from shoal.scanning.damage import Damage, OutputDamage, divergence
from shoal.scanning.responses import Response, responses
from shoal.scanning.scanner import ScanOrigin, ScanSettings, scan
from shoal.scanning.sweep import Worth, removal_sweep

__all__ = [
    "Damage",
    "OutputDamage",
    "Response",
    "ScanOrigin",
    "ScanSettings",
    "Worth",
    "divergence",
    "removal_sweep",
    "responses",
    "scan",
]
