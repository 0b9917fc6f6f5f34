"""Recording changes nothing, and what it saved gives the same bits again, wherever it runs."""

import itertools
import json
import pathlib
import re
import threading
import weakref
from typing import Any

import pytest
import torch
from calls import assert_same_bits, forward
from case_tensors import case, compressed_mask
from programs import command
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fusion_attention
from fusion_attention import (
    _npu_dropout_gen_mask,
    _random,
    load_call,
    npu_fusion_attention,
    npu_fusion_attention_grad,
    npu_fusion_attention_grad_v2,
    npu_fusion_attention_v2,
    npu_fusion_attention_v3,
    npu_ring_attention_update,
    record,
    replay,
)
from fusion_attention.recording.saved import RESULTS

DIFFERENTIABLE = ("query", "key", "value", "pse", "sink", "query_rope", "key_rope")
CAUSAL = compressed_mask(3)


def folders(root: pathlib.Path) -> list[pathlib.Path]:
    """The folders of the recorded calls, in order."""
    return sorted(root.iterdir())


def random_call(seed: int) -> dict[str, Any]:
    """A legal call of the first function or the second, forward and backward, and its dy."""
    drawn = case(seed)
    call = {n: x.clone() if n == "sink" else x for n, x in drawn.call.items()}
    for name in DIFFERENTIABLE:
        if isinstance(call.get(name), Tensor):
            call[name] = call[name].detach().requires_grad_()
    return call | {"dy": drawn.dy}


def make(call: dict[str, Any]) -> dict[str, Tensor]:
    """Output and gradients."""
    arguments = {n: x for n, x in call.items() if n != "dy"}
    out = forward(arguments)[0]
    leaves = {n: arguments[n] for n in DIFFERENTIABLE if isinstance(arguments.get(n), Tensor)}
    gradients = torch.autograd.grad(out, list(leaves.values()), call["dy"])
    return {"out": out.detach()} | {f"d{n}": x for n, x in zip(leaves, gradients, strict=True)}


def other_calls() -> None:
    """A call of everything that random_call does not make."""
    generator = torch.Generator().manual_seed(5)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    torch.manual_seed(0)  # the seed that a call cannot be given, so replay has to bring it back
    query, key, value = (randn(20, 2, 16).requires_grad_() for _ in range(3))
    ends = torch.tensor([7, 20])
    packed = {"actual_seq_qlen": ends, "actual_seq_kvlen": ends}
    packed |= {"atten_mask": CAUSAL, "sparse_mode": 3, "keep_prob": 0.8}
    npu_fusion_attention_v3(query, key, value, 2, "TND", **packed)[0].sum().backward()
    # One tensor thrice, a slice of a packed projection, and no layout that is contiguous.
    projected = randn(2, 9, 3, 2, 8).requires_grad_()
    pieces = projected.unbind(2)
    out = npu_fusion_attention(*pieces, 2, "BSND", keep_prob=0.7)[0]
    (out * randn(*out.shape)).sum().backward()
    slopes = torch.tensor([0.5, 0.25]).requires_grad_()
    ropes = [randn(12, 2, 4).requires_grad_() for _ in range(2)]
    query, key, value = (randn(12, 2, 8).requires_grad_() for _ in range(3))
    settings = {"actual_seq_qlen": (5, 12), "actual_seq_kvlen": [5, 12]}
    settings |= {"atten_mask": CAUSAL, "sparse_mode": 3}
    biased = {"pse": slopes, "pse_type": 2, **settings}
    npu_fusion_attention_v2(query, key, value, 2, "TND", **biased)[0].sum().backward()
    settings |= {"query_rope": ropes[0], "key_rope": ropes[1]}
    results = npu_fusion_attention_v2(query, key, value, 2, "TND", **settings)
    results[0].sum().backward()
    out, row_max, row_sum, *_ = (x.detach() if isinstance(x, Tensor) else x for x in results)
    statistics = {"softmax_max": row_max, "softmax_sum": row_sum, "attention_in": out}
    npu_fusion_attention_grad_v2(
        *(query, key, value, randn(*out.shape), 2, "TND"), **settings, **statistics
    )
    _npu_dropout_gen_mask(query, [1, 2, 12, 12], 0.25, 7, 8)
    query = randn(6, 1, 8)
    halves = [npu_fusion_attention(query, x, x, 2, "SBH")[:3] for x in randn(2, 5, 1, 8)]
    npu_ring_attention_update(*halves[0], *halves[1])


