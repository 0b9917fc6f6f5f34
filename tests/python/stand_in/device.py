"""Tensors on "npu": they are made, moved, trained and saved as programs for the device do it."""

import copy
import io
import threading
from collections.abc import Callable

import pytest
import torch
import torch_npu
from torch import Tensor

MAKERS: dict[str, Callable[[str], Tensor]] = {
    "zeros": lambda device: torch.zeros(3, device=device),
    "ones": lambda device: torch.ones(2, 3, dtype=torch.float16, device=device),
    "empty": lambda device: torch.empty(3, device=device).fill_(1),
    "empty_strided": lambda device: torch.empty_strided((2, 3), (1, 2), device=device).fill_(1),
    "full": lambda device: torch.full((2,), 7, device=device),
    "tensor": lambda device: torch.tensor([[1.0, 2.0]], device=device),
    "as_tensor": lambda device: torch.as_tensor([1, 2], device=device),
    "asarray": lambda device: torch.asarray([1, 2], device=device),
    "arange": lambda device: torch.arange(5, device=device),
    "linspace": lambda device: torch.linspace(0, 1, 5, device=device),
    "eye": lambda device: torch.eye(3, device=device),
    "tril_indices": lambda device: torch.tril_indices(3, 3, device=device),
    "triu_indices": lambda device: torch.triu_indices(3, 3, 1, device=device),
    "triu": lambda device: torch.triu(torch.ones(4, 4, device=device, dtype=torch.bool), 1),
    "scalar_tensor": lambda device: torch.scalar_tensor(3, device=device),
    "hann_window": lambda device: torch.hann_window(4, device=device),
    "fftfreq": lambda device: torch.fft.fftfreq(4, device=device),
    "zeros_like": lambda device: torch.zeros_like(torch.ones(3), device=device),
    "new_ones": lambda device: torch.ones(3).new_ones(2, device=device),
    "new_tensor": lambda device: torch.ones(3).new_tensor([2.0], device=device),
    "sparse": lambda device: torch.eye(3).to_sparse().to(device).to_dense(),
}
RANDOM_MAKERS: dict[str, Callable[[str], Tensor]] = {
    "rand": lambda device: torch.rand(3, device=device),
    "randn": lambda device: torch.randn(3, device=device),
    "randint": lambda device: torch.randint(0, 9, (3,), device=device),
    "randperm": lambda device: torch.randperm(9, device=device),
    "normal": lambda device: torch.normal(0.0, 1.0, (3,), device=device),
    "rand_like": lambda device: torch.rand_like(torch.ones(3), device=device),
    "generator": lambda device: torch.randn(
        3, device=device, generator=torch.Generator(device=device).manual_seed(5)
    ),
}


@pytest.mark.parametrize("device", ["npu", "npu:0"])
@pytest.mark.parametrize("name", [*MAKERS, *RANDOM_MAKERS])
def test_what_is_made_there_is_what_is_made_on_the_cpu(name: str, device: str) -> None:
    make = (MAKERS | RANDOM_MAKERS)[name]
    torch.manual_seed(1)
    made = make(device)
    torch.manual_seed(1)
    expected = make("cpu")
    assert made.device == torch.device("cpu")
    assert not made.is_npu
    assert made.dtype == expected.dtype
    assert made.stride() == expected.stride()
    assert torch.equal(made, expected)


