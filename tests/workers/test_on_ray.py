"""Workers in processes of their own: the same figures as here, whatever happens to them. Ray takes seconds to start."""

import os
import signal
import socket
import sys
import threading
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import shoal
import tiny
from shoal.errors import UsageError, WorkersError
from shoal.workers import RayWorkers, WorkerTask, on_ray, working

pytest.importorskip("ray")


def test_ray_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"shoal\[ray\]"):
        RayWorkers(2)


@pytest.mark.parametrize(
    "address",
    [
        *("nonsense", "host:port", ":6379", "ray://", "10.0.0.1:999999", "", " ", "10.0.0.1", "10.0.0.1:0", "::1:6379"),
        *("[::1", "[zz]:1", "10.0.0.1:1:2", "10.0.0.1:-1", "10.0.0.1:1\n", "\0:1", "10.0.0.1: 1", " auto", "local"),
        *("http://10.0.0.1:80", "10.0.0.1:1/path", "me@10.0.0.1:1", "10.0.0.1:1?a", "10.0.0.1:1#a", "ray://:1"),
    ],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(UsageError, match="is no address of a Ray cluster"):
        RayWorkers(2, address)


@pytest.mark.parametrize("host", ["a" * 300, "x..y", "no-such-host.invalid"])
def test_a_host_that_has_no_name_is_refused(host):
    with pytest.raises(UsageError, match=f"nothing answers at '{host}:6379'"):
        RayWorkers(2, f"{host}:6379")


def test_an_address_at_which_nobody_listens_is_refused_at_once():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(UsageError, match=f"nothing answers at '{address}'.*refused"):
            RayWorkers(2, address)


def test_an_address_that_stays_silent_is_given_up(monkeypatch):
    monkeypatch.setattr(on_ray, "_PATIENCE", 0.2)

    def silent(address, timeout):
        assert timeout == 0.2
        raise TimeoutError("timed out")

    monkeypatch.setattr(on_ray.socket, "create_connection", silent)
    with pytest.raises(UsageError, match="timed out"):
        RayWorkers(2, "192.0.2.1:6379")


@pytest.mark.parametrize(
    ("spoken", "message"),
    [
        (None, r"nothing answers at .*timed out"),
        (b"HTTP/1.1 400 Bad Request\r\n", "is not Ray"),
        (b"SSH-2.0-", r"nothing answers at .*timed out"),  # less than a whole answer, and then nothing
        (b"", "is not Ray"),
    ],
)
def test_what_listens_but_is_not_ray_is_refused(monkeypatch, spoken, message):
    monkeypatch.setattr(on_ray, "_PATIENCE", 0.3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer():
            connection, _ = server.accept()
            if spoken is None:
                done.wait(5)
            else:
                connection.recv(100)
                connection.sendall(spoken)
                if len(spoken) == 8:
                    done.wait(5)
            connection.close()

        done, thread = threading.Event(), threading.Thread(target=answer)
        thread.start()
        with pytest.raises(UsageError, match=message):
            RayWorkers(2, f"127.0.0.1:{server.getsockname()[1]}")
        done.set()
        thread.join()


def test_what_answers_as_ray_does_and_says_no_more_is_given_up(monkeypatch):
    monkeypatch.setattr(on_ray, "_PATIENCE", 0.2)
    monkeypatch.setattr(on_ray, "_ASK", "import time; print(flush=True); time.sleep(60)")
    with pytest.raises(UsageError, match=r"what answers at '10\.0\.0\.1:6379' is not Ray, or a head that hangs"):
        on_ray._check_is_ray("10.0.0.1:6379")


@pytest.mark.parametrize("ask", ["print()", "raise SystemExit('another version, or no token: Ray says it')"])
def test_what_ray_makes_of_an_answer_it_says_itself(monkeypatch, ask):
    monkeypatch.setattr(on_ray, "_ASK", ask)
    on_ray._check_is_ray("10.0.0.1:6379")


def test_what_cannot_be_pickled_is_refused_before_anything_starts():
    lock = threading.Lock()
    with pytest.raises(UsageError, match="cannot be sent to workers"):
        RayWorkers(2).start(lambda own, shared: lock)


@pytest.mark.parametrize("place", range(3))
def test_another_version_on_a_node_is_named(place):
    versions = list(on_ray._versions())
    name, here = versions[place]
    versions[place] = name, "0.0.1"
    problem = str(on_ray._Actor().open(on_ray._Kit(None, on_ray._Setup(1, (), tuple(versions)))))
    assert f"the node '{socket.gethostname()}' has {name} {here}, this one 0.0.1" in problem


@pytest.mark.parametrize(
    ("gpu", "resources", "message"),
    [
        (True, {"CPU": 8.0}, "2 workers need a GPU each, and Ray has 0"),
        (True, {"CPU": 8.0, "GPU": 1.0}, "2 workers need a GPU each, and Ray has 1"),
        (False, {"CPU": 1.0, "GPU": 8.0}, "2 workers need a CPU each, and Ray has 1"),
    ],
)
def test_a_cluster_with_too_few_devices_is_refused(gpu, resources, message):
    workers = RayWorkers(2, gpu=gpu)
    workers._ray = SimpleNamespace(cluster_resources=lambda: resources)
    with pytest.raises(UsageError, match=message) as caught:
        workers._check_count()
    assert ("--device cpu" in caught.value.hint) is gpu


@pytest.mark.parametrize(
    "error",
    [
        ModuleNotFoundError("No module named 'only_here'"),
        RuntimeError("Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is False."),
        FileNotFoundError(2, "No such file or directory", "weights.safetensors"),
    ],
)
def test_code_or_a_device_that_a_node_lacks_is_named(monkeypatch, error):
    def missing(kit):
        raise error

    monkeypatch.setattr(on_ray._Kit, "function", missing)
    kit = on_ray._Kit(None, on_ray._Setup(1, (), on_ray._versions()))
    problem = on_ray._Actor().open(kit)
    assert f"the node '{socket.gethostname()}' cannot open the network" in str(problem)
    assert str(error) in str(problem)
    assert isinstance(problem, WorkersError)
    assert on_ray._Actor().run(kit, 7, None, None)[0] == 7


def killing(flag):
    """Kills its process once for each of the first tasks."""

    def run(own, shared):
        marker = Path(f"{flag}-{own}")
        if own % 3 == 0 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return own

    return run


@pytest.fixture(scope="module")
def cluster():
    """Ray with room for four workers, started once for all tests that need not see it start."""
    ray = on_ray._import_ray()
    context = ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield context.address_info["gcs_address"]
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.several
def test_errors_of_shoal_come_back_as_they_are_and_others_are_named(cluster):
    def fails(own, shared):
        raise UsageError("no", "do this") if own == 0 else RuntimeError("odd")

    with working(RayWorkers(2), fails) as results:
        with pytest.raises(UsageError, match="no") as caught:
            list(results([WorkerTask(0)]))
        assert caught.value.hint == "do this"
        with pytest.raises(WorkersError, match="RuntimeError: odd"):
            list(results([WorkerTask(1)]))


@pytest.mark.slow
@pytest.mark.several
def test_workers_that_are_killed_are_started_again_and_no_task_is_lost(tmp_path, cluster):
    with working(RayWorkers(2), killing(str(tmp_path / "killed"))) as results:
        assert sorted(results(map(WorkerTask, range(10)))) == [(number, number) for number in range(10)]
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.slow
@pytest.mark.several
def test_a_task_that_kills_every_worker_ends_the_run(monkeypatch, cluster):
    monkeypatch.setattr(on_ray, "_RETRIES", 1)
    with (
        working(RayWorkers(1), lambda own, shared: os.kill(os.getpid(), signal.SIGKILL)) as results,
        pytest.raises(WorkersError, match="lost 2 times with the same task"),
    ):
        list(results([WorkerTask(0)]))


@pytest.mark.slow
@pytest.mark.several
def test_a_plan_by_workers_is_the_very_same_and_nothing_is_timed_while_they_are_there(monkeypatch, cluster):
    generator = torch.Generator().manual_seed(0)
    data = [torch.randn(32, 1, 8, 8, generator=generator) for _ in range(4)]
    timings, pair = [], RayWorkers(2)
    timing = import_module("shoal.measure.latency")
    real = timing._take_turns
    monkeypatch.setattr(timing, "_take_turns", lambda *args: timings.append(len(pair._actors)) or real(*args))
    results = [
        shoal.compress(
            tiny.network(),
            data,
            shoal.Budget(params=0.7),
            validation=data[:2],
            config=shoal.CompressConfig(workers=workers, stand_ins=("identity", "conv3"), latency_seconds=0.02),
        )
        for workers in (1, pair)
    ]
    assert results[0].plan == results[1].plan
    assert results[0].record.blocks == results[1].record.blocks
    assert [state.tolist() for state in results[0].model.state_dict().values()] == [
        state.tolist() for state in results[1].model.state_dict().values()
    ]
    assert timings
    assert not any(timings)


@pytest.mark.slow
@pytest.mark.several
def test_a_cluster_that_runs_already_is_joined_and_left_running(cluster):
    import ray

    assert on_ray._check_answers(cluster) is None
    with working(RayWorkers(2, cluster), lambda own, shared: own + 1) as results:
        assert sorted(results(map(WorkerTask, range(4)))) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    assert ray.is_initialized()
    with pytest.raises(UsageError, match="5 workers need a CPU each, and Ray has 4"):
        RayWorkers(5, cluster).start(lambda own, shared: own)


def nodes(*resources):
    """What Ray says of nodes with these resources."""
    return [{"NodeID": f"{n:056x}", "Alive": alive, "Resources": r} for n, (alive, r) in enumerate(resources)]


def test_those_that_time_take_whole_nodes_one_each():
    workers = RayWorkers(2, exclusive=True)
    there = nodes((True, {"CPU": 8.0, "GPU": 2.0}), (False, {"CPU": 8.0}), (True, {"CPU": 4.0}), (True, {"CPU": 4.0}))
    workers._ray = SimpleNamespace(nodes=lambda: there)
    places = workers._places()
    assert [(place["num_cpus"], place["num_gpus"]) for place in places] == [(8.0, 2.0), (4.0, 0)]
    assert [place["scheduling_strategy"].node_id for place in places] == [there[0]["NodeID"], there[2]["NodeID"]]
    assert workers._setup().threads == torch.get_num_threads()
    assert workers._room() == 3
    workers._check_count()
    workers.gpu = True
    assert len(workers._places()) == workers._room() == 1
    del there[0]
    with pytest.raises(UsageError, match="need a GPU each, and Ray has 0"):
        workers._check_count()


def test_a_worker_that_ray_cannot_start_is_said_to_be_that():
    class UnavailableError(Exception):
        pass

    def get(references):
        raise UnavailableError("The actor is unavailable: Socket closed.\nmore")

    workers = RayWorkers(1)
    workers._ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=UnavailableError))
    with pytest.raises(WorkersError, match=r"a worker does not start.*: The actor is unavailable: Socket closed"):
        workers._opened()


def test_a_cluster_that_asks_for_a_token_is_named():
    class AuthenticationError(Exception):
        pass

    def init(**options):
        try:
            raise AuthenticationError("InvalidAuthToken")
        except AuthenticationError as error:
            raise ConnectionError("Failed to connect to Ray cluster") from error

    workers = RayWorkers(1)
    workers._ray = SimpleNamespace(init=init)
    with pytest.raises(UsageError, match=r"the Ray cluster at 'x' cannot be joined: it asks for a token") as caught:
        workers._begin("the Ray cluster at 'x' cannot be joined", address="x")
    assert "RAY_AUTH_MODE=token" in caught.value.hint
