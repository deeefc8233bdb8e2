"""Train so that blocks vanish: epsilon-ResNet (Yu, Yu, Ramalingam 2018, arXiv:1804.01661)."""

from shoal.epsilon.api import train
from shoal.epsilon.attach import attach_gates_, epsilonize_, gates_of, remove_gates_
from shoal.epsilon.finish import TrainResult
from shoal.epsilon.gate import Gate
from shoal.epsilon.trainer import EpsilonConfig

__all__ = [
    "EpsilonConfig",
    "Gate",
    "TrainResult",
    "attach_gates_",
    "epsilonize_",
    "gates_of",
    "remove_gates_",
    "train",
]
