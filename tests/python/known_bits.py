"""The first 128 keep bits of some dropout masks at keep_prob 0.9, as hexadecimal digits of bytes.

(seed, offset, dtype) -> bits, least significant first; the definition in the oracle gives the same.
"""

import torch

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
KNOWN = {
    (2, 0, torch.float16): "ffefffffffdfffbbffdbfdffffffbfff",
    (2, 0, torch.bfloat16): "7f7fbf9dddfeeb7bffff67ffffffffff",
    (2, 0, torch.float32): "fffbfb7fffffff93edff79eefefcffff",
    (2, 12, torch.float16): "ffffefffffffff3ef7feffeffffeff7b",
    (2, 12, torch.bfloat16): "dfffffd7fdef9fbf5fbe7ffffffff67f",
    (2, 12, torch.float32): "ff7ddef7fefdffffffbbffffefffeff7",
    (0x123456789, 0, torch.float16): "ffe7ff7ffdfffecffbdfefbfffffffbf",
    (0x123456789, 0, torch.bfloat16): "ffefffeffb7dffffffffbffdfffffddf",
    (0x123456789, 0, torch.float32): "fffdffffdebafeffefefdffffffff3fb",
}
