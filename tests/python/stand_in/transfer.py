"""torch_npu.contrib.transfer_to_npu: programs for CUDA run, and their words mean the device."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch_npu
from torch import Tensor
from torch_npu.contrib import transfer_to_npu


def test_importing_it_is_enough() -> None:
    import torch_npu.contrib.transfer_to_npu as again

    assert again is transfer_to_npu
    assert torch.cuda.is_available()
    assert torch.cuda.get_device_name()[:10] == "Ascend910B"
    assert torch.cuda.device_count() == 1
    assert torch.cuda.memory_allocated() > 0


@pytest.mark.parametrize("device", [0, "cuda", "cuda:0", torch.device("cuda", 0), "npu:0"])
def test_devices_are_asked_for_by_the_name_of_cuda(device: object) -> None:
    torch.cuda.set_device(device)
    torch.cuda.synchronize(device)
    assert torch.cuda.get_device_name(device) == torch.npu.get_device_name()
    assert torch.cuda.get_device_properties(device).name == torch.npu.get_device_name()
    with torch.cuda.device(device):
        assert torch.cuda.current_device() == 0
    with pytest.warns(UserWarning, match="isn't implemented"):
        assert torch.cuda.get_device_capability(device) is None
    with pytest.raises(RuntimeError, match="FUSION_ATTENTION_NPU_COUNT=2"):
        torch.cuda.set_device("cuda:1")


def test_types_of_tensors() -> None:
    assert torch.cuda.FloatTensor(2).shape == (2,)
    assert torch.cuda.HalfTensor([1, 2]).dtype == torch.float16
    host = torch.ones(2)
    there = host.type("torch.cuda.HalfTensor")
    assert there.dtype == torch.float16
    assert there.cuda() is there
    assert host.type("torch.cuda.FloatTensor") is not host
    assert host.type() == "torch.FloatTensor"


def test_marks_are_dropped() -> None:
    nvtx = torch.cuda.nvtx
    nvtx.mark("here")
    nvtx.range_push("outer")
    nvtx.range_pop()
    nvtx.range_end(nvtx.range_start("across"))
    with nvtx.range("inner {}", 3):
        assert torch.cuda.current_stream().cuda_stream == 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(3, device="cuda"),
        lambda: torch.ones(3, device=torch.device("cuda", 0)),
        lambda: torch.ones(3, device=0),
        lambda: torch.zeros(3, device="cuda").add_(1),
        lambda: torch.empty(3, device="cuda").fill_(1),
        lambda: torch.tensor([1.0, 1.0, 1.0], device="cuda:0"),
        lambda: torch.ones(3).cuda(),
        lambda: torch.ones(3).cuda(non_blocking=True),
        lambda: torch.ones(3).to("cuda"),
        lambda: torch.ones(3).to(device="cuda:0", dtype=torch.float32),
        lambda: torch.ones(2).new_ones(3, device="cuda"),
        lambda: torch.nn.LayerNorm(3).cuda().weight.data,
        lambda: torch.nn.LayerNorm(3).to("cuda").weight.data,
        lambda: torch.nn.LayerNorm(3, device="cuda").weight.data,
    ],
)
def test_what_is_made_on_cuda_is_made_on_the_device(make: Callable[[], Tensor]) -> None:
    made = make()
    assert made.tolist() == [1, 1, 1]
    assert made.cuda() is made


def test_scripts_may_make_tensors() -> None:
    def made(x: Tensor) -> Tensor:
        return x + torch.zeros(3) + torch.arange(3) + torch.full([3], 2.0)

    assert torch.jit.script(made)(torch.ones(3)).tolist() == [3, 4, 5]


def test_derivatives_of_second_order() -> None:
    x = torch.tensor([0.5, 1.0, 2.0], device="cuda")
    hessian = torch.func.hessian(lambda x: torch.log_softmax(x, -1).square().sum())(x)
    assert torch.allclose(hessian, hessian.T, atol=1e-6)


def test_blocks_and_defaults() -> None:
    with torch.device("cuda"):
        made = torch.ones(3)
    assert made.cuda() is made
    torch.set_default_device("cuda")
    made = torch.ones(3)
    torch.set_default_device(None)
    assert made.cuda() is made


@pytest.mark.parametrize("location", ["cuda", "cuda:0", {"cuda:0": "cpu"}])
def test_loading(location: object) -> None:
    file = io.BytesIO()
    torch.save({"x": torch.ones(3)}, file)
    file.seek(0)
    assert torch.load(file, map_location=location)["x"].tolist() == [1, 1, 1]


def test_seeds_and_generators() -> None:
    torch.cuda.manual_seed_all(3)
    expected = torch.rand(3)
    torch.cuda.manual_seed(3)
    assert torch.equal(torch.rand(3, device="cuda"), expected)
    generator = torch.Generator(device="cuda").manual_seed(3)
    assert torch.equal(torch.rand(3, device="cuda", generator=generator), expected)
    torch.cuda.set_rng_state(torch.cuda.get_rng_state())


def test_mixed_precision_trains() -> None:
    module = torch.nn.Linear(4, 4).cuda()
    start = copy.deepcopy(module.weight.data)
    optimizer = torch.optim.AdamW(module.parameters())
    for context, scaler in (
        (torch.autocast("cuda", dtype=torch.bfloat16), torch.amp.GradScaler("cuda")),
        (torch.cuda.amp.autocast(dtype=torch.bfloat16), torch.cuda.amp.GradScaler()),
    ):
        with context:
            out = module(torch.randn(2, 4, device="cuda"))
        assert out.dtype == torch.bfloat16
        scaler.scale(out.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert not torch.equal(module.weight, start)


def test_streams_and_events() -> None:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    with torch.cuda.stream(torch.cuda.Stream()) as _:
        torch.ones(3).cuda().record_stream(torch.cuda.current_stream())
    end.record()
    torch.cuda.synchronize()
    assert start.elapsed_time(end) >= 0


@pytest.mark.parametrize("names", [None, ["CPU", "CUDA"], ["CUDA"]])
def test_profiles_are_the_cpus(names: list[str] | None, capfd: pytest.CaptureFixture[str]) -> None:
    activities = names and [getattr(torch.profiler.ProfilerActivity, name) for name in names]
    with torch.profiler.profile(activities=activities) as profile:
        torch.ones(3, device="cuda").sum()
    assert "aten::sum" in [average.key for average in profile.key_averages()]
    assert "CUDA" not in capfd.readouterr().err


def test_compiled_code_may_say_cuda() -> None:
    def step(x: Tensor) -> Tensor:
        y = x.cuda() + torch.zeros(3, device="cuda") + x.to("cuda:0")
        return y + x.new_ones(3, device="cuda")

    compiled = torch.compile(step, fullgraph=True)
    assert compiled(torch.ones(3)).tolist() == [3, 3, 3]


def test_processes_that_ask_for_nccl_get_gloo(tmp_path: object) -> None:
    distributed = torch.distributed
    distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/1", rank=0, world_size=1)
    try:
        assert distributed.get_backend() == "hccl"
        tensor = torch.ones(2).cuda()
        distributed.all_reduce(tensor)
        assert tensor.tolist() == [1, 1]
        mesh = distributed.device_mesh.init_device_mesh("cuda", (1,))
        assert mesh.device_type == "cpu"
        module = torch.nn.parallel.DistributedDataParallel(
            torch.nn.Linear(3, 2).cuda(), device_ids=[0], output_device=0
        )
        module(torch.ones(2, 3).cuda()).sum().backward()
        assert module.module.weight.grad is not None
    finally:
        distributed.destroy_process_group()


def test_attention_runs() -> None:
    query = torch.randn(1, 2, 8, 16, device="cuda")
    expected = torch.nn.functional.scaled_dot_product_attention(query, query, query)
    got = torch_npu.npu_fusion_attention(query, query, query, 2, "BNSD", scale=0.25)[0]
    assert torch.allclose(got, expected, atol=1e-5)
