import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.errors import PlanError
from shoal.plan import (
    InputSpec,
    NetworkSignature,
    Plan,
    Remove,
    Replacement,
    check_signature,
    differences,
    parse_plan,
    read_plan,
)

NETWORK = NetworkSignature(
    state={"a.weight": "float32[3,4]", "a.bias": "float32[3]"}, chain=["a:Block:identity:[3]->[3]"]
)
PLAN = Plan(
    model="torchvision:resnet18",
    inputs=[InputSpec(shape=[3, 8, 8], dtype="float32")],
    network=NETWORK,
    actions=[Remove(path="a")],
)

words = st.text(min_size=1, max_size=8)
removals = st.builds(Remove, path=words, unit=st.none() | st.integers(0, 3)) | st.builds(
    Remove, path=words, norms=st.sampled_from(["keep", "drop"])
)
plans = st.builds(
    Plan,
    model=st.none() | words,
    inputs=st.lists(
        st.builds(InputSpec, shape=st.lists(st.integers(0, 99), max_size=4), dtype=words, keyword=st.none() | words),
        max_size=3,
    ),
    network=st.builds(
        NetworkSignature, state=st.dictionaries(words, words, max_size=3), chain=st.lists(words, max_size=3)
    ),
    actions=st.lists(removals, max_size=3),
)


@given(plans)
def test_a_plan_survives_json(plan):
    assert parse_plan(plan.model_dump_json(), "x") == plan


def test_a_plan_is_read_from_its_file(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(PLAN.model_dump_json(indent=2), encoding="utf-8")
    assert read_plan(path) == PLAN
    assert read_plan(path).removed == ["a"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(PlanError, match=r"cannot read the plan '.*gone.json': No such file"):
        read_plan(tmp_path / "gone.json")
    with pytest.raises(PlanError, match="cannot read the plan"):
        read_plan(tmp_path)


def without(key):
    document = json.loads(PLAN.model_dump_json())
    del document[key]
    return json.dumps(document)


def changed(**changes):
    return json.dumps(json.loads(PLAN.model_dump_json()) | changes)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the document: Invalid JSON"),
        ("{", "the document: Invalid JSON"),
        ("[]", "the document: Input should be an object"),
        (without("network"), "network: Field required"),
        (changed(schema_version=3), "schema_version: Input should be 1 or 2"),
        (changed(colour="red"), "colour: Extra inputs are not permitted"),
        (changed(actions=[{"kind": "bend", "path": "a"}]), r"actions\.0.*'remove'"),
        (changed(actions=[{"kind": "remove"}]), r"actions\.0.*\.path: Field required"),
        (changed(inputs=[{"shape": "3", "dtype": "float32"}]), "inputs.0.shape: Input should be a valid array"),
    ],
)
def test_what_is_no_plan_is_refused_with_the_field(text, said):
    with pytest.raises(PlanError, match="'here.json' is no plan of version 2: " + said):
        parse_plan(text, "here.json")


@pytest.mark.parametrize(
    ("state", "chain", "said"),
    [
        ({}, NETWORK.chain, ["'a.weight' float32[3,4] is missing", "'a.bias' float32[3] is missing"]),
        (
            NETWORK.state | {"a.bias": "float16[3]"},
            NETWORK.chain,
            ["'a.bias' is float16[3], expected float32[3]"],
        ),
        (NETWORK.state | {"b": "int64[]"}, NETWORK.chain, ["'b' is not expected"]),
        (
            NETWORK.state,
            ["a:Other:identity:[3]->[3]"],
            ["block 'a:Other:identity:[3]->[3]' stands where 'a:Block:identity:[3]->[3]' was"],
        ),
        (NETWORK.state, NETWORK.chain * 2, ["2 blocks were traced, expected 1"]),
        (NETWORK.state, NETWORK.chain, []),
    ],
)
def test_what_tells_two_networks_apart_is_said(state, chain, said):
    assert differences(NETWORK, NetworkSignature(state=state, chain=chain)) == said


def test_a_long_list_of_differences_is_cut():
    many = NetworkSignature(state={f"w{i}": "float32[1]" for i in range(9)}, chain=[])
    assert differences(many, NetworkSignature(state={}, chain=[]))[-1] == "and 4 more"


def test_a_plan_for_another_network_is_refused():
    check_signature(PLAN, NETWORK)
    with pytest.raises(PlanError, match=r"made for another network: 'a.weight' float32.* is missing"):
        check_signature(PLAN, NetworkSignature(state={}, chain=[]))


