"""The compressed masks, and which structured mode a dense mask is.

Recognition is proof, not a guess: the mode's own predicate is written out and compared with the
mask, element by element. Knows masks alone: no layouts, no calls.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusion_attention._arguments import UNLIMITED

_MOST_PREFIXES = 32  # the operator's own limit


@functools.cache
def causal_mask() -> Tensor:
    """Returns the compressed mask of modes 2, 3, 4, 7 and 8: one for all, do not write to it.

    Example:
        >>> causal_mask().shape, causal_mask()[0, :3].tolist()
        (torch.Size([2048, 2048]), [False, True, True])
    """
    with torch.inference_mode(False):  # a tensor made inside it could not be saved for a gradient
        return torch.ones(2048, 2048, dtype=torch.bool).triu(1)


@functools.cache
def prefix_mask() -> Tensor:
    """Returns the compressed mask of mode 6: one for all, do not write to it.

    Example:
        >>> prefix_mask().shape, prefix_mask()[2048, 1022:1026].tolist()
        (torch.Size([3072, 2048]), [False, False, True, True])
    """
    with torch.inference_mode(False):
        rectangle = torch.arange(2048).expand(1024, 2048) >= 1024
        return torch.cat([causal_mask(), rectangle])


@dataclass(frozen=True)
class Structure:
    """A mask that the operator can compute by itself; mode 0 stands for a mask that hides nothing.

    `pre_tockens` and `next_tockens` belong to mode 4, `prefix` to mode 6 (one number a batch).
    """

    sparse_mode: int
    pre_tockens: int = UNLIMITED
    next_tockens: int = UNLIMITED
    prefix: tuple[int, ...] | None = None

    def arguments(self) -> dict[str, Any]:
        """Returns the keyword arguments of npu_fusion_attention that ask for this mask.

        Example:
            >>> sorted(Structure(4, 2, 0).arguments())
            ['atten_mask', 'next_tockens', 'pre_tockens', 'sparse_mode']
        """
        if self.sparse_mode == 0:
            return {}
        mask = prefix_mask() if self.sparse_mode == 6 else causal_mask()
        found: dict[str, Any] = {"atten_mask": mask, "sparse_mode": self.sparse_mode}
        if self.sparse_mode == 4:
            found |= {"pre_tockens": self.pre_tockens, "next_tockens": self.next_tockens}
        if self.prefix is not None:
            found["prefix"] = list(self.prefix)
        return found


def recognise(masked: Tensor) -> Structure | None:
    """Returns the structured mode that masks exactly the same pairs, None if there is none.

    Args:
        masked: bool or uint8, True or non-zero where a key is hidden, as `atten_mask`: [Sq, Skv],
            or [B or 1, N or 1, Sq, Skv].

    Example:
        >>> masked = torch.ones(4, 6, dtype=torch.bool).triu(3)
        >>> recognise(masked)
        Structure(sparse_mode=3, pre_tockens=2147483647, next_tockens=2147483647, prefix=None)
        >>> recognise(torch.rand(64, 64) < 0.5) is None
        True
    """
    if masked.dim() == 2:
        masked = masked[None, None]
    masked = distinct(masked)
    if masked.numel() == 0:
        return None
    kept = masked == 0
    if not torch.equal(kept, kept[:, :1].expand_as(kept)):
        return None  # no mode tells heads apart
    kept = kept[:, 0]
    if torch.equal(kept, kept[:1].expand_as(kept)):
        if kept.all():
            return Structure(0)
        band = fit_band([kept[0]])
        if band is not None:
            return _of_band(*band, kept.shape[2] - kept.shape[1])
    return _prefixes(kept)


def distinct(masked: Tensor) -> Tensor:
    """Returns a mask of 4 dimensions without the copies that expand() made along batch and heads.

    Example:
        >>> distinct(torch.zeros(1, 1, 4, 6).expand(8, 2, 4, 6)).shape
        torch.Size([1, 1, 4, 6])
    """
    if masked.stride(0) == 0:
        masked = masked[:1]
    return masked[:, :1] if masked.stride(1) == 0 else masked


def fit_band(blocks: Sequence[Tensor]) -> tuple[int, int] | None:
    """Returns the (pre_tockens, next_tockens) with which mode 4 keeps exactly these pairs.

    Args:
        blocks: bool matrices [Sq, Skv] of any sizes, True where a pair is kept; one band, counted
            from each one's bottom right, must be right for all.

    Example:
        >>> band = torch.ones(5, 5, dtype=torch.bool).tril().triu(-2)
        >>> fit_band([band, band[:2, :2]])
        (2, 0)
    """
    bounds = [_bounds(kept) for kept in blocks]
    pre = next((low for low, _ in bounds if low is not None), UNLIMITED)
    following = next((high for _, high in bounds if high is not None), UNLIMITED)
    for kept in blocks:
        q_len, kv_len = kept.shape
        distance = torch.arange(kv_len) - torch.arange(q_len)[:, None] - (kv_len - q_len)
        if not torch.equal(kept, (-pre <= distance) & (distance <= following)):
            return None
    return pre, following


def _bounds(kept: Tensor) -> tuple[int | None, int | None]:
    if kept.shape[1] == 0:
        return None, None
    seeing = kept.any(1)
    bits = kept.to(torch.uint8)
    end = kept.shape[1] - bits.flip(1).argmax(1)
    return bounds(bits.argmax(1), torch.where(seeing, end, 0), kept.shape[1])


def bounds(begin: Tensor, end: Tensor, kv_len: int) -> tuple[int | None, int | None]:
    """Returns the (pre_tockens, next_tockens) that rows show; None for a side that none shows.

    Whether a band with these bounds is what the rows see is another question.

    Args:
        begin: The first key that each row sees.
        end: The key after the last one that it sees; at most `begin` for a row that sees none.
        kv_len: Skv.

    Example:
        >>> bounds(torch.tensor([0, 0, 1]), torch.tensor([1, 2, 3]), 3)
        (1, 0)
    """
    q_len = len(begin)
    seeing = (begin < end).nonzero().flatten()
    if seeing.numel() == 0:
        return None, None
    first, last = begin[seeing], end[seeing] - 1
    place = seeing + kv_len - q_len  # the key of the row's own place, from the bottom right
    cut_left, cut_right = first > 0, last < kv_len - 1
    # A side that no row shows is told by the rows that see nothing: the band has left the matrix.
    pre = following = None
    if cut_left.any():
        pre = (place - first)[cut_left][0].item()
    elif seeing[-1] < q_len - 1:
        pre = place[-1].item() + 1 - kv_len
    if cut_right.any():
        following = (last - place)[cut_right][0].item()
    elif seeing[0] > 0:
        following = -place[0].item()
    return pre, following


def _of_band(pre: int, following: int, delta: int) -> Structure:
    if pre == UNLIMITED and following == -delta:
        return Structure(2)
    if pre == UNLIMITED and following == 0:
        return Structure(3)
    return Structure(4, pre, following)


def _prefixes(kept: Tensor) -> Structure | None:
    """Recognises mode 6 in [B, Sq, Skv]: what the first row sees besides mode 3 is the prefix."""
    batch, q_len, kv_len = kept.shape
    if batch > _MOST_PREFIXES:
        return None
    delta = kv_len - q_len
    key = torch.arange(kv_len)
    causal = key <= torch.arange(q_len)[:, None] + delta
    prefix = [n if n > max(delta + 1, 0) else max(delta, 0) for n in kept[:, 0].sum(1).tolist()]
    expected = causal | (key < torch.tensor(prefix)[:, None, None])
    return Structure(6, prefix=tuple(prefix)) if torch.equal(kept, expected) else None
