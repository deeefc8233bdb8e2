"""How much each block, branch and kernel matters, by ablation and by scores. Nothing here changes a network."""

from shoal.deprecated import former_names
from shoal.scanning.damage import DamageFunction, OutputDamage, damage_from, divergence
from shoal.scanning.responses import Response, responses
from shoal.scanning.scanner import ScanConfig, ScanRunInfo, scan
from shoal.scanning.scores import BlockStatistics, Score
from shoal.scanning.sweep import Recordings, RemovalDamage, RemovalSweeps, removal_sweep

__all__ = [
    "BlockStatistics",
    "DamageFunction",
    "OutputDamage",
    "Recordings",
    "RemovalDamage",
    "RemovalSweeps",
    "Response",
    "ScanConfig",
    "ScanRunInfo",
    "Score",
    "damage_from",
    "divergence",
    "removal_sweep",
    "responses",
    "scan",
]

__getattr__ = former_names(
    __name__,
    {
        "Damage": "shoal.scanning:DamageFunction",
        "ScanOrigin": "shoal.scanning:ScanRunInfo",
        "ScanSettings": "shoal.scanning:ScanConfig",
        "Worth": "shoal.scanning:RemovalDamage",
    },
)
