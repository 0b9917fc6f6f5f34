"""Calls on an Ascend NPU go to torch_npu, which is stood in for by a module that notes its calls.

A process has one name for PyTorch's spare device, so the tests run in processes of their own.
"""

import subprocess
import sys

PREPARE = """
import sys, types, torch
from torch._subclasses import FakeTensor, FakeTensorMode
from fusion_attention import npu_fusion_attention, npu_fusion_attention_grad

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
NO_VENDOR = """
sys.modules["torch_npu"] = None
try:
    npu_fusion_attention(query, query, query, 2, "BNSD")
except NotImplementedError as error:
    assert "query on npu:0. Install torch_npu" in str(error), error
else:
    raise AssertionError("no error")
"""


def run(program: str) -> None:
    """Runs the program in a fresh Python."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_calls_on_an_npu_go_to_the_vendor() -> None:
    run(PREPARE + CALLS)


def test_without_the_vendor_the_device_is_named() -> None:
    run(PREPARE + NO_VENDOR)
