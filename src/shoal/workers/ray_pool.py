"""Tasks at actors of Ray: whoever is free gets the next, and nothing waits for an actor that will not come back.

Ray starts a lost actor anew and runs its tasks again, but only where there is room for it: with a node, the room may be
lost too, and Ray would wait. And an answer that was on its way when the line broke is missed by nobody for minutes, for
as long as nothing else goes over the same connection.
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from shoal.errors import WorkersError, count_of

# After so many seconds without a result the actors are looked after.
SILENCE = 15.0

Call = Callable[[Any], Any]
"""Given an actor, has it do something, and returns the reference to the result."""


class ActorTasks:
    """What actors have been given to do.

    Args:
        ray: the module.
        actors: each answers `whereabouts` with the node that it is on.
        ahead: tasks that wait at an actor beside the one it runs.
        room: for how many actors the cluster has room, as it is now.
    """

    def __init__(self, ray: Any, actors: Sequence[Any], ahead: int, room: Callable[[], float]) -> None:
        self._ray, self._room = ray, room
        self._actors = dict(enumerate(actors))
        self._free = deque([*self._actors] * (1 + ahead))
        self._running: dict[Any, tuple[int, Call]] = {}
        self._again = deque[Call]()
        self._pulses = {number: actor.whereabouts.remote() for number, actor in self._actors.items()}
        self._nodes: dict[int, str] = {}
        ray.wait([*self._pulses.values()], num_returns=len(actors), timeout=SILENCE)
        self._feel_pulses()

    @property
    def has_free(self) -> bool:
        """Whether an actor can be given one more."""
        return bool(self._free)

    @property
    def has_next(self) -> bool:
        """Whether a result is still to come."""
        return bool(self._running or self._again)

    def submit(self, call: Call) -> None:
        """Have an actor that is free do it."""
        number = self._free.popleft()
        self._running[call(self._actors[number])] = number, call

    def next(self) -> Any:
        """The next result, whoever it comes from.

        Raises:
            WorkersError: every actor is lost, with its node.
        """
        while True:
            while self._again and self._free:
                self.submit(self._again.popleft())
            ready, _ = self._ray.wait([*self._running], timeout=SILENCE)
            if ready:
                number, _ = self._running.pop(ready[0])
                self._free.append(number)
                return self._ray.get(ready[0])
            self._look_after()

    def _look_after(self) -> None:
        """Give up the actors that Ray has no room for; have all others send something, so that broken lines show."""
        self._feel_pulses()
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        lost = {number for number, node in self._nodes.items() if node not in alive}
        if lost and self._room() < len(self._actors):
            self._give_up(lost)

    def _feel_pulses(self) -> None:
        for number, actor in self._actors.items():
            if self._ray.wait([self._pulses[number]], timeout=0)[0]:
                with suppress(self._ray.exceptions.RayError):
                    self._nodes[number] = self._ray.get(self._pulses[number])
                self._pulses[number] = actor.whereabouts.remote()

    def _give_up(self, lost: set[int]) -> None:
        for number in lost:
            self._nodes.pop(number)
            self._ray.kill(self._actors.pop(number))
        if not self._actors:
            raise WorkersError(
                f"{count_of(len(lost), 'worker')} lost with the nodes they were on, and none is left",
                "The same command goes on from what was measured.",
            )
        self._free = deque(number for number in self._free if number not in lost)
        stranded = {reference: call for reference, (number, call) in self._running.items() if number in lost}
        for reference, call in stranded.items():
            del self._running[reference]
            self._again.append(call)
