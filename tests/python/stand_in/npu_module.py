"""torch.npu.*: what programs ask the device, and what they are told."""

import importlib
import importlib.metadata
import re
import time

import pytest
import torch
import torch_npu


def test_one_module_has_all_its_names() -> None:
    import torch_npu.npu.amp as by_torch_npu
    from torch.npu.amp import GradScaler

    import fusion_attention.torch_npu.npu.amp as by_fusion_attention

    assert torch_npu.npu is torch.npu
    assert by_torch_npu is by_fusion_attention is torch.npu.amp
    assert GradScaler is torch.npu.amp.GradScaler
    assert importlib.import_module("torch_npu") is torch_npu
    assert torch_npu.__spec__.name == "fusion_attention.torch_npu"
    assert importlib.metadata.version("torch_npu") == torch_npu.__version__
    assert importlib.metadata.version("torch") == torch.__version__
    assert torch_npu.__version__.startswith(torch.__version__.partition("+")[0])
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("torch_npu.no_such_module")


def test_there_is_a_device_by_a_name_that_clients_know(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch.npu.is_available()
    assert torch.npu.device_count() == 1
    assert torch.npu.current_device() == 0
    assert torch.npu.get_device_name(0)[:10] == "Ascend910B"
    assert torch.npu.get_device_name("npu:0") == torch.npu.get_device_name()
    properties = torch.npu.get_device_properties(0)
    assert properties.name == torch.npu.get_device_name()
    assert properties.total_memory > 2**20
    monkeypatch.setenv("FUSION_ATTENTION_NPU_NAME", "Ascend910_9391")
    assert torch_npu.npu.get_device_name() == "Ascend910_9391"


def test_there_are_as_many_devices_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="FUSION_ATTENTION_NPU_COUNT=4 makes that many"):
        torch.npu.set_device(3)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert torch.npu.device_count() == 2
    monkeypatch.setenv("FUSION_ATTENTION_NPU_COUNT", "4")
    assert torch.npu.device_count() == 4
    torch.npu.set_device("npu:3")
    assert torch.npu.current_device() == 3
    with torch.npu.device(1):
        assert torch.npu.current_device() == 1
        with torch.npu.device_of(torch.ones(2)):
            assert torch.npu.current_device() == 1
    assert torch.npu.current_device() == 3
    torch.npu.set_device(torch.device("npu", 0))
    with pytest.raises(ValueError, match="expected a device of type npu, but got cuda:0"):
        torch.npu.set_device("cuda:0")


def test_seeds_are_the_cpus() -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    for seed in (torch.npu.manual_seed, torch.npu.manual_seed_all):
        seed(11)
        assert torch.npu.initial_seed() == 11
        assert torch.equal(torch.rand(3, device="npu"), expected)


def test_states_are_the_cpus() -> None:
    state = torch.npu.get_rng_state()
    first = torch.rand(3)
    torch.npu.set_rng_state(state)
    assert torch.equal(torch.rand(3), first)
    torch.npu.set_rng_state_all(torch.npu.get_rng_state_all())
    assert torch_npu.npu.default_generators == (torch.default_generator,)
    with torch.random.fork_rng(devices=[0], device_type="npu"):
        second = torch.rand(3)
    assert torch.equal(torch.rand(3), second)


def test_a_dropout_mask_follows_the_devices_seed() -> None:
    query = torch.randn(1, 2, 16, 8, device="npu")
    results = []
    for _ in range(2):
        torch.npu.manual_seed(42)
        results.append(
            torch_npu.npu_fusion_attention(query, query, query, 2, "BNSD", keep_prob=0.5)
        )
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][4:6] == (42, 0)


def test_events_measure_time() -> None:
    start, end = (torch.npu.Event(enable_timing=True) for _ in range(2))
    start.record()
    time.sleep(0.02)
    end.record()
    torch.npu.synchronize()
    end.synchronize()
    assert end.query()
    assert 20 <= start.elapsed_time(end) < 20_000
    with pytest.raises(RuntimeError, match="enable_timing=True"):
        start.elapsed_time(torch.npu.Event())
    with pytest.raises(RuntimeError, match="to have been recorded"):
        start.elapsed_time(torch.npu.Event(enable_timing=True))


def test_streams_are_entered_and_left() -> None:
    default = torch.npu.current_stream()
    assert default is torch.npu.default_stream()
    side = torch.npu.Stream()
    assert isinstance(side, torch.Stream)
    side.wait_stream(default)
    with torch.npu.stream(side):
        assert torch.npu.current_stream() is side
        with torch.npu.stream(None):
            assert torch.npu.current_stream() is side
        tensor = torch.ones(2, device="npu")
        tensor.record_stream(side)
    with side:
        assert torch.npu.current_stream() is side
    assert torch.npu.current_stream() is default
    event = side.record_event()
    default.wait_event(event)
    event.wait()
    side.synchronize()
    assert side.query()
    assert side.npu_stream == default.npu_stream == 0