def test_varied_calls_replay_in_another_process_with_another_number_of_threads(
    tmp_path: pathlib.Path,
) -> None:
    with record(tmp_path):
        for seed in range(20):
            make(random_call(seed))
        other_calls()
    recorded = [json.loads((x / "call.json").read_text()) for x in folders(tmp_path)]
    assert {x["function"] for x in recorded} == set(RESULTS) - {
        *("npu_fusion_attention_grad", "npu_fusion_attention_grad_v3"),
    }
    layouts = {str(x["arguments"].get("input_layout")).upper() for x in recorded}
    assert layouts >= {"BSH", "SBH", "BSND", "BNSD", "TND"}
    assert {x["arguments"]["query"]["tensor"]["dtype"] for x in recorded[:20]} >= {
        *("float16", "bfloat16", "float32"),
    }
    for threads in ("1", "3"):
        completed = command("replay", str(tmp_path), "--threads", threads)
        assert completed.returncode == 0, completed.stdout + completed.stderr
        assert completed.stdout.splitlines()[-1] == f"{len(recorded)} calls: all the same"
        assert completed.stdout.count("backward 1: dq,") == 24


@pytest.mark.parametrize("kept", ["all", "statistics", "none"])
def test_recording_changes_no_result_and_no_random_number(
    kept: str, tmp_path: pathlib.Path
) -> None:
    def run() -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(3)
        query, key, value = (torch.randn(1, 2, 40, 8).requires_grad_() for _ in range(3))
        dropped = npu_fusion_attention(query, key, value, 2, "BNSD", keep_prob=0.5)[0]
        (dropped * 2).sum().backward(retain_graph=True)
        first = query.grad.clone()
        dropped.sum().backward()
        results = {"out": dropped.detach(), "first": first, "both": query.grad, "dv": value.grad}
        return results, torch.get_rng_state()

    plain, plain_state = run()
    with record(tmp_path, tensors=kept):
        seen, seen_state = run()
    assert_same_bits(seen, plain)
    assert torch.equal(seen_state, plain_state)
    (folder,) = folders(tmp_path)
    names = {x.name for x in folder.iterdir()}
    expected = {"call.json", "backward-1.json", "backward-2.json"}
    if kept == "all":
        expected |= {f"{x}.safetensors" for x in ("inputs", "results", "backward-1", "backward-2")}
    assert names == expected


def test_both_passes_through_a_retained_graph_replay(tmp_path: pathlib.Path) -> None:
    query = torch.randn(1, 2, 30, 8).requires_grad_()
    with record(tmp_path):
        out = npu_fusion_attention(query, query, query, 2, "BNSD")[0]
    # Backward passes are saved even when they come after the block.
    torch.autograd.grad(out, query, torch.ones_like(out), retain_graph=True)
    torch.autograd.grad(out, query, torch.randn_like(out))
    report = replay(tmp_path)
    assert report.same
    names = {x.name for x in report.calls[0].comparisons}
    assert {"backward 1: dq", "backward 2: dv"} <= names


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_is_recorded_as_the_calls_that_it_finishes(
    reentrant: bool, tmp_path: pathlib.Path
) -> None:
    query = torch.randn(1, 2, 30, 8).requires_grad_()

    def attend(x: Tensor) -> Tensor:
        return npu_fusion_attention(x, x, x, 2, "BNSD", keep_prob=0.5)[0]

    def gradient() -> Tensor:
        torch.manual_seed(1)
        checkpoint(attend, query, use_reentrant=reentrant).sum().backward()
        found, query.grad = query.grad, None
        return found

    plain = gradient()
    with record(tmp_path):
        assert_same_bits({"dq": gradient()}, {"dq": plain})
    # Without reentrance the second call is left as soon as it has saved what the graph needs.
    assert len(folders(tmp_path)) == (2 if reentrant else 1)
    report = replay(tmp_path)
    assert report.same
    assert sum("backward 1: dq" in str(x) for x in report.calls) == 1


