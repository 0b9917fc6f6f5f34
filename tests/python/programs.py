"""Runs programs in a Python of their own, for tests of what changes a whole process."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

#: As a user's terminal has them: none of the package's own variables.
_CLEAN = {k: v for k, v in os.environ.items() if not k.startswith("FUSION_ATTENTION_")}


def start(
    *arguments: object, cwd: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python arguments...` with these environment variables and returns what came out."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=cwd,
        env=_CLEAN | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def command(*arguments: object, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `python -m fusion_attention arguments...`."""
    return start("-m", "fusion_attention", *arguments, **variables)


def check(program: str, **variables: str) -> None:
    """Runs a program and raises unless it ends well."""
    done = start("-c", textwrap.dedent(program), **variables)
    assert done.returncode == 0, done.stdout + done.stderr
