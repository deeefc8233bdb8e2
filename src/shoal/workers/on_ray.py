"""Workers that Ray runs: on this machine, or on a cluster that runs already.

Each is an actor that unpickles the function once. Ray starts a lost actor anew, which unpickles it again, and runs its
tasks again; a task whose worker is lost every time ends the run.
"""

import os
import platform
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

import torch

from shoal.arguments import whole_number
from shoal.errors import ShoalError, UsageError, WorkersError, naming_memory_shortage
from shoal.workers.last_words import LastWords
from shoal.workers.protocol import TaskFunction, WorkerTask
from shoal.workers.ray_pool import ActorTasks

# How long an address may take to answer, in seconds.
_PATIENCE = 10.0
# What either side of a connection of HTTP/2 says first, here without content: a frame of type 4.
_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
_START_RAY = "Start Ray there: ray start --head --port=6379."
# Has Ray's client ask who is there; a line says that it begins.
_ASK = "import sys; from ray._raylet import GcsClient; print(flush=True); GcsClient(address=sys.argv[1])"
# A task is tried so many times more where its worker is lost: the fault may be its own.
_RETRIES = 10
_LAST_WORDS = (
    "This process was ended while workers ran. Ray does so, without a word, where the head of the cluster or the raylet"
    " of this node is gone. Start them again; the same command goes on from what was measured."
)
# Tasks that wait at a worker beside the one it runs, so that it is not idle while the journal is written.
_AHEAD = 1


