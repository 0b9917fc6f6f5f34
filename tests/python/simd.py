"""Which SIMD targets this machine can run, told by its own description of its CPU."""

import pathlib
import platform

# A target and the CPU flags that it needs, as Linux spells them.
_AVX512 = {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
_NEEDS = {
    "avx512_bf16": _AVX512 | {"avx512_bf16"},
    "avx512": _AVX512,
    "avx2": {"avx2", "fma", "bmi1", "bmi2", "f16c"},
    "sse4": {"sse4_1", "sse4_2", "pclmulqdq", "aes"},
}


def simd_targets() -> list[str]:
    """Names that FUSION_ATTENTION_TARGET accepts here, best first."""
    if platform.machine() in ("aarch64", "arm64"):
        return ["neon"]
    text = pathlib.Path("/proc/cpuinfo").read_text()
    flags = next(line for line in text.splitlines() if line.startswith("flags")).split()
    return [name for name, needed in _NEEDS.items() if needed <= set(flags)]