def test_the_room_loads_without_torch():
    code = "import sys; import shoal.plan.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


STAND_IN = {"kind": "linear", "layout": "channels_first", "in_channels": 4, "out_channels": 4, "tail": "relu"}
FEATURES = STAND_IN | {"layout": "channels_last"}
STUDENT = {key: STAND_IN[key] for key in ("layout", "in_channels", "out_channels")} | {
    "kind": "block",
    "copies": ("b",),
}
TOKEN_MAP = {"module": "a.attn", "argument": "hidden_states", "outputs": 2}
LINEAR_ATTENTION = FEATURES | {
    "kind": "linear_attention", "tail": "identity", "copies": ["a"], "attention": TOKEN_MAP,
}  # fmt: skip
INNER = {"writers": ["b.1"], "readers": ["b.3"], "width": 2}


def replacing(stand_in):
    action = {"kind": "replace", "paths": ["a"], "stand_in": stand_in}
    return json.dumps({"inputs": [], "network": {"state": {}, "chain": []}, "actions": [action]})


@pytest.mark.parametrize(
    "stand_in",
    [
        STAND_IN,
        STAND_IN | {"kind": "conv", "kernel": 3, "dilation": 2, "stride": 2, "out_channels": 8},
        STAND_IN | {"kind": "conv", "kernel": 3, "shortcut": True},
        STAND_IN | {"kind": "lowrank", "kernel": 3, "rank": 2, "shortcut": True},
        STAND_IN | {"kind": "scale"},
        FEATURES | {"kind": "identity"},
        FEATURES | {"out_channels": 7},
        STUDENT,
        STUDENT | {"copies": ("b", "c"), "stride": 2, "out_channels": 8},
        *(STAND_IN | {"tail": tail} for tail in ("identity", "silu", "gelu", "gelu_tanh", "hardswish")),
    ],
)
def test_a_stand_in_survives_json(stand_in):
    [action] = parse_plan(replacing(stand_in), "plan.json").replaced
    assert {key: getattr(action.stand_in, key) for key in stand_in} == stand_in
    assert Replacement.model_validate_json(action.stand_in.model_dump_json()) == action.stand_in


def test_a_linear_attention_survives_json_and_changes_one_block():
    document = json.loads(replacing(LINEAR_ATTENTION))
    document["actions"][0]["paths"] = ["a"]
    plan = parse_plan(json.dumps(document), "plan.json")
    assert plan.linear_attentions == ["a.attn"]
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    document["actions"][0]["paths"] = ["a", "b"]
    with pytest.raises(PlanError, match="'linear_attention' changes one block, not a, b"):
        parse_plan(json.dumps(document), "plan.json")


def test_a_narrow_student_survives_json():
    given = Replacement.model_validate(STUDENT | {"kind": "narrow", "inner": [INNER]})
    assert Replacement.model_validate_json(given.model_dump_json()) == given
    assert given.student
    assert hash(given) == hash(given.model_copy())