def test_the_device_of_a_block_and_the_default_device() -> None:
    with torch.device("npu"):
        for made in (torch.ones(2), torch.empty(2), torch.zeros(2), torch.tensor([1.0])):
            assert made.npu() is made
        module = torch.nn.Linear(2, 2)
    weight = module.weight
    assert module.npu().weight is weight
    assert weight.data.npu().data_ptr() == weight.data_ptr()
    torch.set_default_device("npu:0")
    made = torch.ones(2)
    assert made.npu() is made
    torch.set_default_device("cpu")
    assert made.npu() is made
    assert made.cpu() is not made
    torch.set_default_device(None)
    assert made.npu() is made


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.npu(),
        lambda x: x.npu(0),
        lambda x: x.npu(non_blocking=True),
        lambda x: x.to("npu"),
        lambda x: x.to("npu:0"),
        lambda x: x.to(0),
        lambda x: x.to(torch.device("npu")),
        lambda x: x.to(device="npu:0", non_blocking=True),
    ],
)
def test_moving_copies_once(move: Callable[[Tensor], Tensor]) -> None:
    host = torch.ones(3)
    there = move(host)
    assert there.data_ptr() != host.data_ptr()
    there.add_(1)
    assert host.tolist() == [1, 1, 1]
    assert move(there) is there
    assert move(there[1:]).data_ptr() == there[1:].data_ptr()
    assert move(there.detach()).data_ptr() == there.data_ptr()
    assert move(torch.nn.Parameter(there)).is_leaf


@pytest.mark.parametrize("back", [lambda x: x.cpu(), lambda x: x.to("cpu")])
def test_coming_back_copies(back: Callable[[Tensor], Tensor]) -> None:
    there = torch.ones(3, device="npu")
    host = back(there)
    there.zero_()
    assert host.tolist() == [1, 1, 1]
    result = there + 1  # what the CPU computed
    host = back(result)
    result.zero_()
    assert host.tolist() == [1, 1, 1]


def test_going_where_another_tensor_is_copies_nothing() -> None:
    there = torch.randn(3, device="npu", requires_grad=True)
    assert there.to(there.device) is there
    assert there.to((there * 2).device, torch.float32) is there


def test_moving_casts() -> None:
    host = torch.ones(3)
    assert host.to("npu", torch.float16).dtype == torch.float16
    assert host.npu().to("npu", torch.bfloat16).dtype == torch.bfloat16
    assert host.npu().to(device="npu", dtype=torch.float64).dtype == torch.float64
    assert host.to(torch.float64).dtype == torch.float64
    assert host.to(torch.zeros(1, dtype=torch.float16)).dtype == torch.float16


def test_gradients_flow_back_to_the_host() -> None:
    host = torch.randn(3, requires_grad=True)
    there = host.npu()
    assert not there.is_leaf
    (there * 2).cpu().sum().backward()
    assert host.grad is not None
    assert host.grad.tolist() == [2, 2, 2]
    leaf = torch.randn(3).npu().requires_grad_()
    leaf.npu().sum().backward()
    assert leaf.grad is not None


def test_a_module_keeps_its_parameters_and_its_optimizer_sees_them_move() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    module[0].extra = module[0].weight  # a tied one
    parameters = list(module.parameters())
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    host = parameters[0].data
    for moved in (module.npu(), module.to("npu"), module.to("npu:0"), module.half().float().npu()):
        assert all(a is b for a, b in zip(moved.parameters(), parameters, strict=True))
    assert module[0].extra is module[0].weight
    assert parameters[0].data_ptr() != host.data_ptr()
    before = parameters[0].cpu()
    module(torch.randn(8, 4).npu()).square().mean().backward()
    optimizer.step()
    assert not torch.equal(parameters[0].cpu(), before)
    assert torch.equal(before, host.half().float())
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()


@pytest.mark.parametrize("location", ["npu", "npu:0", torch.device("npu"), {"cpu": "npu:0"}])
@pytest.mark.parametrize("weights_only", [True, False])
def test_saving_and_loading(location: object, weights_only: bool) -> None:
    module = torch.nn.Linear(3, 2).npu()
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    state = torch.load(file, map_location=location, weights_only=weights_only)
    assert torch.equal(state["weight"], module.weight)
    assert state["weight"].npu() is state["weight"]
    torch.nn.Linear(3, 2, device="npu").load_state_dict(state)


def test_bare_memory() -> None:
    made = torch.UntypedStorage(8, device="npu")
    assert made.nbytes() == 8
    assert made.device.type == "cpu"
    assert torch.UntypedStorage(8).nbytes() == 8
    assert torch.ones(2).untyped_storage().npu().nbytes() == 8


