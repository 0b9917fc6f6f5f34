"""The layouts of the operator as views of [B, N, S, D]. Knows no case and no operator."""

from __future__ import annotations

from torch import Tensor

from fusion_attention.benchmark.cases import Layout

# The axes of the others from the outermost to the innermost, and the first of the two that are
# folded into one. TND is one batch entry after another, all of which come back as one entry.
_AXES: dict[Layout, tuple[str, int | None]] = {
    "BSND": ("BSND", None),
    "BSH": ("BSND", 2),
    "SBH": ("SBND", 2),
    "TND": ("BSND", 0),
}


def to_layout(x: Tensor, layout: Layout) -> Tensor:
    """[B, N, S, D] -> the layout, a view where that is possible.

    Example:
        >>> import torch
        >>> to_layout(torch.zeros(2, 4, 9, 16), "SBH").shape
        torch.Size([9, 2, 64])
    """
    if layout == "BNSD":
        return x  # without even a view: the clock runs
    axes, folded = _AXES[layout]
    x = x.permute(["BNSD".index(axis) for axis in axes])
    return x if folded is None else x.flatten(folded, folded + 1)


def from_layout(x: Tensor, layout: Layout, heads: int) -> Tensor:
    """The layout -> [B, N, S, D], always a view.

    Example:
        >>> import torch
        >>> from_layout(torch.zeros(9, 2, 64), "SBH", heads=4).shape
        torch.Size([2, 4, 9, 16])
    """
    if layout == "BNSD":
        return x  # without even a view: the clock runs
    axes, folded = _AXES[layout]
    if folded is not None:
        x = x.unflatten(folded, (heads if axes[folded] == "N" else 1, -1))
    return x.permute([axes.index(axis) for axis in "BNSD"])
