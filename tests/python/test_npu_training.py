"""The training script for the device runs unmodified, learns, and repeats bit by bit."""

import ast
import re
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SCRIPT = EXAMPLES / "npu_training.py"
SMALL = ["--batch", "4", "--length", "64", "--width", "32"]


def run(*command: str | Path, steps: int) -> list[float]:
    """The losses that the script prints."""
    program = [sys.executable, "-m", "fusion_attention", "run", *command]
    options = [*SMALL, "--steps", str(steps)]
    done = subprocess.run([*program, *options], capture_output=True, text=True, cwd=EXAMPLES)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "training on Ascend910B" in done.stdout
    return [float(loss) for loss in re.findall(r"^step .* loss (\S+)$", done.stdout, re.M)]


def test_the_script_is_written_for_the_device_alone() -> None:
    tree = ast.parse(SCRIPT.read_text())
    imported = [x.names[0].name for x in ast.walk(tree) if isinstance(x, ast.Import)]
    imported += [x.module for x in ast.walk(tree) if isinstance(x, ast.ImportFrom)]
    assert "torch_npu" in imported
    assert not [name for name in imported if name.startswith("fusion_attention")]


def test_it_learns_and_every_run_is_the_same() -> None:
    losses = run(SCRIPT, steps=60)
    assert len(losses) == 7
    assert max(losses[-3:]) < losses[0] - 2
    as_a_module = run("-m", "npu_training", steps=10)
    assert as_a_module == losses[:2]


def test_in_bfloat16_from_another_seed() -> None:
    losses = run(SCRIPT, "--bf16", "--seed", "2", steps=20)
    assert losses[-1] < losses[0] - 1
