"""Marks for the vendor's profiler: taken and dropped, for no such profiler watches this process.

torch.profiler has marks of its own, torch.profiler.record_function.
"""

from collections.abc import Callable
from typing import Any


class mstx:  # noqa: N801
    """Marks of moments and ranges."""

    @staticmethod
    def mark(message: str = "", stream: Any = None, domain: str = "default") -> None:
        """Does nothing."""

    @staticmethod
    def range_start(message: str, stream: Any = None, domain: str = "default") -> int:
        """Returns 0, which says to the vendor's range_end that nothing was begun."""
        return 0

    @staticmethod
    def range_end(range_id: int, domain: str = "default") -> None:
        """Does nothing."""

    @staticmethod
    def mstx_range(
        message: str, stream: Any = None, domain: str = "default"
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Returns a decorator that changes nothing."""
        return lambda function: function
