"""Tasks at actors whose nodes are lost: by a Ray that does what a test says, so that nothing takes time."""

from types import SimpleNamespace

import pytest

from shoal.errors import WorkersError
from shoal.workers.ray_pool import ActorTasks


class LostError(Exception):
    """What Ray raises of an actor that is gone."""


class FakeRay:
    """Actors on nodes; a task is done at once where its node is alive, and never where it is not."""

    exceptions = SimpleNamespace(RayError=LostError)

    def __init__(self, nodes, cpus=None):
        self.alive, self.places, self.cpus = set(nodes), dict(enumerate(nodes)), cpus
        self.done, self.killed, self.silences, self.pulses = {}, [], 0, 0
        self.actors = [self.actor(number) for number in self.places]

    def actor(self, number):
        def whereabouts():
            self.pulses += 1
            return self.answer(number, self.places[number])

        return SimpleNamespace(number=number, whereabouts=SimpleNamespace(remote=whereabouts))

    def answer(self, number, value):
        reference = f"{number}:{len(self.done)}"
        self.done[reference] = number, value
        return reference

    def is_ready(self, reference):
        return self.places[self.done[reference][0]] in self.alive

    def wait(self, references, timeout, num_returns=1):
        ready = [reference for reference in references if self.is_ready(reference)][:num_returns]
        if not ready and timeout:
            self.silences += 1
            assert self.silences < 20, "it waits for ever"
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference):
        return self.done[reference][1]

    def nodes(self):
        return [{"NodeID": name, "Alive": name in self.alive} for name in sorted({*self.places.values()})]

    def cluster_resources(self):
        return {"CPU": self.cpus if self.cpus is not None else len(self.alive)}

    def kill(self, actor):
        self.killed.append(actor.number)


def pool_of(ray, ahead=1):
    return ActorTasks(ray, ray.actors, ahead, lambda: ray.cluster_resources()["CPU"])


def submitted(pool, ray, values):
    for value in values:
        pool.submit(lambda actor, value=value: ray.answer(actor.number, (actor.number, value)))


def drained(pool):
    results = []
    while pool.has_next:
        results.append(pool.next())
    return results


def test_each_actor_gets_a_task_and_one_ahead():
    ray = FakeRay(["a", "b"])
    pool = pool_of(ray)
    submitted(pool, ray, range(4))
    assert not pool.has_free
    assert sorted(drained(pool)) == [(0, 0), (0, 2), (1, 1), (1, 3)]
    assert pool.has_free
    assert not ray.silences


def test_what_a_lost_node_held_goes_to_the_others_once():
    ray = FakeRay(["a", "b", "c"])
    pool = pool_of(ray)
    submitted(pool, ray, range(6))
    ray.alive -= {"b"}
    results = drained(pool)
    assert sorted(value for _, value in results) == list(range(6))
    assert {number for number, _ in results} == {0, 2}
    assert ray.killed == [1]
    submitted(pool, ray, range(4))  # two each of the two that are left
    assert not pool.has_free
    assert {number for number, _ in drained(pool)} == {0, 2}


def test_where_ray_has_room_elsewhere_it_is_waited_for():
    ray = FakeRay(["a", "b"], cpus=2)
    pool = pool_of(ray)
    submitted(pool, ray, range(2))
    ray.alive -= {"b"}
    assert pool.next() == (0, 0)
    real = ray.wait

    def moved(references, timeout):
        if timeout and ray.silences == 3:
            ray.places[1] = "c"
            ray.alive |= {"c"}
        return real(references, timeout)

    ray.wait = moved
    assert pool.next() == (1, 1)
    assert ray.killed == []


def test_in_a_silence_every_actor_is_sent_something_but_never_two_things():
    ray = FakeRay(["a", "b"])
    pool = pool_of(ray)
    assert ray.pulses == 4  # the first ones have told where the actors are
    submitted(pool, ray, range(2))
    ray.alive.clear()
    ray.cpus = 2
    real = ray.wait

    def back(references, timeout):
        if timeout and ray.silences == 4:
            ray.alive |= {"a", "b"}
        return real(references, timeout)

    ray.wait = back
    assert sorted(drained(pool)) == [(0, 0), (1, 1)]
    assert ray.pulses == 4, "nobody had answered"


def test_without_any_node_left_it_ends_and_says_so():
    ray = FakeRay(["a", "b"])
    pool = pool_of(ray)
    submitted(pool, ray, range(2))
    ray.alive.clear()
    with pytest.raises(WorkersError, match="2 workers lost with the nodes they were on, and none is left"):
        pool.next()


def test_a_pulse_of_an_actor_that_failed_is_taken_again():
    ray = FakeRay(["a"])
    pool = pool_of(ray)
    real, ray.get = ray.get, lambda reference: (_ for _ in ()).throw(LostError())
    pool._feel_pulses()
    ray.get = real
    assert pool._nodes == {0: "a"}
    assert ray.pulses == 3