def test_nothing_is_kept_alive(tmp_path: pathlib.Path) -> None:
    query = torch.randn(1, 1, 8, 8).requires_grad_()
    key = query * 2  # no leaf: leaves are kept by the node that collects their gradient
    watched = [weakref.ref(key)]
    with record(tmp_path):
        out = npu_fusion_attention(query, key, key, 1, "BNSD")[0]
        del key
        assert watched[0]() is not None  # the graph needs it
        dy = torch.randn_like(out)
        watched += [weakref.ref(dy), weakref.ref(out)]
        out.backward(dy)  # frees what the graph saved
        node = out.grad_fn
        del dy, out
        assert [x() for x in watched] == [None] * 3
        assert node is not None


def test_strides_and_offsets_come_back(tmp_path: pathlib.Path) -> None:
    storage = torch.randn(4000)
    query = storage[3:].as_strided((1, 2, 10, 8), (0, 100, 9, 1))
    key = torch.randn(1, 8, 10, 2).permute(0, 3, 2, 1)
    mask = torch.rand(1, 1, 10, 10).lt(0.3).expand(1, 2, 10, 10)
    call = {"query": query, "key": key, "value": key, "atten_mask": mask}
    with record(tmp_path):
        npu_fusion_attention(**call, head_num=2, input_layout="BNSD")
    loaded = load_call(folders(tmp_path)[0])
    assert loaded.function == "npu_fusion_attention"
    for name, tensor in call.items():
        restored = loaded.arguments[name]
        assert restored.stride() == tensor.stride(), name
        assert restored.storage_offset() == tensor.storage_offset(), name
        assert torch.equal(restored, tensor), name
    assert loaded.arguments["scale"] == 1.0
    assert replay(tmp_path).same


def test_an_expanded_mask_costs_one_mask(tmp_path: pathlib.Path) -> None:
    query = torch.randn(64, 4, 16, 2)
    mask = torch.zeros(1, 1, 16, 16, dtype=torch.bool).expand(64, 4, 16, 16)
    with record(tmp_path):
        npu_fusion_attention(query, query, query, 4, "BNSD", atten_mask=mask)
    size = (folders(tmp_path)[0] / "inputs.safetensors").stat().st_size
    assert size < 3 * query.nbytes + 16 * 16 + 1024
    assert replay(tmp_path).same


def test_autocast_is_made_again(tmp_path: pathlib.Path) -> None:
    query = torch.randn(1, 2, 30, 8).requires_grad_()
    with record(tmp_path), torch.autocast("cpu", dtype=torch.bfloat16):
        out = npu_fusion_attention(query, query, query, 2, "BNSD")[0]
        out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert replay(tmp_path).same


def test_a_hand_called_gradient_is_a_call_of_its_own(tmp_path: pathlib.Path) -> None:
    query = torch.randn(1, 2, 30, 8)
    with record(tmp_path):
        out, row_max, row_sum, *_ = npu_fusion_attention(query, query, query, 2, "BNSD")
        npu_fusion_attention_grad(
            *(query, query, query, torch.ones_like(out), 2, "BNSD"),
            softmax_max=row_max,
            softmax_sum=row_sum,
            attention_in=out,
        )
    report = replay(tmp_path)
    assert report.same
    names = [x.name for x in report.calls[1].comparisons]
    assert names == ["dq", "dk", "dv", "dpse", "dsink"]


def test_numbers_that_were_given_as_tensors_replay(tmp_path: pathlib.Path) -> None:
    query = torch.randn(1, 2, 30, 8)
    with record(tmp_path):
        npu_fusion_attention(
            *(query, query, query, torch.tensor(2), "BNSD"),
            scale=torch.tensor(0.5),
            keep_prob=torch.tensor(0.75),
        )
    assert replay(tmp_path).same


