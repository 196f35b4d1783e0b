"""Run many tasks in forked workers, so that a crash or a hang costs one task and nothing else."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

FORK = multiprocessing.get_context("fork")


class Worker:
    """A forked process that answers one task at a time; `deadline` is when it counts as hung."""

    def __init__(self, open_tasks: Callable[[], Callable[[Any], Any]], seconds: float):
        self.seconds = seconds
        self.connection, theirs = FORK.Pipe()
        self.process = FORK.Process(target=answer, args=(theirs, open_tasks), daemon=True)
        self.process.start()
        theirs.close()

    def give(self, index: int, task: Any) -> None:
        self.index, self.deadline = index, time.monotonic() + self.seconds
        self.connection.send(task)

    def end(self) -> str:
        """Stop the process, killing it if need be: how it died, or that it hung."""
        self.process.join(0.2)
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        self.connection.close()
        return "hung" if code is None else f"crashed with status {code}"


def answer(connection: Connection, open_tasks: Callable[[], Callable[[Any], Any]]) -> None:
    """The worker's loop: what `open_tasks` loads is loaded here and not in the parent."""
    run = open_tasks()
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(run(task))


def run_isolated(
    tasks: Sequence[Any],
    open_tasks: Callable[[], Callable[[Any], Any]],
    *,
    workers: int = 2,
    seconds: float = 30,
) -> Iterator[tuple[int, Any]]:
    """(index, result) of each task as it ends; the result of a lost one is a str saying how.

    `open_tasks` is called once in each worker and returns the function that runs a task there.
    """
    waiting = list(enumerate(tasks))[::-1]
    busy: dict[Connection, Worker] = {}

    def employ(worker: Worker) -> None:
        if not waiting:
            worker.process.kill()
            worker.end()
            return
        worker.give(*waiting.pop())
        busy[worker.connection] = worker

    for _ in range(min(workers, len(waiting))):
        employ(Worker(open_tasks, seconds))
    while busy:
        limit = min(worker.deadline for worker in busy.values()) - time.monotonic()
        ready = wait(list(busy), max(limit, 0))
        late = [c for c, worker in busy.items() if c not in ready and overdue(worker)]
        for connection in [*ready, *late]:
            worker = busy.pop(connection)  # type: ignore[call-overload]
            try:
                result = None if connection in late else worker.connection.recv()
            except EOFError:
                result = None
            if result is None:
                yield worker.index, worker.end()
                worker = Worker(open_tasks, seconds)
            else:
                yield worker.index, result
            employ(worker)


def overdue(worker: Worker) -> bool:
    return time.monotonic() >= worker.deadline
