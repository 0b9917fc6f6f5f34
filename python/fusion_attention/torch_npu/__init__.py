"""Stands in for the vendor's torch_npu on machines that have neither the package nor the device.

Importing this module makes `import torch_npu` work, its submodules included: the functions of the
family, torch.ops.npu.*, torch.npu.*, tensors on "npu" (which live on the CPU), torch_npu.testing
and torch_npu.contrib.transfer_to_npu. Where the vendor's package is installed nothing is replaced:
its operators learn to take tensors of the CPU, and this module offers the functions that send each
call to where its tensors are.

What differs from the device:

- tensor.device is cpu and tensor.is_npu is False, for that is where the tensors are. Code that asks
  for device.type == "npu" takes its other branch.
- Moving copies as between two memories: x.npu() of what is on the host, y.cpu() and y.to("cpu") of
  anything. y.npu() copies nothing where y, or what y is a view of, was made or moved there; results
  of arithmetic count as the host's, so y.npu() of a result is a copy. x.to(y.device) never copies.
- Random numbers are the CPU generator's; torch.npu.manual_seed() seeds it.
- The device's name is Ascend910B1, or FUSION_ATTENTION_NPU_NAME; there is one device, or one for
  each process of a launcher, or FUSION_ATTENTION_NPU_COUNT.
- Autocast and GradScaler are the CPU's, "hccl" is Gloo, a DeviceMesh of npu is one of cpu, streams
  are always done, events measure time, memory figures are the process's.
- torch_npu.profiler is torch.profiler of the CPU.
- Storage formats are accepted, and all tensors stay in ND.
- Everything else of torch_npu raises an AttributeError, or a ModuleNotFoundError, that says so.

>>> import fusion_attention.torch_npu
>>> import torch, torch_npu
>>> query = torch.randn(1, 4, 128, 64, device="npu")
>>> torch_npu.npu_fusion_attention(query, query, query, 4, "BNSD")[0].shape
torch.Size([1, 4, 128, 64])
"""

import importlib
import os
from typing import Any

import torch

import fusion_attention
from fusion_attention._errors import FeatureError
from fusion_attention.torch_npu import _family, _format, _import
from fusion_attention.torch_npu._absent import absent

#: Programs read the release of PyTorch from it, as from the vendor's.
__version__ = (
    f"{torch.__version__.partition('+')[0]}+fusion.attention.{fusion_attention.__version__}"
)

_SUBMODULES = ("contrib", "npu", "profiler", "testing")
_FORMATS = ("Format", "get_npu_format", "npu_format_cast", "npu_format_cast_")
_vendor = _import.vendor_is_installed()
_library: torch.library.Library | None = None


def install(compat: str | None = None) -> None:
    """Makes `import torch_npu` work in this process, with the functions of a release.

    Importing this module calls it; call it again to choose another release.

    Args:
        compat: A release of the vendor's package, "7.1", "7.2" or "7.3", whose functions know fewer
            parameters and whose gradients return fewer results; "newest" for all. None takes the
            environment variable FUSION_ATTENTION_COMPAT, or "newest".

    Raises:
        FeatureError: There is no such release, or the vendor's package is installed.

    Example:
        >>> import fusion_attention.torch_npu
        >>> fusion_attention.torch_npu.install(compat="newest")
    """
    global _library
    profile = compat or os.environ.get("FUSION_ATTENTION_COMPAT") or _family.NEWEST
    if profile not in _family.PROFILES:
        raise FeatureError(
            f"there is no release {profile!r} of torch_npu to be compatible with. "
            f"Choose one of {', '.join(_family.PROFILES)}."
        )
    if _vendor:
        if profile != _family.NEWEST:
            raise FeatureError(
                f"the release {profile!r} was asked for, but the vendor's torch_npu is installed "
                "and has a release of its own. Leave out compat and FUSION_ATTENTION_COMPAT."
            )
        if _library is None:
            importlib.import_module("torch_npu")  # which defines them
            _library = _family.add_to_vendors_operators()
    else:
        if _library is None:
            from fusion_attention.torch_npu import _compile, _device, _distributed, npu

            _device.install(npu)
            _compile.install()
            _distributed.install()
            _import.install()
        else:
            _library._destroy()
        _library = _family.define_operators(profile)
    for name in _family.NAMES:
        globals()[name] = _family.function(name, profile)


def install_for_children() -> None:
    """Makes `import torch_npu` work in the processes that this one starts.

    In spawned ones, in a launcher's, in workers: they find the stand-in on their path. Where the
    vendor's package is installed it does nothing.
    """
    if not _vendor:
        _import.install_for_children()


def __getattr__(name: str) -> Any:
    if _vendor:
        return getattr(importlib.import_module("torch_npu"), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _FORMATS:
        return getattr(_format, name)
    raise absent("torch_npu", name, __dir__())


def __dir__() -> list[str]:
    if _vendor:
        return dir(importlib.import_module("torch_npu"))
    return sorted({*_family.NAMES, *_SUBMODULES, *_FORMATS, "__version__", "install"})


install()
