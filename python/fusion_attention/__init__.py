"""Ascend's fused attention operator for every machine: exact, and with its gradient.

>>> import torch
>>> from fusion_attention import npu_fusion_attention
>>> query = key = value = torch.randn(1, 4, 128, 64)
>>> npu_fusion_attention(query, key, value, 4, "BNSD", scale=64**-0.5)[0].shape
torch.Size([1, 4, 128, 64])
"""

from fusion_attention import _fakes as _fakes
from fusion_attention.api import npu_fusion_attention, npu_fusion_attention_grad

__all__ = ["npu_fusion_attention", "npu_fusion_attention_grad"]
