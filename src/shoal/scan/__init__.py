"""What is each block worth? Nothing here changes a network."""

from shoal.scan.responses import Response, responses
from shoal.scan.sweep import Damage, Worth, divergence, removal_sweep

__all__ = ["Damage", "Response", "Worth", "divergence", "removal_sweep", "responses"]
