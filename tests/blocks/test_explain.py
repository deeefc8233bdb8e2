import pytest
import torch
from torch import nn

import networks
from shoal.blocks import trace


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.rnn, self.head = kind(4, 6, num_layers=2, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Dense(nn.Module):
    """Each layer reads all before it, as in DenseNet."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4 * n, 4) for n in (1, 2, 3))

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, torch.relu(layer(x))], 1)
        return x


class Shuffled(nn.Module):
    """Half of the channels goes past, as in ShuffleNet v2."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

    def forward(self, x):
        for layer in self.layers:
            kept, worked = x.chunk(2, 1)
            x = torch.cat((kept, layer(worked)), 1)
        return x


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.work = nn.Linear(4, 4)

    def forward(self, x):
        return torch.lerp(x, self.work(x), 0.5)


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (Recurrent(nn.LSTM), (2, 5, 4), "it is recurrent (1 x lstm, first in 'rnn')"),
        (Recurrent(nn.GRU), (2, 5, 4), "it is recurrent (1 x gru, first in 'rnn')"),
        (Dense(), (2, 4), "its paths are joined by concatenation (3 x cat)"),
        (Shuffled(), (2, 4), "its paths are joined by concatenation (3 x cat)"),
        (Mixed(), (2, 4), "it mixes paths by 1 x lerp: an adapter can say"),
        (networks.PlainNet(), (2, 1, 8, 8), "its layers follow each other; spans of them can be replaced by plan"),
    ],
)
def test_what_was_seen_instead_of_residual_additions(model, shape, said):
    note = trace(model.eval(), torch.randn(shape)).note
    assert note.startswith("no residual block: no addition of this network joins a branch and a shortcut; ")
    assert said in note


def test_parts_that_do_not_come_from_the_input_are_no_paths():
    class Prefixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.token, self.work = nn.Parameter(torch.zeros(1, 4)), nn.Linear(4, 4)

        def forward(self, x):
            return self.work(torch.cat([self.token, x]))

    assert "concatenation" not in trace(Prefixed(), torch.randn(2, 4)).note
