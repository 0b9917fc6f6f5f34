"""The FMA peak of this machine, measured by the shared library built from fma_peak.cc."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

LIBRARY = (
    Path(__file__).resolve().parent.parent / "build/bench/bench/libfusion_attention_fma_peak.so"
)
_PROBE_ITERATIONS = 20_000
_SHORTEST_SLICE, _LONGEST_SLICE = 0.5e-3, 50e-3
_PROBES = 20


class FmaPeak:
    """Slices of pure multiply-adds in the SIMD width of a target."""

    def __init__(self, threads: int, target: str) -> None:
        """Loads the library and finds out how long its chains take."""
        if not LIBRARY.exists():
            raise SystemExit(f"{LIBRARY} is missing; scripts/bench builds it")
        library = ctypes.CDLL(str(LIBRARY))
        self._slice = library.FmaPeakSlice
        self._slice.restype = ctypes.c_double
        self._slice.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_int64]

        self.threads = threads
        self.width = width_of(target)
        seconds = []
        for _ in range(_PROBES):  # the first is slow: the clock of the CPU rises
            begin = time.perf_counter()
            self._slice(self.width, 1, _PROBE_ITERATIONS)
            seconds.append(time.perf_counter() - begin)
        self._iterations_a_second = _PROBE_ITERATIONS / min(seconds)

    def slice(self, seconds: float) -> float:
        """Runs one slice of about so many seconds on all threads; returns its speed in flop/s."""
        iterations = max(1, int(self._iterations_a_second * seconds))
        return self._slice(self.width, self.threads, iterations)

    def turn_as_long_as(self, work: Callable[[], object]) -> tuple[Callable[[], None], list[float]]:
        """A slice as long as a piece of work, to take turns with it, and the list of its speeds.

        As long as the work, from 0.5 to 50 ms: best slices are compared, and both must have the
        same chance of a moment without neighbours. On a shared machine slices of 0.5 ms find
        moments at a higher clock that no call of 20 ms gets, and read 0.4 to 2.5 % more.
        """
        work()
        begin = time.perf_counter()
        work()
        seconds = time.perf_counter() - begin
        seconds = min(max(seconds, _SHORTEST_SLICE), _LONGEST_SLICE)
        speeds: list[float] = []
        return lambda: speeds.append(self.slice(seconds)), speeds


def width_of(target: str) -> int:
    """The bits of a vector of a SIMD target.

    Example:
        >>> width_of("avx512"), width_of("avx2"), width_of("neon")
        (512, 256, 128)
    """
    return 512 if target.startswith("avx512") else 256 if target == "avx2" else 128