def test_a_module_on_meta_is_made_there() -> None:
    module = torch.nn.Linear(3, 2, device="meta").to_empty(device="npu")
    assert module.weight.device.type == "cpu"
    assert module.weight.data.npu().data_ptr() == module.weight.data_ptr()


def test_generators_are_the_cpus() -> None:
    generator = torch.Generator(device="npu:0").manual_seed(3)
    assert isinstance(generator, torch.Generator)
    assert isinstance(torch.default_generator, torch.Generator)
    assert not isinstance(3, torch.Generator)
    assert generator.device.type == "cpu"
    assert torch.Generator().device.type == "cpu"
    expected = torch.randn(3, generator=torch.Generator().manual_seed(3))
    assert torch.equal(torch.randn(3, generator=generator, device="npu"), expected)


def test_pinned_memory_is_memory() -> None:
    data = torch.utils.data.TensorDataset(torch.arange(6.0))
    loader = torch.utils.data.DataLoader(data, batch_size=2, pin_memory=True)
    batches = [batch.npu(non_blocking=True) for (batch,) in loader]
    assert torch.cat(batches).tolist() == list(range(6))
    for made in (
        torch.empty(3, pin_memory=True),
        torch.empty(3, pin_memory=True, device="npu"),
        torch.empty_like(torch.ones(3), device="cpu", pin_memory=True),
        torch.zeros(3, pin_memory=True),
        torch.ones(3, pin_memory=True),
        torch.full((3,), 1, pin_memory=True),
        torch.rand(3, pin_memory=True),
        torch.randn(3, pin_memory=True, device="npu"),
        torch.tensor([1, 2, 3], pin_memory=True),
    ):
        assert made.shape == (3,)
    pinned = torch.ones(3).pin_memory()
    assert not pinned.is_pinned()


def test_scripts_may_make_tensors() -> None:
    def made(x: Tensor) -> Tensor:
        return x + torch.zeros(3) + torch.full([3], 2.0) + torch.empty_like(x).fill_(1).to("cpu")

    assert torch.jit.script(made)(torch.ones(3)).tolist() == [4, 4, 4]


def test_derivatives_forward_and_of_second_order() -> None:
    # PyTorch scripts the formulas of some operators when the first derivative is asked for.
    def loss(x: Tensor) -> Tensor:
        return torch.log_softmax(x**3, -1).square().sum()

    x = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64, device="npu")
    gradient = torch.func.grad(loss)(x)
    value, directional = torch.func.jvp(loss, (x,), (torch.ones_like(x),))
    assert torch.allclose(value, loss(x))
    assert torch.allclose(directional, gradient.sum())
    hessian = torch.func.hessian(loss)(x)
    assert torch.allclose(hessian, hessian.T)
    with torch.autograd.forward_ad.dual_level():
        dual = loss(torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
        assert torch.allclose(torch.autograd.forward_ad.unpack_dual(dual).tangent, directional)
    assert torch.autograd.gradcheck(loss, (x.requires_grad_(),), check_forward_ad=True)


def test_data_parallel_is_its_module() -> None:
    for module in (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2).npu()):
        for parallel in (
            torch.nn.DataParallel(module),
            torch.nn.DataParallel(module, device_ids=[0]),
        ):
            assert torch.equal(parallel.npu()(torch.ones(1, 2)), module(torch.ones(1, 2)))


