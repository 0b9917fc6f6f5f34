"""Tells where two tensors part: bit by bit, or within a tolerance, and in which heads and rows.

Knows layouts as far as a picture of heads and tokens needs them, and no files.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SHADES = " .:+#"  # no row of a column's tokens parts, up to a quarter, half, three quarters, more
_COLUMNS = 64
_MAX_HEADS = 16
# Marks of rows that see no key, such as FLT_MAX: they say nothing of how large elements are.
_HUGE = 1e30


@dataclass(frozen=True)
class Difference:
    """Two tensors of one shape that part.

    Attributes:
        first: The index of the first element that parts.
        ours: That element here.
        theirs: And there.
        count: How many elements part.
        total: How many there are.
        max_abs: The largest absolute difference of the elements that part; NaN against a number
            counts as infinite.
        max_rel: The largest one relative to the element there.
        picture: Which heads (lines) and tokens (columns) part; "" where there are no heads.
    """

    first: tuple[int, ...]
    ours: float
    theirs: float
    count: int
    total: int
    max_abs: float
    max_rel: float
    picture: str = ""

    def __str__(self) -> str:
        share = 100 * self.count / self.total
        text = (
            f"first at {list(self.first)}: {self.ours:.9g} here, {self.theirs:.9g} there; "
            f"{self.count} of {self.total} elements part ({share:.3g} %), by at most "
            f"{self.max_abs:.3g}, relative {self.max_rel:.3g}"
        )
        return f"{text}\n{self.picture}" if self.picture else text


def parting(ours: Tensor, theirs: Tensor, tolerance: float | None) -> Tensor:
    """Returns where two tensors of one shape part, as booleans.

    Without a tolerance, where any bit differs. With one, where the difference exceeds the tolerance
    times the sum of the element and of the root mean square of all of them; rounding is relative to
    what was summed up, which a single small element does not tell.
    """
    if tolerance is None:
        if ours.dtype == theirs.dtype:
            integers = _BITS[ours.element_size()]
            return ours.contiguous().view(integers) != theirs.contiguous().view(integers)
        return torch.ones_like(ours, dtype=torch.bool)
    a, b = ours.double(), theirs.double()
    usual = b[b.isfinite() & (b.abs() < _HUGE)]
    typical = math.sqrt(usual.square().mean().item()) if usual.numel() else 0.0
    near = b.isfinite() & ((a - b).abs() <= tolerance * (b.abs() + typical))
    return ~(near | (a == b) | (a.isnan() & b.isnan()))


def difference(ours: Tensor, theirs: Tensor, apart: Tensor, picture: str) -> Difference:
    """Describes two tensors that part where `apart` says, which is somewhere."""
    index = apart.flatten().to(torch.uint8).argmax()  # of equal ones, the first
    first = tuple(x.item() for x in torch.unravel_index(index, apart.shape))
    a, b = ours[apart].double(), theirs[apart].double()
    absolute = (a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    absolute = torch.where(a.isnan() & b.isnan(), 0.0, absolute)  # two NaNs of other bits
    relative = torch.where(absolute == 0, 0.0, absolute / b.abs())
    return Difference(
        first=first,
        ours=ours[first].item(),
        theirs=theirs[first].item(),
        count=int(apart.sum()),
        total=apart.numel(),
        max_abs=absolute.max().item(),
        max_rel=relative.nan_to_num(nan=math.inf, posinf=math.inf).max().item(),
        picture=picture,
    )


def picture_of(apart: Tensor, layout: str, heads: int) -> str:
    """Draws which heads and tokens part, a line for each head.

    Args:
        apart: Booleans in one of the operator's layouts.
        layout: Its name, or "BNS8" for row statistics.
        heads: How many heads it has.

    Example:
        >>> apart = torch.zeros(1, 2, 8, 4, dtype=torch.bool)
        >>> apart[0, 1, 6:] = True
        >>> print(picture_of(apart, "BNSD", 2))
          heads (lines) and tokens (columns) that part:
            0 |        |
            1 |      ##|
    """
    by_head = _heads_and_tokens(apart, layout, heads)
    columns = min(_COLUMNS, by_head.shape[1])
    if columns == 0:
        return ""
    lines = ["  heads (lines) and tokens (columns) that part:"]
    for head, tokens in enumerate(by_head[:_MAX_HEADS]):
        shares = [part.double().mean().item() for part in tokens.tensor_split(columns)]
        marks = "".join(_SHADES[math.ceil(share * (len(_SHADES) - 1))] for share in shares)
        lines.append(f"  {head:>3} |{marks}|")
    if by_head.shape[0] > _MAX_HEADS:
        lines.append(f"  and {by_head.shape[0] - _MAX_HEADS} heads more")
    return "\n".join(lines)


def _heads_and_tokens(apart: Tensor, layout: str, heads: int) -> Tensor:
    """Returns [heads, tokens of all batches]: where anything parts."""
    if layout in ("BSH", "SBH"):
        apart = apart.unflatten(2, (heads, -1))
    rows = apart.any(-1)
    axes = {"BNSD": (1, 0, 2), "BNS8": (1, 0, 2), "BSND": (2, 0, 1), "BSH": (2, 0, 1)}
    axes |= {"SBH": (2, 1, 0), "TND": (1, 0)}
    return rows.permute(axes[layout]).flatten(1)
