import pytest
import torch
from footing import batches, network

from shoal.errors import UsageError, WeightsError
from shoal.pipeline.choose import Choice
from shoal.pipeline.kept_cut import CUT, Cut, keep_cut, kept_cut
from shoal.plan import Remove, Replace, StandIn
from shoal.replace import build
from shoal.scanning import Worth

EXAMPLE = batches(2, 3, 8, 8)[0]
CLAIM = {"network": "abc"}


def made():
    from shoal.blocks import dissect
    from shoal.surgery import remove_blocks_
    from shoal.surgery.replace import replace_spans_

    stand_in = StandIn(kind="conv", layout="channels_first", in_channels=8, out_channels=8, kernel=3, tail="relu")
    actions = [Remove(path="layer1.1"), Replace(paths=["layer2.1"], stand_in=stand_in)]
    anatomy = dissect(network().eval(), EXAMPLE)
    replace_spans_(anatomy, [actions[1]], {"layer2.1": build(stand_in, torch.zeros(1))})
    remove_blocks_(anatomy, ["layer1.1"])
    worth = Worth("layer1.1", 0.25, (0.1, 0.4), 9)
    choice = Choice(["layer1.1"], {"layer1.1": worth}, {"layer1.1": 0.5}, True, "done", replaced=[["layer2.1"]])
    return Cut(anatomy.model.eval(), choice, actions, ["a note"])


def test_everything_comes_back(tmp_path):
    one = made()
    keep_cut(tmp_path, one, CLAIM)
    other = kept_cut(tmp_path, network(), EXAMPLE, CLAIM)
    assert (other.choice, other.actions, other.notes) == (one.choice, one.actions, one.notes)
    assert torch.equal(other.model(EXAMPLE.args[0]), one.model(EXAMPLE.args[0]))


def test_nothing_another_network_and_rubbish(tmp_path):
    assert kept_cut(tmp_path, network(), EXAMPLE, CLAIM) is None
    keep_cut(tmp_path, made(), CLAIM)
    with pytest.raises(UsageError, match="another network, goal or data"):
        kept_cut(tmp_path, network(), EXAMPLE, {"network": "xyz"})
    (tmp_path / CUT).write_bytes(b"half")
    with pytest.raises(WeightsError, match="no checkpoint"):
        kept_cut(tmp_path, network(), EXAMPLE, CLAIM)
