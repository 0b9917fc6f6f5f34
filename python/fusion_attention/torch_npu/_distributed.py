"""torch.distributed on the device: the backend "hccl" is Gloo, a mesh of devices is one of CPUs.

Knows nothing of what is sent.
"""

import datetime
from typing import Any

from torch import distributed

from fusion_attention.torch_npu._wrap import wrap


def install() -> None:
    """Makes init_process_group("hccl") and init_device_mesh("npu", ...) work.

    get_backend() then says hccl, and a mesh's device_type says cpu, for that is where its tensors
    are.
    """
    if not distributed.is_available():
        return
    distributed.Backend.register_backend("hccl", _gloo, devices=["npu", "cpu"])
    distributed.is_hccl_available = distributed.is_gloo_available
    distributed.DeviceMesh.__init__ = wrap(distributed.DeviceMesh.__init__, _mesh_of_cpus)


def _gloo(store: Any, rank: int, size: int, timeout: datetime.timedelta) -> Any:
    return distributed.ProcessGroupGloo(store, rank, size, timeout)


def _mesh_of_cpus(
    original: Any, mesh: distributed.DeviceMesh, device_type: str, *args: Any, **kwargs: Any
) -> None:
    original(mesh, "cpu" if device_type == "npu" else device_type, *args, **kwargs)
