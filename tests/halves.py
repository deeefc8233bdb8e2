"""A transformer with two units a block, and the same network written by hand without some of them."""

import torch
from torch import Tensor, nn


class Mixer(nn.Module):
    """Mixes tokens and returns its weights beside the result, as attention does."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(tokens, tokens) / tokens)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shares = self.weight.softmax(-1)
        return self.out(shares @ x), shares


class Half(nn.Module):
    """x + mixed(norm(x)), then x + MLP(norm(x)); `without` names what is not written down at all."""

    def __init__(self, width: int, tokens: int, without: str = "") -> None:
        super().__init__()
        self.without = without
        if without != "mixer":
            self.norm1, self.mixer = nn.LayerNorm(width), Mixer(width, tokens)
        if without != "mlp":
            self.norm2, self.fc1 = nn.LayerNorm(width), nn.Linear(width, 3 * width)
            self.act, self.fc2 = nn.GELU(), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.without != "mixer":
            mixed, _ = self.mixer(self.norm1(x))
            x = x + mixed
        if self.without != "mlp":
            x = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return x


class Halves(nn.Module):
    """Three blocks; `without` says for each what is missing."""

    def __init__(self, without: tuple[str, ...] = ("", "", ""), width: int = 8, tokens: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(4, width)
        self.blocks = nn.ModuleList(Half(width, tokens, one) for one in without)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def by_hand(model: Halves, without: tuple[str, ...]) -> Halves:
    """The network without these halves, with the weights of `model`."""
    made = Halves(without).eval()
    known = model.state_dict()
    made.load_state_dict({name: known[name] for name in made.state_dict()})
    return made


def samples(count: int = 6, seed: int = 0) -> Tensor:
    """Input of the network."""
    return torch.randn(count, 5, 4, generator=torch.Generator().manual_seed(seed))


def data() -> tuple[list[tuple[Tensor, int]], list[tuple[Tensor, int]]]:
    """Train and test samples with labels, for the command line."""
    made = [(one, number % 3) for number, one in enumerate(samples(80))]
    return made[:60], made[60:]
