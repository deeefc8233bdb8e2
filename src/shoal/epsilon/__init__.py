"""Train so that blocks vanish: epsilon-ResNet (Yu, Yu, Ramalingam 2018, arXiv:1804.01661)."""

from shoal.epsilon.attach import attach_gates_, epsilonize_, gates_of, remove_gates_
from shoal.epsilon.gate import Gate

__all__ = ["Gate", "attach_gates_", "epsilonize_", "gates_of", "remove_gates_"]
