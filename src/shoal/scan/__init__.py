"""What is each block, branch and kernel worth? Nothing here changes a network."""

from shoal.scan.responses import Response, responses
from shoal.scan.scan import ScanOrigin, ScanSettings, scan
from shoal.scan.sweep import Damage, Worth, divergence, removal_sweep

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