def test_a_replay_leaves_other_threads_their_random_numbers() -> None:
    query = torch.randn(1, 2, 30, 8)
    drawn: list[tuple[int, int]] = []

    def draw() -> None:
        drawn.append(npu_fusion_attention(query, query, query, 2, "BNSD", keep_prob=0.5)[4:6])

    with _random.pinned(5, 8):
        draw()
        other = threading.Thread(target=draw)
        other.start()
        other.join()
    draw()
    assert drawn[0] == (5, 8)
    assert (5, 8) not in drawn[1:]


def test_a_refused_call_leaves_nothing(tmp_path: pathlib.Path) -> None:
    query = torch.randn(1, 2, 30, 8)
    with record(tmp_path), pytest.raises(RuntimeError, match="head_num"):
        npu_fusion_attention(query, query, query, 3, "BNSD")
    assert list(tmp_path.iterdir()) == []


def test_a_compiled_call_is_not_seen_and_stays_right(tmp_path: pathlib.Path) -> None:
    query = torch.randn(1, 2, 30, 8)

    def attend(x: Tensor) -> Tensor:
        return npu_fusion_attention(x, x, x, 2, "BNSD")[0]

    torch.compiler.reset()
    with record(tmp_path):
        compiled = torch.compile(attend, backend="eager", fullgraph=True)(query)
    assert list(tmp_path.iterdir()) == []
    assert_same_bits({"out": compiled}, {"out": attend(query)})


def test_tensors_without_elements_are_left_out_with_a_warning(tmp_path: pathlib.Path) -> None:
    query = torch.empty(1, 2, 30, 8, device="meta")
    with record(tmp_path), pytest.warns(UserWarning, match="is not recorded"):
        npu_fusion_attention(query, query, query, 2, "BNSD")
    real = torch.randn(1, 2, 30, 8)

    def total(x: Tensor) -> Tensor:
        return npu_fusion_attention(x, x, x, 2, "BNSD")[0].sum()

    with record(tmp_path), pytest.warns(UserWarning, match="is not recorded"):
        torch.func.grad(total)(real)
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_backward_passes_is_left_out_with_a_warning(tmp_path: pathlib.Path) -> None:
    query = torch.randn(1, 2, 30, 8, requires_grad=True)
    dy = torch.randn(3, 1, 2, 30, 8)
    with record(tmp_path):
        out = npu_fusion_attention(query, query, query, 2, "BNSD")[0]
        with pytest.warns(UserWarning, match="a backward pass .* is not recorded"):
            (batched,) = torch.autograd.grad(
                out, query, dy, is_grads_batched=True, retain_graph=True
            )
        single = [torch.autograd.grad(out, query, one, retain_graph=True)[0] for one in dy]
    assert torch.equal(batched, torch.stack(single))
    (call,) = replay(tmp_path).calls
    assert call.same
    assert {x.name.partition(":")[0] for x in call.comparisons} >= {"backward 1", "backward 3"}
    assert not any(x.name.startswith("backward 4") for x in call.comparisons)


def test_lengths_that_can_be_read_once_are_read_once(tmp_path: pathlib.Path) -> None:
    query = torch.randn(8, 2, 16)
    expected = npu_fusion_attention(
        *(query, query, query, 2, "TND"), actual_seq_qlen=[3, 8], actual_seq_kvlen=[3, 8]
    )
    with record(tmp_path):
        out = npu_fusion_attention(
            *(query, query, query, 2, "TND"),
            actual_seq_qlen=itertools.accumulate([3, 5]),
            actual_seq_kvlen=(end for end in (3, 8)),
        )
    assert torch.equal(out[0], expected[0])
    assert replay(tmp_path).same


def test_every_observed_function_can_be_recorded() -> None:
    package = pathlib.Path(fusion_attention.__file__).parent
    observed = set()
    for file in package.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        observed.update(re.findall(r"return _observers\.show\((\w+), locals\(\)\)", text))
    assert observed == set(RESULTS)
    assert all(callable(getattr(fusion_attention, name)) for name in RESULTS)
