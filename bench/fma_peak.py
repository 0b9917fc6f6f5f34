"""The FMA peak of this machine, measured by the shared library built from fma_peak.cc."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

LIBRARY = (
    Path(__file__).resolve().parent.parent / "build/bench/bench/libfusion_attention_fma_peak.so"
)
SLICE_SECONDS = 0.5e-3
_PROBE_ITERATIONS = 20_000
_PROBES = 20


class FmaPeak:
    """Slices of pure multiply-adds in the SIMD width of a target."""

    def __init__(self, threads: int, target: str) -> None:
        """Loads the library and fits a slice to `SLICE_SECONDS`."""
        if not LIBRARY.exists():
            raise SystemExit(f"{LIBRARY} is missing; scripts/bench builds it")
        library = ctypes.CDLL(str(LIBRARY))
        self._slice = library.FmaPeakSlice
        self._slice.restype = ctypes.c_double
        self._slice.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_int64]

        self.threads = threads
        self.width = width_of(target)
        self._iterations = _PROBE_ITERATIONS
        seconds = []
        for _ in range(_PROBES):  # the first is slow: the clock of the CPU rises
            begin = time.perf_counter()
            self._slice(self.width, 1, _PROBE_ITERATIONS)
            seconds.append(time.perf_counter() - begin)
        self._iterations = max(1, int(_PROBE_ITERATIONS * SLICE_SECONDS / min(seconds)))

    def slice(self) -> float:
        """Runs one slice on all threads and returns its speed in flop/s."""
        return self._slice(self.width, self.threads, self._iterations)


def width_of(target: str) -> int:
    """The bits of a vector of a SIMD target.

    Example:
        >>> width_of("avx512"), width_of("avx2"), width_of("neon")
        (512, 256, 128)
    """
    return 512 if target.startswith("avx512") else 256 if target == "avx2" else 128
