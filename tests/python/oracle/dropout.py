"""The device's dropout bits: Philox4x32-10, one 32-bit word per score, compared by its low bits.

Plain numpy, from the definition of the generator.
"""

import math

import numpy as np
import torch

_LOW_BITS = {torch.float64: 23, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
_MASK32 = np.uint64(0xFFFFFFFF)


def philox_words(seed: int, offset: int, count: int) -> np.ndarray:
    """The first `count` words of the stream with this key (seed) and high counter (offset)."""
    blocks = np.arange((count + 3) // 4, dtype=np.uint64)
    counter = [
        blocks & _MASK32,
        blocks >> np.uint64(32),
        np.full_like(blocks, offset & 0xFFFFFFFF),
        np.full_like(blocks, (offset >> 32) & 0xFFFFFFFF),
    ]
    key0, key1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        product0 = counter[0] * np.uint64(0xD2511F53)
        product1 = counter[2] * np.uint64(0xCD9E8D57)
        counter = [
            (product1 >> np.uint64(32)) ^ counter[1] ^ np.uint64(key0),
            product1 & _MASK32,
            (product0 >> np.uint64(32)) ^ counter[3] ^ np.uint64(key1),
            product0 & _MASK32,
        ]
        key0, key1 = (key0 + 0x9E3779B9) & 0xFFFFFFFF, (key1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(counter, axis=1).reshape(-1)[:count].astype(np.uint32)


def dropped_below(keep_prob: float, dtype: torch.dtype) -> int:
    """Words whose low bits are below this are dropped."""
    drop_prob = torch.tensor(1.0) - torch.tensor(keep_prob, dtype=torch.float32)
    if dtype != torch.float64:
        drop_prob = drop_prob.to(dtype)
    return math.ceil(drop_prob.double().item() * 2 ** _LOW_BITS[dtype])


def keep_mask(
    seed: int, offset: int, count: int, keep_prob: float, dtype: torch.dtype
) -> torch.Tensor:
    """Bool [count]: True where the element with this index is kept."""
    low = philox_words(seed, offset, count) & np.uint32(2 ** _LOW_BITS[dtype] - 1)
    return torch.from_numpy(low >= dropped_below(keep_prob, dtype))


def unpack(mask_bytes: torch.Tensor, count: int) -> torch.Tensor:
    """Bool [count] from a packed mask: bit k of byte k / 8 keeps element k."""
    bits = np.unpackbits(mask_bytes.reshape(-1).numpy(), bitorder="little")
    return torch.from_numpy(bits[:count].astype(bool))
