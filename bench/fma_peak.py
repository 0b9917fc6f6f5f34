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


class FmaPeak:
    """Slices of pure multiply-adds in the SIMD width that is fastest on this machine."""

    def __init__(self, threads: int) -> None:
        """Loads the library, picks the width and fits a slice to `SLICE_SECONDS`."""
        if not LIBRARY.exists():
            raise SystemExit(f"{LIBRARY} is missing; scripts/bench builds it")
        library = ctypes.CDLL(str(LIBRARY))
        self._slice = library.FmaPeakSlice
        self._slice.restype = ctypes.c_double
        self._slice.argtypes = [ctypes.c_int32, ctypes.c_int32, ctypes.c_int64]
        widths = (ctypes.c_int32 * 8)()
        count = library.FmaPeakWidths(widths, len(widths))

        self.threads = threads
        self._iterations = _PROBE_ITERATIONS
        self.width = max(widths[:count], key=self._probe)
        begin = time.perf_counter()
        self._slice(self.width, 1, _PROBE_ITERATIONS)
        seconds = time.perf_counter() - begin
        self._iterations = max(1, int(_PROBE_ITERATIONS * SLICE_SECONDS / seconds))

    def _probe(self, width: int) -> float:
        return max(self._slice(width, self.threads, _PROBE_ITERATIONS) for _ in range(20))

    def slice(self) -> float:
        """Runs one slice on all threads and returns its speed in flop/s."""
        return self._slice(self.width, self.threads, self._iterations)
