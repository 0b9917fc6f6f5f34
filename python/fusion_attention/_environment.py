"""The environment variables that the package reads, and what each is for. `info` lists them."""

#: Name -> meaning, in a few words.
VARIABLES = {
    "FUSION_ATTENTION_LINT": "warn or error: looks for mistakes in every call",
    "FUSION_ATTENTION_TARGET": "forces a SIMD target (avx512_bf16, avx512, avx2, ...); read once",
    "FUSION_ATTENTION_COMPAT": "the release of torch_npu to stand in for: 7.1, 7.2, 7.3, newest",
    "FUSION_ATTENTION_NPU_NAME": "what torch.npu.get_device_name() returns",
    "FUSION_ATTENTION_NPU_COUNT": "what torch.npu.device_count() returns",
    "FUSION_ATTENTION_RECORD": "a folder: every call is saved there, for replay",
    "FUSION_ATTENTION_RECORD_TENSORS": "what of tensors is saved: all (default), statistics, none",
    "FUSION_ATTENTION_RECORD_LIMIT": "after so many calls nothing more is saved",
}
