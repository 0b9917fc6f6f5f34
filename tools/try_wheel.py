"""Calls the installed package once, forward and backward, and compares with torch's own attention.

Then tries the command line. Run by scripts/test in an environment that holds nothing but the wheel,
torch and numpy: none of the optional packages.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import torch

import fusion_attention

PROGRAM = """
import torch
import torch_npu

query = torch.randn(1, 4, 9, 16).npu().requires_grad_()
torch_npu.npu_fusion_attention(query, query, query, 4, "BNSD")[0].sum().backward()
print(query.grad.shape)
"""


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m fusion_attention` with these arguments."""
    return subprocess.run(
        [sys.executable, "-I", "-m", "fusion_attention", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def try_the_command_line() -> None:
    """Fails with an AssertionError unless commands work, or name the package that they miss."""
    Path("program.py").write_text(PROGRAM, encoding="utf-8")
    done = command("run", "program.py")
    assert "torch.Size([1, 4, 9, 16])" in done.stdout, done.stderr
    call = ("explain", "--query", "1,4,9,16", "--layout", "BNSD", "--heads", "4")
    done = command(*call)
    assert done.returncode == 0, done.stderr
    assert "9 x 9" in done.stdout, done.stdout
    done = command(*call, "--picture", "mask.png")
    assert done.returncode == 1
    assert "pip install matplotlib" in done.stderr
    assert "Traceback" not in done.stderr


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
    try_the_command_line()
    print(f"the wheel works: fusion_attention {version('fusion_attention')} from {home.parent}")


if __name__ == "__main__":
    main()
