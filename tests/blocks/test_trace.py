import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import networks
from shoal.batches import Batch
from shoal.blocks.operations import plain_name
from shoal.blocks.trace import trace_run
from shoal.errors import ModelRaisedError, TraceError


class Functional(nn.Module):
    """Runs a function as a module."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def traced(function, *inputs, **parts):
    return trace_run(Functional(function, **parts), Batch(inputs or (torch.randn(2, 4),)))


def output_of(run):
    return run.output.value


def test_every_function_and_every_module_call_is_recorded_in_order():
    net = nn.Sequential(nn.Linear(4, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 2)))
    run = trace_run(net, Batch((torch.randn(2, 4),)))
    assert [op.name for op in run.ops] == ["linear", "relu", "linear"]
    assert [one.path for one in run.calls] == ["", "0", "1", "1.0", "1.1"]
    assert [run.calls[op.call].path for op in run.ops] == ["0", "1.0", "1.1"]
    assert [(one.start, one.stop) for one in run.calls] == [(0, 3), (0, 1), (1, 3), (1, 2), (2, 3)]
    assert [value.name for value in run.values if value.origin == "parameter"] == [
        "0.weight",
        "0.bias",
        "1.1.weight",
        "1.1.bias",
    ]
    assert [outer.path for outer in run.enclosing(run.ops[1].call)] == ["1.0", "1", ""]
    assert output_of(run) in run.calls[0].outputs
    assert run.calls[2].inputs == run.calls[1].outputs


def test_functional_code_and_operators_are_seen():
    run = traced(lambda self, x: torch.cat([F.relu(x) + 1, x @ x.T], dim=1).sum(0)[1:])
    names = [plain_name(op.name) for op in run.ops]
    assert names == ["relu", "add", "T", "matmul", "cat", "sum", "getitem"]


def test_dependence_follows_data_and_not_order():
    seen = {}

    def forward(self, x, y):
        a, b = x * 2, y * 3
        return a + 1, b

    run = traced(forward, torch.randn(2), torch.randn(2))
    first, second = run.output
    x, y = run.inputs
    seen = {(name, at): run.depends(one.value, at) for name, one in (("a", first), ("b", second)) for at in (x, y)}
    assert seen == {("a", x): True, ("a", y): False, ("b", x): False, ("b", y): True}


def test_a_tensor_changed_in_place_gets_a_new_number():
    run = traced(lambda self, x: (x * 1).add_(1).relu_())
    made, added, ruled = run.ops
    assert added.changed == made.outputs
    assert ruled.inputs == added.outputs
    assert output_of(run) == ruled.outputs[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.add_(1),
        lambda v: v.mul_(v),
        torch.relu_,
        lambda v: v.__setitem__(0, 7.0),
        lambda v: v.zero_(),
        lambda v: torch.add(v, 1, out=v),
        lambda v: F.relu(v, inplace=True),
    ],
)
def test_a_change_through_a_view_renumbers_what_shares_its_memory(change):
    def forward(self, x, y):
        base = x * 1
        view = base[:, :2]
        other = y * 1
        change(view)
        return base, view, other

    run = traced(forward, torch.randn(2, 4), torch.randn(2, 4))
    base, view, other = (one.value for one in run.output)
    last = len(run.ops) - 1
    assert run.values[base].producer == run.values[view].producer == last
    assert run.values[other].producer != last
    assert len(run.ops[last].changed) == 2


def test_a_change_of_the_base_renumbers_its_views():
    def forward(self, x):
        base = x * 1
        view = base.view(-1)
        base += 1
        return view * 2

    run = traced(forward)
    added = next(op for op in run.ops if plain_name(op.name) == "add")
    assert run.ops[-1].inputs[0] in added.outputs


def test_what_returns_its_input_is_no_operation():
    run = traced(lambda self, x: F.dropout((x + 1).contiguous().to(x.dtype), 0.5, training=False))
    assert next(plain_name(op.name) for op in run.ops) == "add"
    assert output_of(run) in run.ops[-1].outputs


def test_constants_are_kept_by_content_and_strange_ones_reported():
    outside = torch.ones(4)
    run = traced(lambda self, x: x + self.held + outside, held=torch.full((4,), 2.0))
    assert sorted(float(tensor[0]) for tensor in run.constants.values()) == [1.0, 2.0]
    assert [float(run.constants[value][0]) for value in run.untracked] == [1.0]


@pytest.mark.parametrize(
    "escape",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.sum()),
        lambda x: bool(x.sum() > 0),
        lambda x: x.tolist(),
        lambda x: torch.equal(x, x),
    ],
)
def test_numbers_that_leave_the_graph_are_noticed(escape):
    class Inner(nn.Module):
        def forward(self, x):
            escape(x)
            return x + 1

    run = trace_run(nn.Sequential(Inner()), Batch((torch.randn(2, 4),)))
    assert len(run.data_escapes) == 1
    assert "in '0'" in run.data_escapes[0]


def test_shapes_and_sizes_are_no_escape():
    run = traced(lambda self, x: x.view(x.size(0), -1) * x.shape[1] if x.dim() == 2 else x)
    assert run.data_escapes == []


def test_nothing_holds_the_activations():
    alive = []

    def watch(module, args, output):
        alive.append(weakref.ref(output))

    net = networks.CifarResNet(1)
    net.layer1.register_forward_hook(watch)
    x = torch.randn(1, 3, 16, 16)
    reference = weakref.ref(x)
    run = trace_run(net, Batch((x,)))
    del x
    gc.collect()
    assert len(alive) == 1
    assert alive[0]() is None
    assert reference() is None
    assert len(run.ops) > 10


def test_calls_of_a_shared_module_are_all_found():
    net = networks.SharedNet()
    run = trace_run(net, Batch((torch.randn(1, 4, 5, 5),)))
    assert len(run.calls_of(net.blocks[0])) == 2
    assert len(run.calls_of(net.blocks[1])) == 1


def test_keyword_arguments_and_dict_outputs_are_followed():
    run = trace_run(
        Functional(lambda self, a, scale: {"out": a * scale, "flag": True}),
        Batch((), {"a": torch.randn(2), "scale": torch.ones(2)}),
    )
    assert run.output["flag"] is True
    assert all(run.depends(run.output["out"].value, one) for one in run.inputs)


@pytest.mark.parametrize("function", [lambda self, x: torch.zeros(2), lambda self, x: None, lambda self, x: "text"])
def test_a_model_that_leaves_torch_half_way_is_refused(function):
    with pytest.raises(TraceError, match="no tensor that depends on its input"):
        traced(function)


def test_what_the_model_raises_is_its_cause():
    with pytest.raises(ModelRaisedError, match="raised ZeroDivisionError") as caught:
        traced(lambda self, x: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_run_in_inference_mode_is_recorded():
    with torch.inference_mode():
        run = traced(lambda self, x: x * 2 + 1)
    assert [plain_name(op.name) for op in run.ops] == ["mul", "add"]
