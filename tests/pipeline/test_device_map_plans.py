"""Networks whose parts accelerate has placed elsewhere are compressed as those in memory are."""

import pytest
import torch
from accelerate import cpu_offload, dispatch_model

import shoal
import tiny
from shoal.pipeline import CompressConfig

pytestmark = pytest.mark.slow


def data(count=4):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(16, 1, 8, 8, generator=generator) for _ in range(count)]


def placed(where, folder):
    network = tiny.noisy()
    if where == "disk":
        dispatch_model(network, {"stem": "cpu", "blocks": "disk", "head": "cpu"}, main_device="cpu", offload_dir=folder)
    elif where == "device_map":
        parts = {"stem": "cpu", "blocks": "cpu", "head": "cpu"}
        dispatch_model(network, parts, main_device="cpu", force_hooks=True)
    elif where == "cpu":
        cpu_offload(network, execution_device=torch.device("cpu"))
    return network


@pytest.mark.parametrize("where", ["disk", "device_map", "cpu"])
@pytest.mark.parametrize("goal", [shoal.RemoveBlocks(2), shoal.Budget(params=0.7)])
def test_a_placed_network_is_compressed_as_one_in_memory(tmp_path, goal, where):
    # Weights on a disk or off the device are not refitted around a change, neither in the table nor in the plan.
    config = CompressConfig(stand_ins=("identity", "conv3"), latency_seconds=0.02, table_refit=False)
    results = [
        shoal.compress(placed(place, tmp_path), data(), goal, validation=data(2), test=data(2), config=config)
        for place in ("memory", where)
    ]
    plans = [result.plan.actions for result in results]
    assert plans[0] == plans[1]
    assert plans[0]
    damages = [[block.removal_kl for block in result.record.blocks] for result in results]
    assert damages[0] == damages[1]
    assert all(damage for damage in damages[0]), "no zeros"
    if where == "device_map" or not goal.by_plan:
        outputs = [result.model(data(1)[0]) for result in results]
        assert torch.equal(outputs[0], outputs[1])
