"""Memory of a long sequence: inputs, results and so much per thread, nothing of size Sq x Skv.

65,536 x 65,536 scores would be 16 GiB. And many calls hold no more than one: nothing leaks. Each
measurement has a process of its own, because the peak of a process never sinks.
"""

import json
import pathlib
import subprocess
import sys

import pytest
from programs import check

MIB = 2**20
THREADS = 2
HEAD_DIM = 64


def _status_bytes(field: str) -> int:
    """A memory figure of this process as Linux reports it."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measure(length: int, dtype_name: str) -> dict[str, int]:
    """Runs forward and backward of one causal head and returns how far memory rose, in bytes."""
    import torch
    from calls import run
    from case_tensors import compressed_mask

    torch.set_num_threads(THREADS)
    dtype = getattr(torch, dtype_name)

    def attend(tokens: int) -> list[torch.Tensor]:
        query, key, value, dy = (torch.randn(1, 1, tokens, HEAD_DIM).to(dtype) for _ in range(4))
        call = {"query": query, "key": key, "value": value, "head_num": 1, "input_layout": "BNSD"}
        call |= {"scale": 0.125, "sparse_mode": 3, "atten_mask": compressed_mask(3)}
        results = run(call, dy)
        return [query, key, value, dy, *filter(torch.is_tensor, results.values())]

    attend(2048)  # loads what is loaded once: code, threads, the allocator's arenas
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = _status_bytes("VmRSS")
    tensors = attend(length)
    growth = _status_bytes("VmHWM") - before
    held = sum(tensor.untyped_storage().nbytes() for tensor in tensors)
    assert all(tensor.isfinite().all() for tensor in tensors)
    return {"growth": growth, "held": held}


@pytest.mark.parametrize(
    ("length", "dtype_name"), [(65536, "float32"), (32768, "bfloat16"), (32768, "float16")]
)
def test_forward_and_backward_need_no_square(length: int, dtype_name: str) -> None:
    completed = subprocess.run(
        [sys.executable, __file__, str(length), dtype_name],
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    measured = json.loads(completed.stdout)
    private_dq = length * HEAD_DIM * 4
    allowed = measured["held"] + 16 * MIB * THREADS + private_dq
    assert measured["growth"] <= allowed, {k: v / MIB for k, v in measured.items()}
    # The figure is real: it holds at least what the call had to return.
    assert measured["growth"] >= measured["held"] // 2


@pytest.mark.parametrize(
    "step",
    [
        'npu_fusion_attention(query, query, query, 2, "BNSD", keep_prob=0.5)[0].sum().backward()',
        'npu_fusion_attention_v3(packed, packed, packed, 2, "TND", softmax_layout="TND", '
        "actual_seq_qlen=ends, actual_seq_kvlen=ends)",
        'refused(query, query, query, 3, "BNSD")',
    ],
    ids=["forward and backward", "lengths", "refused"],
)
def test_many_calls_hold_no_more_than_one(step: str) -> None:
    # A text of the call that is never freed costs 48 bytes: 188 KiB in 4000 calls.
    check(
        f"""
        import gc, pathlib, torch
        from fusion_attention import npu_fusion_attention, npu_fusion_attention_v3

        torch.set_num_threads(1)
        query = torch.randn(1, 2, 8, 16, requires_grad=True)
        packed, ends = query.detach()[0].transpose(0, 1), torch.tensor([3, 8])

        def refused(*arguments):
            try:
                npu_fusion_attention(*arguments)
            except RuntimeError:
                return
            raise AssertionError("not refused")

        def resident():
            query.grad = None
            gc.collect()
            return int(pathlib.Path("/proc/self/statm").read_text().split()[1])  # pages

        growths = []
        for _ in range(3):  # the first rounds fill the allocator's pools
            before = resident()
            for _ in range(4000):
                {step}
            growths.append(resident() - before)
        assert min(growths) < 32, growths  # of the usual 4 KiB
        """
    )


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), sys.argv[2])))
