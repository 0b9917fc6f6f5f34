"""torch_npu.npu.streams: one queue, and it is always empty, but the clock is real.

Every call has finished when it returns. So waiting returns at once, and an event holds the time at
which it was recorded.
"""

import threading
import time
from typing import Any

import torch

_thread = threading.local()


class Event:
    """A moment. Recorded twice, it is the later one."""

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        self._timed = enable_timing
        self._nanoseconds: int | None = None

    def record(self, stream: "Stream | None" = None) -> None:
        self._nanoseconds = time.perf_counter_ns()

    def elapsed_time(self, end_event: "Event") -> float:
        """Returns the milliseconds from this moment to that one."""
        if not (self._timed and end_event._timed):
            raise RuntimeError(
                "torch_npu: expected both events to have been made with enable_timing=True."
            )
        if self._nanoseconds is None or end_event._nanoseconds is None:
            raise RuntimeError("torch_npu: expected both events to have been recorded.")
        return (end_event._nanoseconds - self._nanoseconds) / 1e6

    def query(self) -> bool:
        return True

    def wait(self, stream: "Stream | None" = None) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def recorded_time(self) -> int:
        """Returns the moment in microseconds of this process's clock."""
        return (self._nanoseconds or 0) // 1000


class Stream(torch.Stream):
    """A queue that is always empty."""

    def __new__(cls, device: Any = None, priority: int = 0, **kwargs: Any) -> "Stream":
        return super().__new__(cls, device="npu")

    @property
    def npu_stream(self) -> int:
        """The queue's address where there are queues: 0, that of the default one."""
        return 0

    cuda_stream = npu_stream

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def wait_event(self, event: Event) -> None:
        pass

    def wait_stream(self, stream: "Stream") -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def __enter__(self) -> "Stream":
        self._context = StreamContext(self)
        self._context.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.__exit__()


def default_stream(device: Any = None) -> Stream:
    """Returns the thread's default stream."""
    if not hasattr(_thread, "default"):
        _thread.default = Stream()
    return _thread.default


def current_stream(device: Any = None) -> Stream:
    """Returns the stream of the innermost `with stream(...)`, or the default one."""
    return getattr(_thread, "current", None) or default_stream()


def set_stream(stream: Stream) -> None:
    """Makes a stream the current one."""
    _thread.current = stream


class StreamContext:
    """Makes a stream the current one within a `with` block; None changes nothing."""

    def __init__(self, stream: Stream | None) -> None:
        self.stream = stream
        self._previous: list[Stream] = []

    def __enter__(self) -> None:
        self._previous.append(current_stream())
        set_stream(self.stream or self._previous[-1])

    def __exit__(self, *_: object) -> None:
        set_stream(self._previous.pop())


def stream(stream: Stream | None) -> StreamContext:
    """Returns a context in which `stream` is the current one."""
    return StreamContext(stream)


def is_current_stream_capturing() -> bool:
    """Says False: there are no graphs to capture."""
    return False
