"""What is each block, branch and kernel worth? Nothing here changes a network."""

from shoal.scanning.responses import Response, responses
from shoal.scanning.scanner import ScanOrigin, ScanSettings, scan
from shoal.scanning.sweep import Damage, Worth, divergence, removal_sweep

__all__ = [
    "Damage",
    "Response",
    "ScanOrigin",
    "ScanSettings",
    "Worth",
    "divergence",
    "removal_sweep",
    "responses",
    "scan",
]
