"""Calls on an Ascend NPU go to torch_npu, which is stood in for by a module that notes its calls.

A process has one name for PyTorch's spare device, so the tests run in processes of their own.
"""

import subprocess
import sys

PREPARE = """
import sys, types, torch
from torch._subclasses import FakeTensor, FakeTensorMode
from fusion_attention import *
from fusion_attention import _npu_dropout_gen_mask

torch.utils.rename_privateuse1_backend("npu")
mode = FakeTensorMode(allow_non_fake_inputs=True)
query = FakeTensor(mode, torch.empty(1, 2, 3, 8, device="meta"), torch.device("npu", 0))
"""
CALLS = """
noted = []
vendor = types.ModuleType("torch_npu")
vendor.npu_fusion_attention = lambda **given: noted.append(given) or "forward"
vendor.npu_fusion_attention_grad = lambda **given: noted.append(given) or "gradient"
sys.modules["torch_npu"] = vendor

assert npu_fusion_attention(query, query, query, 2, "BNSD", scale=0.5) == "forward"
assert noted[-1]["query"] is query and noted[-1]["scale"] == 0.5 and noted[-1]["sync"] is False
assert len(noted[-1]) == 19
npu_fusion_attention(query, query, query, 2, "BNSD", sink=query, seed=3)
assert noted[-1]["sink"] is query and noted[-1]["seed"] == 3 and len(noted[-1]) == 21

given = npu_fusion_attention_grad(query, query, query, query, 2, "BNSD", attention_in=query)
assert given == "gradient"
assert noted[-1]["attention_in"] is query and noted[-1]["seed"] == 0 and "sink" not in noted[-1]
"""
FAMILY = """
noted = []
vendor = types.ModuleType("torch_npu")
vendor.__getattr__ = lambda name: lambda *given, **named: noted.append((name, given, named)) or name
sys.modules["torch_npu"] = vendor
three = query, query, query

def check(result, name, count, **named):
    assert result == noted[-1][0] == name, noted[-1]
    assert len(noted[-1][2]) == count, noted[-1][2].keys()
    for key, value in named.items():
        assert noted[-1][2][key] is value, key

check(npu_fusion_attention_v2(*three, 2, "BNSD", pse_type=2, pse=query),
      "npu_fusion_attention_v2", 22, pse=query, pse_type=2)
check(npu_fusion_attention_v2(*three, 2, "BNSD", query_rope=query, seed=3, softmax_layout="TND"),
      "npu_fusion_attention_v2", 25, query_rope=query, seed=3)
check(npu_fusion_attention_grad_v2(*three, query, 2, "BNSD", softmax_max=query, pre_tokens=5),
      "npu_fusion_attention_grad_v2", 30, dy=query, pre_tokens=5)
check(npu_fusion_attention_v3(*three, 2, "BNSD"), "npu_fusion_attention_v3", 19)
check(npu_fusion_attention_v3(*three, 2, "BNSD", sink=query), "npu_fusion_attention_v3", 20)
check(npu_fusion_attention_grad_v3(*three, query, 2, "BNSD", seed=query, sink=query),
      "npu_fusion_attention_grad_v3", 27, seed=query, sink=query)
check(npu_ring_attention_update(*three, *three, input_layout="TND"),
      "npu_ring_attention_update", 9, cur_softmax_sum=query, input_layout="TND")
check(_npu_dropout_gen_mask(query, [2, 3], 0.5, 1, 4), "_npu_dropout_gen_mask", 5, seed=1)
assert noted[-1][1] == (query, [2, 3])
"""
NO_VENDOR = """
sys.modules["torch_npu"] = None
for call in (
    lambda: npu_fusion_attention(query, query, query, 2, "BNSD"),
    lambda: npu_fusion_attention_v3(query, query, query, 2, "BNSD"),
    lambda: _npu_dropout_gen_mask(query, [2], 0.5, 1, 4),
):
    try:
        call()
    except NotImplementedError as error:
        assert "one on npu:0. Install torch_npu" in str(error), error
    else:
        raise AssertionError("no error")
"""


def run(program: str) -> None:
    """Runs the program in a fresh Python."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_calls_on_an_npu_go_to_the_vendor() -> None:
    run(PREPARE + CALLS)


def test_the_family_goes_to_the_vendor_too() -> None:
    run(PREPARE + FAMILY)


def test_without_the_vendor_the_device_is_named() -> None:
    run(PREPARE + NO_VENDOR)