def test_autocast_is_the_cpus() -> None:
    a, b = torch.randn(4, 4, device="npu"), torch.randn(4, 4, device="npu")
    with torch.autocast("npu"):
        assert (a @ b).dtype == torch.float16
    with torch.autocast(device_type="npu", dtype=torch.bfloat16):
        assert (a @ b).dtype == torch.bfloat16
        with torch.autocast("npu", enabled=False):
            assert (a @ b).dtype == torch.float32
    with torch.npu.amp.autocast(dtype=torch.bfloat16):
        query = torch.randn(1, 2, 8, 16, device="npu")
        assert torch_npu.npu_fusion_attention(query, query, query, 2, "BNSD")[0].dtype == (
            torch.bfloat16
        )

    @torch.npu.amp.custom_fwd(cast_inputs=torch.float32)
    def product_of(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    with torch.npu.amp.autocast():
        assert product_of(a.half(), b.half()).dtype == torch.float32

    @torch.npu.amp.autocast()
    def product() -> Tensor:
        return a @ b

    assert product().dtype == torch.float16


@pytest.mark.parametrize("make", [torch.npu.amp.GradScaler, lambda: torch.amp.GradScaler("npu")])
def test_scaled_losses_train_as_unscaled_ones(make: Callable[[], torch.amp.GradScaler]) -> None:
    torch.manual_seed(2)
    plain = torch.nn.Linear(4, 4).npu()
    scaled = copy.deepcopy(plain)
    inputs = torch.randn(3, 4).npu()
    plain(inputs).sum().backward()
    torch.optim.SGD(plain.parameters(), 0.5).step()
    optimizer, scaler = torch.optim.SGD(scaled.parameters(), 0.5), make()
    scaler.scale(scaled(inputs).sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 65536
    assert torch.equal(plain.weight, scaled.weight)


def test_a_scaler_skips_a_step_with_an_infinite_gradient() -> None:
    for dynamic, expected in ((True, 8.0), (False, 16.0)):
        weight = torch.ones(2, device="npu", requires_grad=True)
        optimizer = torch.optim.SGD([weight], 1.0)
        scaler = torch.npu.amp.GradScaler(init_scale=16.0, dynamic=dynamic)
        scaler.scale((weight * float("inf")).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        assert weight.tolist() == [1, 1]
        assert scaler.get_scale() == expected


def test_checkpointing_repeats_the_dropout_mask() -> None:
    query = torch.randn(1, 2, 16, 8, device="npu", requires_grad=True)

    def attend(query: Tensor) -> Tensor:
        return torch_npu.npu_fusion_attention(query, query, query, 2, "BNSD", keep_prob=0.5)[0]

    gradients = []
    for recompute in (False, True):
        torch.npu.manual_seed(7)
        out = (
            torch.utils.checkpoint.checkpoint(attend, query, use_reentrant=False)
            if recompute
            else attend(query)
        )
        gradients += torch.autograd.grad(out.sum(), query)
    assert torch.equal(*gradients)


def test_other_threads_have_the_device_too() -> None:
    made: list[Tensor] = []
    thread = threading.Thread(target=lambda: made.append(torch.ones(3).npu() + 1))
    thread.start()
    thread.join()
    assert made[0].tolist() == [2, 2, 2]


def test_dispatch_modes_do_not_lose_the_device() -> None:
    class Mode(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(
            self, func: object, types: object, args: tuple = (), kwargs: dict | None = None
        ) -> object:
            return func(*args, **(kwargs or {}))  # type: ignore[operator]

    with Mode(), Mode():
        assert torch.zeros(3, device="npu").tolist() == [0, 0, 0]
        assert torch.tensor([1.0], device="npu").tolist() == [1]


def test_compiled_code_may_use_the_device() -> None:
    def step(x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.npu()
        y.add_(1)
        z = x.to("npu", torch.float32).mul_(2) + torch.arange(4.0, device="npu")
        query = torch.ones(1, 1, 4, 8, device="npu:0") * z.to("npu")[:, None]
        out = torch_npu.npu_fusion_attention(query, query, query, 1, "BNSD")[0]
        return out + y[:, None] + torch.zeros(8) + torch.empty_like(out).zero_(), z

    x = torch.ones(4)
    expected = step(x)
    got = torch.compile(step, fullgraph=True)(x)
    assert x.tolist() == [1, 1, 1, 1]
    for result, wanted in zip(got, expected, strict=True):
        assert torch.allclose(result, wanted)
