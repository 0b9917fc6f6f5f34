"""Calls the installed package once, forward and backward, and compares with torch's own attention.

Run by scripts/test in an environment that holds nothing but the wheel, torch and numpy.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import torch

import fusion_attention


def main() -> None:
    """Fails with an AssertionError if the wheel does not work on its own."""
    home = Path(fusion_attention.__file__).resolve()
    assert "site-packages" in home.parts, f"imported from {home}, not from the wheel"

    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 4, 33, 16, requires_grad=True) for _ in range(3))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)
    out = fusion_attention.npu_fusion_attention(query, key, value, 4, "BNSD", scale=0.25)[0]
    torch.testing.assert_close(out, expected)

    dy = torch.randn_like(out)
    ours = torch.autograd.grad(out, (query, key, value), dy)
    theirs = torch.autograd.grad(expected, (query, key, value), dy)
    for gradient, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(gradient, reference)
    print(f"the wheel works: fusion_attention {version('fusion_attention')} from {home.parent}")


if __name__ == "__main__":
    main()
