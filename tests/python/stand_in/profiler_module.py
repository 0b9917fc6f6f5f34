"""torch_npu.profiler: programs that profile themselves get PyTorch's traces."""

import json
from pathlib import Path

import pytest
import torch
import torch_npu


@pytest.mark.parametrize("activity", ["CPU", "NPU"])
def test_steps_are_traced(activity: str, tmp_path: Path) -> None:
    profiler = torch_npu.profiler
    with profiler.profile(
        activities=[getattr(profiler.ProfilerActivity, activity)],
        schedule=profiler.schedule(wait=1, warmup=1, active=2, repeat=1),
        on_trace_ready=profiler.tensorboard_trace_handler(str(tmp_path / "traces"), "worker"),
        record_shapes=True,
        profile_memory=True,
        with_stack=False,
        experimental_config=profiler._ExperimentalConfig(
            profiler_level=profiler.ProfilerLevel.Level1,
            aic_metrics=profiler.AiCMetrics.PipeUtilization,
            export_type=profiler.ExportType.Text,
        ),
    ) as profile:
        for _ in range(5):
            query = torch.randn(1, 2, 8, 16, device="npu")
            torch_npu.npu_fusion_attention(query, query, query, 2, "BNSD")
            profile.step()
    (trace,) = (tmp_path / "traces").glob("worker.*.json")
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    assert names.count("aten::randn") == 2
    assert names.count("fusion_attention::forward_plain_BNSD") == 2


def test_a_profile_without_steps_is_read_in_the_program(tmp_path: Path) -> None:
    from torch_npu.profiler import profile, schedule

    with profile(with_stack=True) as recorded:
        torch.ones(3, device="npu").sum()
    assert "aten::sum" in [average.key for average in recorded.key_averages()]
    recorded.export_chrome_trace(str(tmp_path / "trace.json"))
    assert (tmp_path / "trace.json").stat().st_size > 0
    assert [schedule(1, 1, warmup=1)(step).name for step in range(3)] == [
        "NONE",
        "WARMUP",
        "RECORD_AND_SAVE",
    ]


def test_what_only_the_device_can_be_asked_is_said_so() -> None:
    with pytest.raises(AttributeError, match=r"torch_npu\.profiler has no 'HostSystem' here"):
        _ = torch_npu.profiler.HostSystem
