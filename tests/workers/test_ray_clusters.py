"""Clusters that start and end with a test: none may be there before."""

import os

import pytest
import torch

from shoal.workers import RayWorkers, WorkerTask, working

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.several]


def test_results_come_from_other_processes():
    def whereabouts(own, shared):
        return os.getpid(), shared.sum().item(), torch.get_num_threads()

    batch = torch.ones(3)
    with working(RayWorkers(2), whereabouts) as results:
        found = dict(results(WorkerTask(number, batch) for number in range(12)))
    assert sorted(found) == list(range(12))
    processes = {process for process, _, _ in found.values()}
    assert os.getpid() not in processes
    assert len(processes) == 2
    assert {total for _, total, _ in found.values()} == {3}


def test_nothing_of_ray_runs_next_to_what_is_timed():
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=3)
        workers = RayWorkers(4, cluster.address).on_whole_nodes()

        def timed(own, shared):
            return ray.get_runtime_context().get_node_id(), ray.available_resources().get("CPU", 0)

        with working(workers, timed) as results:
            coming = results(map(WorkerTask, range(6)))
            first = next(coming)
            waiting = ray.remote(num_cpus=1)(lambda: 1).remote()
            found = dict([first, *coming])
            assert not ray.wait([waiting], timeout=0.5)[0], "it has to wait for those that time"
        assert sorted(found) == list(range(6))
        assert len({node for node, _ in found.values()}) == 2
        assert {free for _, free in found.values()} == {0}
    finally:
        ray.shutdown()
        cluster.shutdown()
