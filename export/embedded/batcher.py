"""Concurrent requests of one signature, put together into batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from tfdeblend.export.embedded.refusal import Refusal

Arrays = dict[str, np.ndarray]
Run = Callable[[str, Arrays], Arrays]  # a signature, on a batch


class Closed(Exception):
    """Says that a batcher takes nothing more: another version has taken over, or the server stops."""


@dataclass(eq=False)  # a task is itself, whatever its arrays hold
class Task:
    """A request that waits or runs."""

    signature: str
    inputs: Arrays
    future: Future = field(default_factory=Future)

    @property
    def blends(self) -> int:
        return len(next(iter(self.inputs.values())))


class Batcher:
    """Args:
    run: what to do with a batch. largest: blends in one. waiting: blends that may wait, beyond which requests are
    refused. threads: batches at work side by side. watch: called with the blends of each batch.
    """

    def __init__(self, run: Run, largest: int, waiting: int, threads: int, watch: Callable[[int], None]):
        self.run, self.largest, self.waiting, self.watch = run, largest, waiting, watch
        self._tasks: deque[Task] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [threading.Thread(target=self._work, name="batches") for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, signature: str, inputs: Arrays) -> Future:
        """Queues a request; returns its outputs to come, which may be cancelled while it waits.

        Raises: Closed; Refusal where too many wait.
        """
        task = Task(signature, inputs)
        with self._changed:
            if self._closed:
                raise Closed
            self._forget()
            if self.held() + task.blends > self.waiting:
                message = f"expected at most {self.waiting} blends to wait, received one more: try again later"
                raise Refusal("UNAVAILABLE", message)
            self._tasks.append(task)
            self._changed.notify()
        return task.future

    def held(self) -> int:
        """Counts the blends that wait."""
        return sum(task.blends for task in list(self._tasks) if not task.future.cancelled())

    def close(self) -> None:
        """Takes nothing more, finishes what waits, and returns when all is done."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _take(self) -> list[Task]:
        """Takes the task that waited longest, and others of its signature that fit into a batch; none at the end."""
        with self._changed:
            while not self._closed or self._tasks:
                self._changed.wait_for(lambda: self._tasks or self._closed)
                if batch := self._fill():
                    self._changed.notify()  # of what was left
                    return batch
            return []

    def _fill(self) -> list[Task]:
        batch: list[Task] = []
        left: deque[Task] = deque()
        room = self.largest
        self._forget()
        for task in self._tasks:
            if batch and (task.signature != batch[0].signature or task.blends > room):
                left.append(task)
            elif task.future.set_running_or_notify_cancel():
                batch.append(task)
                room -= task.blends
        self._tasks = left
        return batch

    def _forget(self) -> None:
        """Drops the tasks that nobody waits for any more."""
        self._tasks = deque(task for task in self._tasks if not task.future.cancelled())

    def _work(self) -> None:
        while batch := self._take():
            self.watch(sum(task.blends for task in batch))
            self._do(batch)

    def _do(self, batch: list[Task]) -> None:
        try:
            inputs = batch[0].inputs
            if len(batch) > 1:
                inputs = {name: np.concatenate([task.inputs[name] for task in batch]) for name in inputs}
            outputs = self.run(batch[0].signature, inputs)
        except Exception as error:  # whatever the graph raises: each then fails, or not, for itself
            if len(batch) > 1:
                for task in batch:
                    self._do([task])
            else:
                batch[0].future.set_exception(error)
            return
        first = 0
        for task in batch:
            last = first + task.blends
            task.future.set_result({name: value[first:last] for name, value in outputs.items()})
            first = last