@dataclass
class RayWorkers:
    """Processes that Ray runs.

    Args:
        count: how many at a time.
        address: of a running cluster (`10.0.0.1:6379`, `auto`); None starts one on this machine, for as long as it is
            needed.
        gpu: whether each has a GPU to itself.
        modules: Python modules that the workers may lack; their code is sent along.
        exclusive: each has a node of the cluster to itself, and there may be fewer than `count`: for tasks that time.
    """

    count: int
    address: str | None = None
    gpu: bool = False
    modules: Sequence[ModuleType] = ()
    exclusive: bool = False
    _actors: list[Any] = field(default_factory=list, repr=False)
    _joined: bool = field(default=False, repr=False)
    _on_sigterm: Any = field(default=None, repr=False)
    _kit: "_Kit | None" = field(default=None, repr=False)
    _last_words: LastWords | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        whole_number("workers", self.count, 1, "1 runs everything in this process.")
        self._ray = _import_ray()
        if self.address is not None:
            _check_answers(self.address)

    def start(self, function: TaskFunction) -> None:
        """Join or start a cluster, and make the actors.

        Raises:
            UsageError: the address does not answer, too few CPUs or GPUs, or a function that cannot be sent.
            WorkersError: another version on a node, or code that it lacks.
        """
        ray = self._ray
        packed = self._packed(function)
        if not ray.is_initialized():
            self._on_sigterm = signal.getsignal(signal.SIGTERM)
            self._join()
            self._joined = True
            if callable(self._on_sigterm):  # else Ray's own stays, which ends the cluster with this process
                _listen(self._on_sigterm)
        self._last_words = LastWords(_LAST_WORDS)
        try:
            self._check_count()
            # Held until the end: a worker that was lost and started anew reads it again.
            self._kit = _Kit(ray.put(packed), self._setup())
            actor = ray.remote(max_restarts=-1, max_task_retries=_RETRIES)(_Actor)
            self._actors = [actor.options(**place).remote() for place in self._places()]
            for problem in self._opened():
                if problem is not None:
                    raise problem
        except BaseException:
            self.stop()
            raise

    def results(self, tasks: Iterable[WorkerTask]) -> Iterator[tuple[Any, Any]]:
        """`WorkerTask.own` and its result, in the order they come.

        Raises:
            ShoalError: what the function raised.
            WorkersError: something else was raised, or a task loses its worker every time.
        """
        pool = ActorTasks(self._ray, self._actors, 0 if self.exclusive else _AHEAD, self._room)
        put = _PutOnce(self._ray.put)
        waiting: dict[int, Any] = {}
        for number, task in enumerate(tasks):
            if not pool.has_free:
                yield self._next(pool, waiting)
            waiting[number] = task.own
            call = number, task.own, put(task.shared)
            pool.submit(lambda actor, call=call: actor.run.remote(self._kit, *call))  # type: ignore[misc]
        while pool.has_next:
            yield self._next(pool, waiting)

    def stop(self) -> None:
        """End the actors, and the cluster where it was started here."""
        for actor in self._actors:
            with suppress(Exception):
                self._ray.kill(actor)
        self._actors, self._kit = [], None
        if self._joined:
            self._ray.shutdown()
            self._joined = False
            _listen(self._on_sigterm)
        if self._last_words is not None:
            self._last_words.withdraw()
            self._last_words = None

    def on_whole_nodes(self) -> "RayWorkers":
        """The same on the same cluster, but each with a node to itself."""
        return RayWorkers(self.count, self.address, self.gpu, self.modules, exclusive=True)

    @property
    def _resource(self) -> str:
        """What each worker takes one of."""
        return "GPU" if self.gpu else "CPU"

    def _next(self, pool: ActorTasks, waiting: dict[int, Any]) -> tuple[Any, Any]:
        exceptions = self._ray.exceptions
        try:
            number, result = pool.next()
        except exceptions.RayTaskError as error:
            raise WorkersError(f"a worker raised {type(error.cause).__name__}: {error.cause}") from error
        except exceptions.RayError as error:
            raise WorkersError(
                f"a worker was lost {_RETRIES + 1} times with the same task, or its node is: {_first_line(error)}",
                "Where memory is short, take fewer workers; the same command goes on from what was measured.",
            ) from error
        if isinstance(result, ShoalError):
            raise result
        return waiting.pop(number), result

    def _opened(self) -> list[ShoalError | None]:
        """What each worker says once it is ready.

        Raises:
            WorkersError: Ray cannot start one.
        """
        try:
            problems: list[ShoalError | None] = self._ray.get([actor.open.remote(self._kit) for actor in self._actors])
        except self._ray.exceptions.RayError as error:
            raise WorkersError(
                f"a worker does not start, or is lost as soon as it does: {_first_line(error)}",
                "Memory, disk and Ray's logs of the nodes may say why; `ray status` lists the nodes.",
            ) from error
        return problems

    def _packed(self, function: TaskFunction) -> bytes:
        """The function as bytes, with the code of `modules`.

        Raises:
            UsageError: something in it cannot be pickled.
        """
        pickle = self._ray.cloudpickle
        for module in self.modules:
            pickle.register_pickle_by_value(module)
        try:
            packed: bytes = pickle.dumps(function)
        except Exception as error:
            raise UsageError(
                f"the network cannot be sent to workers: {type(error).__name__}: {error}",
                "Leave out --workers and --ray (workers=).",
            ) from error
        finally:
            for module in self.modules:
                pickle.unregister_pickle_by_value(module)
        return packed

    def _join(self) -> None:
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        if self.address is None:
            whole = {"num_cpus": self.count, "include_dashboard": False}
            self._begin(f"Ray does not start {self.count} workers here", **{**quiet, **whole}, address="local")
            return
        _check_is_ray(self.address)
        self._begin(f"the Ray cluster at '{self.address}' cannot be joined", **quiet, address=self.address)

    def _begin(self, trouble: str, **options: Any) -> None:
        try:
            self._ray.init(**options)
        except Exception as error:
            if "AuthenticationError" in "".join(traceback.format_exception(error)):
                raise UsageError(
                    f"{trouble}: it asks for a token, and this process has sent none, or another one",
                    "Set RAY_AUTH_MODE=token, with the cluster's token in ~/.ray/auth_token or RAY_AUTH_TOKEN.",
                ) from error
            raise UsageError(
                f"{trouble}: {_first_line(error)}",
                "`ray status` on a node says what Ray thinks; versions have to agree.",
            ) from error

    def _setup(self) -> "_Setup":
        """Threads are divided on this machine; on a cluster a worker has one core, or a node like this one."""
        local = self.address is None
        threads = max(1, torch.get_num_threads() // self.count) if local else 1
        threads = torch.get_num_threads() if self.exclusive else threads
        return _Setup(threads, tuple(sys.path) if local else (), _versions())

    def _places(self) -> list[dict[str, Any]]:
        """What each worker takes, and where: Ray gives nobody else what it has taken."""
        if not self.exclusive:
            return [{"num_cpus": 1, "num_gpus": int(self.gpu)}] * self.count
        affinity = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
        return [
            {
                "num_cpus": node["Resources"].get("CPU", 0),
                "num_gpus": node["Resources"].get("GPU", 0),
                "scheduling_strategy": affinity(node["NodeID"], soft=True),
            }
            for node in self._nodes()[: self.count]
        ]

    def _nodes(self) -> list[dict[str, Any]]:
        """The nodes on which a worker can be."""
        return [node for node in self._ray.nodes() if node["Alive"] and node["Resources"].get(self._resource, 0) >= 1]

    def _room(self) -> int:
        """For how many workers there is room, were nothing else there."""
        return len(self._nodes()) if self.exclusive else int(self._ray.cluster_resources().get(self._resource, 0))

    def _check_count(self) -> None:
        what, there = self._resource, self._room()
        if there < (1 if self.exclusive else self.count):
            raise UsageError(
                f"{self.count} workers need a {what} each, and Ray has {there}",
                f"Ask for fewer workers{', or --device cpu' if self.gpu else ''}.",
            )


def _listen(handler: Any) -> None:
    """Put a handler of SIGTERM back in its place, which Ray takes."""
    with suppress(ValueError, TypeError):  # only the main thread may; one that was set in C is not known
        signal.signal(signal.SIGTERM, handler)


class _PutOnce:
    """Puts an object into Ray's store, unless it is the one before."""

    def __init__(self, put: Callable[[Any], Any]) -> None:
        self.put, self._last, self._reference = put, object(), None

    def __call__(self, value: Any) -> Any:
        if value is None:
            return None
        if value is not self._last:
            self._last, self._reference = value, self.put(value)
        return self._reference


@dataclass(frozen=True)
class _Setup:
    """What a worker takes over from the process that asks, and what both have to have in common."""

    threads: int
    import_path: tuple[str, ...]
    versions: tuple[tuple[str, str], ...]


def _versions() -> tuple[tuple[str, str], ...]:
    return ("Python", platform.python_version()), ("shoal", version("shoal")), ("torch", str(torch.__version__))


@dataclass(frozen=True)
class _Kit:
    """What a worker needs before its first task; the function lies in Ray's store until it is read."""

    reference: Any
    setup: _Setup

    def function(self) -> TaskFunction:
        """Unpickled in this process."""
        ray = import_module("ray")
        function: TaskFunction = ray.cloudpickle.loads(ray.get(self.reference))
        return function


class _Actor:
    """Runs in a worker. It raises no error of Shoal's but returns it, since Ray would make another class of it."""

    def __init__(self) -> None:
        self.function: TaskFunction | None = None

    def open(self, kit: _Kit) -> ShoalError | None:
        """Get ready, where it is not; returns why it cannot work, None where it can."""
        if self.function is not None:
            return None
        problem = _difference(kit.setup)
        if problem is not None:
            return problem
        sys.path.extend(path for path in kit.setup.import_path if path not in sys.path)
        torch.set_num_threads(kit.setup.threads)
        try:
            with naming_memory_shortage():
                self.function = kit.function()
        except ShoalError as error:
            return error
        except Exception as error:  # noqa: BLE001 - unpickling runs the user's code
            return WorkersError(
                f"the node '{socket.gethostname()}' cannot open the network: {type(error).__name__}: {error}",
                "What it imports has to be installed on every node, and its device to be there.",
            )
        return None

    def whereabouts(self) -> str:
        """The node of the cluster that this worker is on."""
        node: str = import_module("ray").get_runtime_context().get_node_id()
        return node

    def run(self, kit: _Kit, number: int, own: Any, shared: Any) -> tuple[int, Any]:
        """The number of the task with its result, or with the error."""
        problem = self.open(kit)  # again where Ray has started it anew
        if problem is not None or self.function is None:
            return number, problem
        try:
            with naming_memory_shortage():
                return number, self.function(own, shared)
        except ShoalError as error:
            return number, error


def _difference(setup: _Setup) -> ShoalError | None:
    """What keeps this process from giving the same results."""
    for (name, there), (_, here) in zip(setup.versions, _versions(), strict=True):
        if there != here:
            return WorkersError(
                f"the node '{socket.gethostname()}' has {name} {here}, this one {there}",
                "Figures would not be comparable: install the same version on all nodes.",
            )
    return None


def _import_ray() -> Any:
    """Ray, which says nothing of its use to anybody unless the user wants it to.

    Raises:
        UsageError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # workers do what this process would do itself
    try:
        return import_module("ray")
    except ImportError as error:
        raise UsageError("several workers need Ray, which is not installed", "pip install 'shoal[ray]'") from error


def _check_answers(address: str) -> None:
    """Refuse an address at which no Ray answers: Ray itself would go on trying for minutes.

    Raises:
        UsageError: nothing answers.
    """
    if address == "auto":
        return
    host, port = _host_and_port(address)
    began = time.monotonic()
    try:
        with socket.create_connection((host, port), timeout=_PATIENCE) as connection:
            encrypted = os.environ.get("RAY_USE_TLS", "0") not in ("", "0")
            answer = _SETTINGS if encrypted else _greeted(connection)
    except (OSError, UnicodeError) as error:
        waited = time.monotonic() - began
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"nothing answers at '{address}' ({reason}, after {waited:.0f} s)", _START_RAY) from error
    if answer[3:4] != _SETTINGS[3:4]:
        raise UsageError(f"what answers at '{address}' is not Ray", _START_RAY)


def _host_and_port(address: str) -> tuple[str, int]:
    """Of an address like `10.0.0.1:6379` or `ray://10.0.0.1:10001`.

    Raises:
        UsageError: it is none.
    """
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        host, port = parts.hostname, parts.port
        more = parts.path or parts.query or parts.fragment or parts.username is not None
        if more or not host or not port or parts.scheme not in ("", "ray") or not address.isprintable():
            raise ValueError
    except ValueError:
        raise UsageError(
            f"{address!r} is no address of a Ray cluster",
            "Like 10.0.0.1:6379, or auto; workers without an address are started on this machine.",
        ) from None
    return host, port


def _check_is_ray(address: str) -> None:
    """Refuse what speaks as Ray does and is something else, or no longer works; Ray's own client asks it.

    In a process of its own, since nothing else ends this client before it gives up by itself.

    Raises:
        UsageError: nothing comes back.
    """
    if address == "auto" or "//" in address:
        return
    with subprocess.Popen(
        [sys.executable, "-c", _ASK, address], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as client:
        try:
            if client.stdout is not None:
                client.stdout.readline()  # its imports take as long as they take
            client.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            raise UsageError(
                f"what answers at '{address}' is not Ray, or a head that hangs (after {_PATIENCE:.0f} s)", _START_RAY
            ) from None
        finally:
            client.kill()


def _greeted(connection: socket.socket) -> bytes:
    """The first bytes of an answer to a client of gRPC, which Ray is spoken to by."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
    answer, until = b"", time.monotonic() + _PATIENCE
    while len(answer) < len(_SETTINGS) and (more := connection.recv(len(_SETTINGS) - len(answer))):
        answer += more
        connection.settimeout(max(1e-3, until - time.monotonic()))
    return answer


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
