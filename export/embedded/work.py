"""The requests that a server has at work, the bodies that it reads, and the end of both when it stops."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from tfdeblend.export.embedded.refusal import Refusal

IDLE = 10.0  # seconds until a connection without a request is closed, or a body of which nothing comes refused
UNFINISHED = 5.0  # seconds that a body which is not whole yet has when the server stops


class Work:
    """Counts requests at work. To be made and used within one event loop."""

    def __init__(self) -> None:
        self.held, self._end = 0, float("inf")
        self._none = asyncio.Event()
        self._none.set()
        self._bodies: set[asyncio.Timeout] = set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Counts a request."""
        self.held += 1
        self._none.clear()
        try:
            yield
        finally:
            self.held -= 1
            if not self.held:
                self._none.set()

    async def done(self, seconds: float) -> bool:
        """Waits until no request is at work, for so long at most; returns whether none is."""
        try:
            await asyncio.wait_for(self._none.wait(), seconds)
        except TimeoutError:
            return False
        return True

    async def body(self, more: Callable[[], Awaitable[bytes]], largest: int) -> bytearray:
        """Reads a body until `more` gives nothing. largest: bytes.

        Raises: Refusal for a larger one, and where nothing comes for too long.
        """
        loop, text = asyncio.get_running_loop(), bytearray()
        try:
            async with asyncio.timeout(IDLE) as limit:
                self._bodies.add(limit)
                while chunk := await more():
                    text += chunk
                    if len(text) > largest:
                        raise Refusal("RESOURCE_EXHAUSTED", f"body: expected at most {largest} bytes, received more")
                    limit.reschedule(min(loop.time() + IDLE, self._end))
        except TimeoutError as error:
            message = f"body: expected a whole one, received {len(text)} bytes and no more"
            raise Refusal("DEADLINE_EXCEEDED", message) from error
        finally:
            self._bodies.discard(limit)
        return text

    def end(self) -> None:
        """Leaves bodies that are not whole UNFINISHED seconds."""
        self._end = asyncio.get_running_loop().time() + UNFINISHED
        for limit in self._bodies:
            limit.reschedule(min(limit.when() or self._end, self._end))
