"""The problems that scripts/bench measures: those that promises are made for, and more of them."""

from __future__ import annotations

import torch

from fusion_attention.benchmark.cases import Case, Direction

DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")

# The promise: never slower than torch in fp32, and 16-bit types at least 0.9 times as fast as fp32.
PROMISED = tuple(
    Case(head_dim=head_dim, causal=causal, dtype=dtype)
    for dtype in (torch.float32, torch.bfloat16, torch.float16)
    for head_dim in (64, 128)
    for causal in (False, True)
)

_PACKED = (311, 97, 640, 25, 410, 565)

MORE = (
    *(Case(head_dim=d, causal=c) for d in (32, 72, 256) for c in (False, True)),
    *(Case(head_dim=64, causal=c, q_heads=8, kv_heads=2) for c in (False, True)),
    *(
        Case(
            64,
            True,
            layout="TND",
            lengths=_PACKED,
            q_len=sum(_PACKED),
            kv_len=sum(_PACKED),
            dtype=t,
        )
        for t in (torch.float32, torch.bfloat16)
    ),
    *(
        Case(head_dim=64, causal=c, layout="BSH", batch=2, q_len=1024, kv_len=1024)
        for c in (False, True)
    ),
    *(Case(head_dim=64, causal=c, keep_prob=0.9, q_len=1024, kv_len=1024) for c in (False, True)),
    *(
        Case(head_dim=128, causal=True, q_len=s, kv_len=s, q_heads=2, kv_heads=2)
        for s in (256, 4096)
    ),
)
