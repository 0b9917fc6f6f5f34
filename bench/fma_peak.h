// The most fp32 multiply-adds a second that this machine can do: the yardstick of the benchmark.
// Plain C functions, so that C++ and Python (ctypes) call the same code. Knows nothing of
// attention.
#pragma once

#include <cstdint>

extern "C" {

// Widths in bits of the SIMD registers that this CPU has and that are measured here, widest first.
// Returns how many there are; writes at most `capacity` of them.
[[gnu::visibility("default")]] int32_t FmaPeakWidths(int32_t* widths, int32_t capacity);

// Runs independent chains of multiply-adds in registers of `width` bits, `iterations` steps of each
// chain, on `threads` threads at once. Returns their added speed in flop/s (a multiply-add counts
// 2), or 0 if the width is not one of FmaPeakWidths().
[[gnu::visibility("default")]] double FmaPeakSlice(int32_t width, int32_t threads,
                                                   int64_t iterations);

}  // extern "C"