@pytest.mark.parametrize(
    ("stand_in", "said"),
    [
        (STAND_IN | {"kind": "identity", "out_channels": 5}, "a stand-in 'identity' keeps the shape"),
        (STAND_IN | {"kind": "scale", "stride": 2}, "a stand-in 'scale' keeps the shape"),
        (STAND_IN | {"kind": "lowrank", "rank": 1, "out_channels": 5}, "a stand-in 'lowrank' keeps the shape"),
        (STAND_IN | {"shortcut": True, "stride": 2}, "a stand-in 'linear' keeps the shape"),
        (STAND_IN | {"kind": "identity", "shortcut": True}, "an identity beside a shortcut would be the input twice"),
        (STAND_IN | {"kind": "lowrank"}, "a rank belongs to 'lowrank'"),
        (STAND_IN | {"rank": 2}, "a rank belongs to 'lowrank'"),
        (STAND_IN | {"kind": "lowrank", "rank": 0}, "rank: Input should be greater than or equal to 1"),
        (STAND_IN | {"kernel": 3}, "kernel 3 for 'linear', expected an odd one, 1 but for convolutions"),
        (STAND_IN | {"kind": "conv", "kernel": 2}, "kernel 2 for 'conv', expected an odd one"),
        (STAND_IN | {"kind": "conv", "kernel": 3, "dilation": 0}, "dilation: Input should be greater"),
        (STAND_IN | {"kind": "dense"}, r"stand_in\.kind: .*no replacement 'dense': built in are identity, scale"),
        (STAND_IN | {"tail": "tanh"}, r"stand_in\.tail: Input should be 'identity', 'relu'"),
        (FEATURES | {"kind": "conv", "kernel": 3}, "channels_last has no neighbours"),
        (FEATURES | {"kind": "lowrank", "kernel": 3, "rank": 2}, "channels_last has no neighbours"),
        (FEATURES | {"stride": 2}, "channels_last has no neighbours"),
        (STAND_IN | {"copies": ["b"]}, "copies of blocks belong to 'block', 'narrow', 'folded', 'linear_attention'"),
        (STUDENT | {"copies": []}, "copies of blocks belong to 'block', 'narrow', 'folded', 'linear_attention'"),
        (STUDENT | {"kind": "narrow"}, "inner features belong to 'narrow'"),
        (STUDENT | {"inner": [INNER]}, "inner features belong to 'narrow'"),
        (STUDENT | {"kind": "narrow", "inner": [INNER | {"width": 0}]}, "width: Input should be greater"),
        (STUDENT | {"shortcut": True}, "has the shortcuts and tails of its blocks"),
        (STUDENT | {"tail": "relu"}, "has the shortcuts and tails of its blocks"),
        (LINEAR_ATTENTION | {"attention": None}, "belongs to 'linear_attention'"),
        (STUDENT | {"attention": TOKEN_MAP}, "belongs to 'linear_attention'"),
        (LINEAR_ATTENTION | {"copies": ["a", "b"]}, "'linear_attention' changes one block"),
        (LINEAR_ATTENTION | {"out_channels": 7}, "a stand-in 'linear_attention' keeps the shape"),
        (LINEAR_ATTENTION | {"attention": TOKEN_MAP | {"module": "b.attn"}}, "'b.attn' is not in the block 'a'"),
        (LINEAR_ATTENTION | {"attention": TOKEN_MAP | {"outputs": 0}}, "outputs: Input should be greater"),
        (LINEAR_ATTENTION | {"attention": TOKEN_MAP | {"argument": -1}}, "argument"),
    ],
)
def test_a_stand_in_that_does_not_fit_together_is_refused(stand_in, said):
    with pytest.raises(PlanError, match=said):
        parse_plan(replacing(stand_in), "plan.json")


@pytest.mark.parametrize("others", [["b"], ["c", "d"]])
def test_a_block_has_one_fate(others):
    stand_in = STAND_IN | {"kind": "conv", "kernel": 3}
    first = {"kind": "replace", "paths": ["a", "b", "c"], "stand_in": stand_in}
    second = (
        {"kind": "remove", "path": others[0]}
        if len(others) == 1
        else {"kind": "replace", "paths": others, "stand_in": stand_in}
    )
    document = {"inputs": [], "network": {"state": {}, "chain": []}, "actions": [first, second]}
    with pytest.raises(PlanError, match=f"the block '{others[0]}' is replaced and named once more"):
        parse_plan(json.dumps(document), "plan.json")


def test_plans_of_version_1_are_read():
    old = json.loads(PLAN.model_dump_json()) | {"schema_version": 1, "actions": [{"kind": "remove", "path": "a"}]}
    plan = parse_plan(json.dumps(old), "here.json")
    assert plan.schema_version == 1
    assert plan.removals == [Remove(path="a", unit=None, norms="keep")]
    assert PLAN.schema_version == 2


def test_removals_by_name():
    named = {
        "layers.3": Remove(path="layers.3"),
        "layers.3#1": Remove(path="layers.3", unit=1),
        "layers.3+norms": Remove(path="layers.3", norms="drop"),
        "odd#name": Remove(path="odd#name"),
    }
    for name, removal in named.items():
        assert removal.name == name
        assert Remove.named(name) == removal


def test_whole_blocks_and_units_are_told_apart():
    actions = [Remove(path="a"), Remove(path="b", unit=0), Remove(path="c", norms="drop")]
    plan = PLAN.model_copy(update={"actions": actions})
    assert plan.removed == ["a", "c"]
    assert plan.removed_units == ["b#0"]
    assert plan.removals == actions


@pytest.mark.parametrize(
    ("action", "said"),
    [
        ({"unit": -1}, "greater than or equal to 0"),
        ({"unit": 0, "norms": "drop"}, "the norm behind the addition of a single unit stays"),
        ({"norms": "half"}, "'keep' or 'drop'"),
    ],
)
def test_removals_that_make_no_sense(action, said):
    with pytest.raises(PlanError, match=said):
        parse_plan(changed(actions=[{"kind": "remove", "path": "a", **action}]), "here.json")
