"""Causal self-attention with its gradient: the shortest use of the operator."""

import torch

from fusion_attention import npu_fusion_attention

query, key, value = (torch.randn(2, 8, 128, 64, requires_grad=True) for _ in range(3))
causal = torch.ones(2048, 2048, dtype=torch.bool).triu(1)
out = npu_fusion_attention(
    query, key, value, 8, "BNSD", atten_mask=causal, sparse_mode=3, scale=64**-0.5, keep_prob=0.9
)[0]
out.sum().backward()
print(out.shape, query.grad.shape)
