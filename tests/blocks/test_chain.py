import json

import pytest
from pydantic import ValidationError

from shoal.blocks.graph import Block, Chain, Unit
from shoal.errors import UnknownBlockError

UNIT = Unit("a", "identity", ("a.conv",), 0, stream_first=True)


def block(path, removable=True):
    reason = None if removable else "it is called 2 times"
    shape = (4, 8, 8)
    return Block(path, "Block", 1, (UNIT,), ("a.conv",), "identity", "relu", shape, shape, 10, removable, reason)


CHAIN = Chain((block("layer1.0"), block("layer1.1", removable=False), block("layer2.0"), block("layer10.0")))


def test_a_chain_is_an_ordered_collection_of_blocks():
    assert len(CHAIN) == 4
    assert [one.path for one in CHAIN] == CHAIN.paths == ["layer1.0", "layer1.1", "layer2.0", "layer10.0"]
    assert [one.path for one in CHAIN.removable] == ["layer1.0", "layer2.0", "layer10.0"]
    assert CHAIN["layer2.0"] is CHAIN.blocks[2]


def test_an_unknown_path_gets_near_matches():
    with pytest.raises(UnknownBlockError, match=r"no residual block called 'layer2\.O'\n  Did you mean 'layer2\.0'"):
        CHAIN["layer2.O"]


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), (), ["layer1.0", "layer2.0", "layer10.0"]),
        (("layer1.*",), (), ["layer1.0"]),
        (("layer1*",), (), ["layer1.0", "layer10.0"]),
        (("layer2.0", "layer10.0"), (), ["layer2.0", "layer10.0"]),
        ((), ("layer1.*",), ["layer2.0", "layer10.0"]),
        (("layer*",), ("*.0",), []),
        (("layer1.1",), (), []),
        (iter(["layer2.0"]), iter(["layer1.0"]), ["layer2.0"]),
    ],
)
def test_patterns_select_removable_blocks(include, exclude, expected):
    assert [one.path for one in CHAIN.select(include, exclude)] == expected


@pytest.mark.parametrize(("include", "exclude"), [(("layer3.*",), ()), ((), ("layer3.*",)), (("Layer1.0",), ())])
def test_a_pattern_that_matches_nothing_is_a_mistake(include, exclude):
    with pytest.raises(UnknownBlockError, match=r"the pattern '.*' matches no residual block"):
        CHAIN.select(include, exclude)


def test_a_chain_is_plain_data():
    found = json.loads(json.dumps(CHAIN.to_dict()))
    assert found["note"] is None
    assert found["blocks"][1]["reason"] == "it is called 2 times"
    assert found["blocks"][0]["units"][0]["stream_first"] is True


def test_a_block_is_recorded_as_it_stands():
    recorded = block("layer1.1", removable=False).record()
    assert (recorded.path, recorded.kind, recorded.stage, recorded.params) == ("layer1.1", "Block", 1, 10)
    assert (recorded.shortcut, recorded.activation, recorded.in_shape, recorded.out_shape) == (
        "identity",
        "relu",
        [4, 8, 8],
        [4, 8, 8],
    )
    assert (recorded.removable, recorded.reason, recorded.action) == (False, "it is called 2 times", "kept")
    assert Block("a", "Sibling", 1, (), (), None, None, (4,), (4,), 1, False, None).record().shortcut == "none"
    assert block("layer1.1").record(action="removed", removal_kl=0.5).removal_kl == 0.5
    with pytest.raises(ValidationError):
        block("layer1.1").record(worth=0.5)
