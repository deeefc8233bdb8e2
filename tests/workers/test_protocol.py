import pytest

from shoal.errors import UsageError
from shoal.workers import LocalWorkers, WorkerTask, as_workers, working


class Counted(LocalWorkers):
    def __init__(self):
        super().__init__()
        self.started = self.stopped = 0

    def start(self, function):
        self.started += 1
        super().start(function)

    def stop(self):
        self.stopped += 1
        super().stop()


def test_results_come_with_what_was_asked():
    with working(LocalWorkers(), lambda own, shared: own * shared) as results:
        assert list(results(WorkerTask(own, 10) for own in (1, 2))) == [(1, 10), (2, 20)]
        assert list(results([WorkerTask(3, 1)])) == [(3, 3)]


def test_workers_start_with_the_first_task_and_end_with_the_block():
    workers = Counted()
    with working(workers, lambda own, shared: own) as results:
        assert list(results([])) == []
        assert workers.started == 0
        assert list(results([WorkerTask(1)])) == [(1, 1)]
        list(results([WorkerTask(2)]))
        assert (workers.started, workers.stopped) == (1, 0)
    assert workers.stopped == 1


def test_workers_that_never_started_are_not_stopped():
    workers = Counted()
    with working(workers, lambda own, shared: own):
        pass
    assert (workers.started, workers.stopped) == (0, 0)


def test_workers_end_where_a_task_raises():
    workers = Counted()

    def fails(own, shared):
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"), working(workers, fails) as results:
        list(results([WorkerTask(1)]))
    assert workers.stopped == 1


def test_tasks_are_drawn_one_by_one():
    drawn = []

    def tasks():
        for number in range(3):
            drawn.append(number)
            yield WorkerTask(number)

    with working(LocalWorkers(), lambda own, shared: own) as results:
        coming = results(tasks())
        next(coming)
        assert drawn == [0]


@pytest.mark.parametrize("workers", [None, 1])
def test_by_default_this_process_works(workers):
    assert isinstance(as_workers(workers), LocalWorkers)


@pytest.mark.parametrize("workers", [True, "two", 1.5, object()])
def test_no_workers_are_refused(workers):
    with pytest.raises(UsageError, match="expected a whole number from 1 or workers"):
        as_workers(workers)


@pytest.mark.parametrize("workers", [0, -2])
def test_a_number_below_one_is_refused(workers):
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match="workers"):
        as_workers(workers)