def test_memory_is_the_process_s() -> None:
    torch.npu.empty_cache()
    torch.npu.reset_peak_memory_stats()
    before = torch.npu.memory_allocated()
    tensor = torch.ones(64 * 2**20, dtype=torch.uint8)
    assert torch.npu.memory_allocated() - before > 32 * 2**20
    assert torch.npu.max_memory_allocated() >= torch.npu.memory_allocated() - 2**20
    del tensor
    peak = torch.npu.max_memory_reserved()
    torch.npu.reset_max_memory_allocated()
    assert torch.npu.max_memory_allocated() < peak
    available, total = torch.npu.mem_get_info()
    assert 0 < available < total
    stats = torch.npu.memory_stats()
    assert stats["allocated_bytes.all.current"] > 0
    assert stats["reserved_bytes.all.peak"] >= stats["allocated_bytes.all.current"] - 2**20
    assert "MiB resident" in torch.npu.memory_summary()


def test_switches_are_remembered() -> None:
    torch.npu.config.allow_internal_format = True
    assert torch.npu.config.allow_internal_format is True
    torch.npu.set_compile_mode(jit_compile=True)
    assert not torch.npu.is_jit_compile_false()
    torch.npu.set_compile_mode(jit_compile=False)
    assert torch.npu.is_jit_compile_false()
    torch.npu.set_option({"ACL_OP_COMPILER_CACHE_MODE": "enable"})
    with pytest.raises(TypeError, match="expected option to be a dict"):
        torch.npu.set_option("enable")
    assert torch.npu.is_bf16_supported()


@pytest.mark.parametrize(
    ("where", "name", "close"),
    [
        (torch_npu, "npu_fusion_atention_v3", "npu_fusion_attention_v3"),
        (torch_npu.npu, "get_device_nam", "get_device_name"),
        (torch.ops.npu, "npu_ring_attention", "npu_ring_attention_update"),
    ],
    ids=["torch_npu", "torch_npu.npu", "torch.ops.npu"],
)
def test_what_is_not_there_is_said_with_what_is_close(where: object, name: str, close: str) -> None:
    assert not hasattr(where, name)
    assert close in dir(where)
    with pytest.raises(AttributeError) as raised:
        getattr(where, name)
    text = str(raised.value)
    assert f"has no '{name}' here" in text
    assert re.search(rf"Close to it: ([a-z_0-9]+, )*{close}[.,]", text)
    assert re.search(r"\. dir\(\S+\) and docs/porting.md say what it has\.$", text)
    assert len(text) < 400
    with pytest.raises(AttributeError) as raised:
        _ = where.no_such_thing  # type: ignore[attr-defined]
    assert "Close" not in str(raised.value)


@pytest.mark.parametrize(
    ("program", "absent", "modules"),
    [
        (
            "from torch_npu.optim import NpuFusedAdamW",
            "torch_npu has no 'optim'",
            "contrib, npu, profiler,",
        ),
        ("from torch_npu import optim", "torch_npu has no 'optim'", "contrib, npu, profiler,"),
        (
            "import torch_npu.utils.collect_env",
            "torch_npu has no 'utils'",
            "contrib, npu, profiler,",
        ),
        ("import torch_npu.contrib.module", "torch_npu.contrib has no 'module'", "transfer_to_npu"),
        ("import torch.npu.graphs", "torch_npu.npu has no 'graphs'", "amp, memory, random,"),
        ("import fusion_attention.torch_npu.testing.decorator", "torch_npu.testing has no", "comm"),
    ],
)
def test_a_module_that_is_not_there_is_said_so(program: str, absent: str, modules: str) -> None:
    with pytest.raises(ModuleNotFoundError) as raised:
        exec(program)
    assert f"{absent}" in str(raised.value)
    assert f"Its modules are {modules}" in str(raised.value)
    assert len(str(raised.value)) < 400


def test_the_other_modules_are_found_by_the_vendors_names() -> None:
    from torch_npu.npu import memory, random, streams, utils

    assert memory.memory_allocated is torch.npu.memory_allocated
    assert random.manual_seed is torch.npu.manual_seed
    assert streams.Stream is torch.npu.Stream
    assert utils.set_device is torch.npu.set_device
    assert not utils.npu_check_overflow(torch.ones(3))
    assert utils.npu_check_overflow(torch.tensor([1.0, float("inf")], device="npu"))
    assert utils.npu_check_overflow(float("nan"))
    for function in (torch.npu.get_npu_overflow_flag, torch.npu.clear_npu_overflow_flag):
        with pytest.raises(RuntimeError, match=r"Use torch_npu\.npu\.utils\.npu_check_overflow"):
            function()


def test_there_is_one_format() -> None:
    tensor = torch.ones(3, device="npu")
    assert torch_npu.npu_format_cast(tensor, torch_npu.Format.FRACTAL_NZ) is tensor
    assert torch_npu.npu_format_cast_(tensor, 29) is tensor
    assert torch_npu.get_npu_format(tensor) == torch_npu.Format.ND == 2
    with pytest.raises(ValueError, match="999"):
        torch_npu.npu_format_cast(tensor, 999)


def test_marks_are_dropped() -> None:
    torch.npu.mstx.mark("here")
    torch.npu.mstx.range_end(torch.npu.mstx.range_start("there", torch.npu.current_stream()))
    assert torch.npu.mstx.mstx_range("all of it")(abs)(-1) == 1


def test_the_capability_is_the_vendors() -> None:
    with pytest.warns(UserWarning, match="isn't implemented"):
        assert torch.npu.get_device_capability("npu:0") is None


def test_every_name_is_there() -> None:
    for name in torch.npu.__all__:
        assert getattr(torch.npu, name) is not None
    assert torch.npu.FloatTensor is torch.FloatTensor
    assert torch.npu.DoubleTensor is torch.DoubleTensor
