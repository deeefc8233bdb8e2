"""Networks whose parts accelerate has placed elsewhere are scanned and fitted as they are, by workers too."""

import pytest
import torch
from accelerate import cpu_offload, disk_offload, dispatch_model

import tiny
from elsewhere import Elsewhere
from shoal.batches import Batch
from shoal.blocks import analyze
from shoal.replace import ReplacementSpec, build_segments, find_spans, fit_all
from shoal.scanning import ScanConfig, scan
from shoal.workers import LocalWorkers


def data(count=1):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 1, 8, 8, generator=generator) for _ in range(count)]


def placed(where, folder):
    network = tiny.network()
    if where == "disk":
        disk_offload(network, folder)
    elif where == "cpu":
        cpu_offload(network, execution_device=torch.device("cpu"))
    else:
        places = {"stem": "cpu", "blocks": "disk", "head": "cpu"}
        dispatch_model(network, places, main_device="cpu", offload_dir=folder)
    return network


@pytest.fixture(scope="module")
def whole():
    return scan(tiny.network(), data(), config=ScanConfig(scores=False, layers=False))


@pytest.mark.parametrize(
    ("where", "workers"), [("disk", Elsewhere), ("cpu", LocalWorkers), ("device_map", LocalWorkers)]
)
def test_a_scan_has_the_figures_of_the_network_in_memory(where, workers, whole, tmp_path):
    config = ScanConfig(scores=False, layers=False, workers=workers())
    record = scan(placed(where, tmp_path), data(), config=config)
    assert record.blocks == whole.blocks
    assert record.baseline == whole.baseline
    assert any(ablation.kl > 0 for block in record.blocks for ablation in block.ablations.values()), "no zeros"


def test_a_fit_has_the_weights_of_that_in_memory(tmp_path):
    modules = []
    for network in (tiny.network(), placed("device_map", tmp_path)):
        batches = [Batch((x,)) for x in data(2)]
        graph = analyze(network, batches[0].take(2))
        span = find_spans(graph, build_segments(graph), 2)[-1]
        modules.append(fit_all(graph, batches, [ReplacementSpec(span, "conv3")])[0].module)
    for name, value in modules[0].state_dict().items():
        assert torch.equal(modules[1].state_dict()[name].to(value.device), value)
