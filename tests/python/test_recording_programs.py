"""Where and how much is recorded: limits, folders, threads, processes, whole programs."""

import contextlib
import multiprocessing
import os
import pathlib
import subprocess
import sys
import threading

import pytest
import torch
from programs import command

from fusion_attention import npu_fusion_attention, record, replay
from fusion_attention._errors import FeatureError


def test_the_limit_ends_recording(tmp_path: pathlib.Path) -> None:
    query = torch.randn(1, 1, 4, 4)
    with record(tmp_path, limit=2):
        for _ in range(5):
            npu_fusion_attention(query, query, query, 1, "BNSD")
    assert len(list(tmp_path.iterdir())) == 2


def _attend_in_child(folder: str) -> None:
    query = torch.randn(1, 1, 4, 4)
    with record(folder):
        npu_fusion_attention(query, query, query, 1, "BNSD")


def test_threads_and_processes_share_a_folder(tmp_path: pathlib.Path) -> None:
    query = torch.randn(1, 1, 4, 4).requires_grad_()

    def attend() -> None:
        for _ in range(5):
            npu_fusion_attention(query, query, query, 1, "BNSD")[0].sum().backward()

    with record(tmp_path):
        threads = [threading.Thread(target=attend) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        child = multiprocessing.get_context("fork").Process(
            target=_attend_in_child, args=(str(tmp_path),)
        )
        child.start()
        child.join()
    assert child.exitcode == 0
    # The child inherited the parent's recorder and has one of its own.
    assert len(list(tmp_path.iterdir())) == 22
    assert replay(tmp_path).same


def test_a_whole_program_is_recorded_by_the_environment(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import os, torch\n"
        "from fusion_attention import npu_fusion_attention\n"
        "os.chdir('/')\n"
        "query = torch.randn(1, 2, 9, 4, requires_grad=True)\n"
        "for _ in range(3):\n"
        "    npu_fusion_attention(query, query, query, 2, 'BNSD')[0].sum().backward()\n"
    )
    environment = {**os.environ, "FUSION_ATTENTION_RECORD": "saved", "RANK": "3"}
    environment["FUSION_ATTENTION_RECORD_LIMIT"] = "2"
    subprocess.run([sys.executable, str(program)], check=True, env=environment, cwd=tmp_path)
    found = list((tmp_path / "saved").iterdir())
    assert len(found) == 2
    assert all(x.name.startswith("rank3-pid") for x in found)
    assert replay(tmp_path / "saved").same


def test_senseless_settings_are_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(FeatureError, match="tensors must be one of all, statistics, none"):
        record(tmp_path, tensors="some").__enter__()
    with pytest.raises(FeatureError, match="limit must be a number"):
        record(tmp_path, limit=-1).__enter__()
    completed = command("info", FUSION_ATTENTION_RECORD="x", FUSION_ATTENTION_RECORD_LIMIT="many")
    assert "FUSION_ATTENTION_RECORD_LIMIT to be a number of calls" in completed.stderr
    assert completed.returncode == 1


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: pathlib.Path) -> None:
    (tmp_path / "taken").write_text("a file")
    query = torch.randn(1, 1, 4, 4)
    with record(tmp_path / "taken"), pytest.raises(FeatureError, match="cannot record into"):
        npu_fusion_attention(query, query, query, 1, "BNSD")


def test_recorders_can_be_nested(tmp_path: pathlib.Path) -> None:
    query = torch.randn(1, 1, 4, 4)
    with contextlib.ExitStack() as stack:
        for name in ("a", "b"):
            stack.enter_context(record(tmp_path / name))
        npu_fusion_attention(query, query, query, 1, "BNSD")
    assert replay(tmp_path / "a", against=tmp_path / "b").same
