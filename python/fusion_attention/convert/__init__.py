"""Converters between calls of the operator and of other attention functions, both ways.

`from_*` takes another function's arguments and returns a `Call` of this package; `to_*` takes a
`Call` and returns the other function's arguments. Both raise `ConversionError` where the meaning
could not be kept. docs/porting.md has the table of what corresponds.

>>> import torch
>>> q = torch.randn(2, 1024, 8, 64)
>>> call = from_flash_attn(q, q, q, causal=True, window_size=(255, 0))
>>> call.function, call.arguments["sparse_mode"], call.arguments["pre_tockens"]
('npu_fusion_attention', 4, 255)
>>> call.run()[0].shape
torch.Size([2, 1024, 8, 64])
"""

from fusion_attention._call import Call, bind
from fusion_attention._masks import Structure, causal_mask, prefix_mask, recognise
from fusion_attention.convert._refusal import ConversionError
from fusion_attention.convert.flash_attn import (
    from_flash_attn,
    from_flash_attn_varlen,
    to_flash_attn,
    to_flash_attn_varlen,
)
from fusion_attention.convert.flex import from_flex, to_flex
from fusion_attention.convert.sdpa import from_sdpa, to_sdpa
from fusion_attention.convert.varlen import from_varlen_attn, to_varlen_attn

__all__ = [
    "Call",
    "ConversionError",
    "Structure",
    "bind",
    "causal_mask",
    "from_flash_attn",
    "from_flash_attn_varlen",
    "from_flex",
    "from_sdpa",
    "from_varlen_attn",
    "prefix_mask",
    "recognise",
    "to_flash_attn",
    "to_flash_attn_varlen",
    "to_flex",
    "to_sdpa",
    "to_varlen_attn",
]
