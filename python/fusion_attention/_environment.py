"""The environment variables that the package reads, and what each is for. `info` lists them."""

#: Name -> meaning, in a few words.
VARIABLES = {
    "FUSION_ATTENTION_TARGET": "forces a SIMD target (avx512, avx2, sse4, neon); read once",
}
