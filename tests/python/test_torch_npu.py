"""The module that stands in for torch_npu, in processes of its own: it changes all of PyTorch.

The tests themselves are the files of the folder stand_in.
"""

from pathlib import Path

import pytest
from programs import check, start

FILES = sorted((Path(__file__).parent / "stand_in").glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_stand_in(file: Path) -> None:
    plugins = ("-p", "fusion_attention.pytest_plugin", "-p", "no:cacheprovider")
    done = start("-m", "pytest", "-q", *plugins, file, cwd=file.parent)
    assert done.returncode == 0, done.stdout[-6000:]


def test_importing_the_package_alone_changes_nothing() -> None:
    check(
        """
        import sys, torch
        names = ("to", "cpu", "pin_memory")
        before = [getattr(torch.Tensor, name) for name in names]
        before += [torch.Generator, torch.compile, torch.autocast.__init__, sys.meta_path[:]]
        import fusion_attention, importlib.util
        after = [getattr(torch.Tensor, name) for name in names]
        after += [torch.Generator, torch.compile, torch.autocast.__init__, sys.meta_path[:]]
        assert before == after
        assert not hasattr(torch, "npu") and not hasattr(torch.Tensor, "npu")
        assert importlib.util.find_spec("torch_npu") is None
        assert "fusion_attention.torch_npu" not in sys.modules
        """
    )


def test_a_process_with_another_spare_device_is_told_so() -> None:
    check(
        """
        import torch
        torch.utils.rename_privateuse1_backend("other")
        try:
            import fusion_attention.torch_npu
        except RuntimeError as error:
            assert "spare device is called 'other'" in str(error), error
        else:
            raise AssertionError("no error")
        """
    )


def test_an_old_pytorch_is_told_so() -> None:
    check(
        """
        from torch.utils import backend_registration
        del backend_registration._setup_privateuseone_for_python_backend
        try:
            import fusion_attention.torch_npu
        except RuntimeError as error:
            assert "Use a newer PyTorch" in str(error), error
        else:
            raise AssertionError("no error")
        """
    )


VENDOR = """
import importlib.machinery, sys, types, torch
from torch._subclasses import FakeTensor, FakeTensorMode

# A vendor's package: its operators have kernels for its device alone.
torch.utils.rename_privateuse1_backend("npu")
library = torch.library.Library("npu", "DEF")
library.define(
    "npu_fusion_attention(Tensor query, Tensor key, Tensor value, int head_num, str input_layout, "
    "*, float scale=1.0) -> (Tensor, Tensor, Tensor, Tensor, int, int, int)"
)
library.define(
    "npu_fusion_attention_grad(Tensor query, Tensor key, Tensor value, Tensor dy, int head_num, "
    "str input_layout, *, Tensor? softmax_max=None, Tensor? softmax_sum=None, "
    "Tensor? attention_in=None, float scale_value=1.0) -> (Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "_npu_dropout_gen_mask(Tensor self, int[] size, float p, int seed, int offset, "
    "bool? parallel=True, bool? sync=False) -> Tensor"
)
vendor = types.ModuleType("torch_npu")
vendor.__spec__ = importlib.machinery.ModuleSpec("torch_npu", None)
vendor.__version__ = "2.10.0"
vendor.npu_rms_norm = lambda x: "the vendor's norm"
vendor.npu_fusion_attention = lambda *args, **kwargs: "the vendor's attention"
sys.modules["torch_npu"] = vendor
"""


def test_the_vendors_package_stays_and_takes_tensors_of_the_cpu() -> None:
    check(
        VENDOR
        + """
import fusion_attention.torch_npu as ours

before = sys.path[:]
ours.install_for_children()
assert sys.path == before
assert sys.modules["torch_npu"] is vendor
assert not hasattr(torch.Tensor, "npu") and not hasattr(torch, "npu")
assert ours.npu_rms_norm(1) == "the vendor's norm"
assert not hasattr(ours, "npu")

query = torch.randn(1, 2, 4, 8, requires_grad=True)
expected = ours.npu_fusion_attention(query, query, query, 2, "BNSD", scale=0.5)
results = torch.ops.npu.npu_fusion_attention(query, query, query, 2, "BNSD", scale=0.5)
assert torch.equal(results[0], expected[0]) and results[4:] == expected[4:]
gradient, = torch.autograd.grad(results[0].sum(), query)
assert torch.equal(gradient, torch.autograd.grad(expected[0].sum(), query)[0])
with torch.no_grad():
    torch.ops.npu.npu_fusion_attention(query, query, query, 2, "BNSD")
gradients = torch.ops.npu.npu_fusion_attention_grad(
    query, query, query, expected[0], 2, "BNSD", softmax_max=expected[1],
    softmax_sum=expected[2], attention_in=expected[0], scale_value=0.5,
)
assert len(gradients) == 4 and gradients[0].shape == query.shape
mask = torch.ops.npu._npu_dropout_gen_mask(query, [2, 512], 0.5, 3, 0)
assert torch.equal(mask, ours._npu_dropout_gen_mask(query, [2, 512], 0.5, 3, 0))

mode = FakeTensorMode(allow_non_fake_inputs=True)
there = FakeTensor(mode, torch.empty(1, 2, 4, 8, device="meta"), torch.device("npu", 0))
assert ours.npu_fusion_attention(there, there, there, 2, "BNSD") == "the vendor's attention"
"""
    )


def test_a_release_cannot_be_chosen_where_the_vendors_package_is() -> None:
    check(
        VENDOR
        + """
import fusion_attention.torch_npu as ours
ours.install()
try:
    ours.install(compat="7.1")
except RuntimeError as error:
    assert "has a release of its own" in str(error), error
else:
    raise AssertionError("no error")
"""
    )
