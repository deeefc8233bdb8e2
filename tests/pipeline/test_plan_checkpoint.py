import pytest
import torch
from footing import batches, network

from shoal.errors import UsageError, WeightsError
from shoal.pipeline.context import CompressContext, MeasureConfig
from shoal.pipeline.goals import RemoveBlocks
from shoal.pipeline.greedy import RemovalChoice
from shoal.pipeline.plan_checkpoint import FILENAME, load_plan, plan_fingerprint, save_plan
from shoal.pipeline.result import CompressedModel
from shoal.plan import Remove, Replace, Replacement
from shoal.replace import build_replacement
from shoal.scanning import RemovalDamage, divergence

EXAMPLE = batches(2, 3, 8, 8)[0]
CLAIM = {"network": "abc"}


def made():
    from shoal.blocks import analyze
    from shoal.surgery import remove_blocks_
    from shoal.surgery.replace import replace_spans_

    stand_in = Replacement(kind="conv", layout="channels_first", in_channels=8, out_channels=8, kernel=3, tail="relu")
    actions = [Remove(path="layer1.1"), Replace(paths=["layer2.1"], stand_in=stand_in)]
    anatomy = analyze(network().eval(), EXAMPLE)
    replace_spans_(anatomy, [actions[1]], {"layer2.1": build_replacement(stand_in, torch.zeros(1))})
    remove_blocks_(anatomy, ["layer1.1"])
    worth = RemovalDamage("layer1.1", 0.25, (0.1, 0.4), 9)
    choice = RemovalChoice(["layer1.1"], {"layer1.1": worth}, {"layer1.1": 0.5}, True, "done", replaced=[["layer2.1"]])
    return CompressedModel(anatomy.model.eval(), choice, actions, ["a note"])


def test_everything_comes_back(tmp_path):
    one = made()
    save_plan(tmp_path, one, CLAIM)
    other = load_plan(tmp_path, network(), EXAMPLE, CLAIM)
    assert (other.choice, other.actions, other.notes) == (one.choice, one.actions, one.notes)
    assert torch.equal(other.model(EXAMPLE.args[0]), one.model(EXAMPLE.args[0]))


def test_what_a_module_keeps_besides_tensors_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.nn.BatchNorm2d, "get_extra_state", lambda self: {"version": "2"})
    monkeypatch.setattr(torch.nn.BatchNorm2d, "set_extra_state", lambda self, state: None)
    save_plan(tmp_path, made(), CLAIM)
    assert load_plan(tmp_path, network(), EXAMPLE, CLAIM).actions == made().actions


def test_nothing_another_network_and_rubbish(tmp_path):
    assert load_plan(tmp_path, network(), EXAMPLE, CLAIM) is None
    save_plan(tmp_path, made(), CLAIM)
    with pytest.raises(UsageError, match="another network, goal or data"):
        load_plan(tmp_path, network(), EXAMPLE, {"network": "xyz"})
    (tmp_path / FILENAME).write_bytes(b"half")
    with pytest.raises(WeightsError, match="no checkpoint"):
        load_plan(tmp_path, network(), EXAMPLE, CLAIM)


def told(**more):
    given = {"judged_on": None, "settings": MeasureConfig(), "damage": divergence, "goal": RemoveBlocks(1), **more}
    return CompressContext(graph=None, model=network(), chosen_on=[EXAMPLE], progress=print, **given)


def test_the_claim_names_all_that_the_choice_depends_on():
    claim = plan_fingerprint(told(), None, 0)
    assert plan_fingerprint(told(), None, 0) == claim
    others = [
        plan_fingerprint(told(goal=RemoveBlocks(2)), None, 0),
        plan_fingerprint(told(judged_on=[EXAMPLE]), None, 0),
        plan_fingerprint(told(settings=MeasureConfig(stand_ins=("linear",))), None, 0),
        plan_fingerprint(told(damage=made), None, 0),
        plan_fingerprint(told(), "latency.json", 0),
        plan_fingerprint(told(), None, 3),
    ]
    assert claim not in others
    assert all(one not in others[number + 1 :] for number, one in enumerate(others))


def test_a_claim_comes_back_from_the_disk_as_it_was(tmp_path):
    claim = plan_fingerprint(told(), tmp_path / "latency.json", 2)
    save_plan(tmp_path, made(), claim)
    assert load_plan(tmp_path, network(), EXAMPLE, claim) is not None
