"""torch_npu.contrib: of the vendor's extras, the one that makes programs for CUDA run."""
