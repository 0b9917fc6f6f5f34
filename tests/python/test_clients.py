"""Runs the clients' code of tests/python/clients as their own test suites would run: unmodified.

The pytest plugin makes `import torch_npu` work in that process alone.
"""

import subprocess
import sys
from pathlib import Path


def test_clients_code_runs_unmodified() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "fusion_attention.pytest_plugin"]
    options = ["-p", "no:cacheprovider", "--color=no"]
    clients = Path(__file__).parent / "clients"
    done = subprocess.run([*command, *options, clients], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
