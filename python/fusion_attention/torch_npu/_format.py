"""Storage formats: the device keeps tensors in several, the CPU in one, ND, whatever is asked for.

So a cast returns its tensor, and a program that asks for the format afterwards is told the truth.
"""

import enum

from torch import Tensor


class Format(enum.IntEnum):
    """The formats by the numbers that the device gives them."""

    UNDEFINED = -1
    NCHW = 0
    NHWC = 1
    ND = 2
    NC1HWC0 = 3
    FRACTAL_Z = 4
    NC1HWC0_C04 = 12
    HWCN = 16
    NDHWC = 27
    FRACTAL_NZ = 29
    NCDHW = 30
    NDC1HWC0 = 32
    FRACTAL_Z_3D = 33
    NC = 35
    NCL = 47


def get_npu_format(tensor: Tensor) -> Format:
    """Returns Format.ND."""
    return Format.ND


def npu_format_cast(tensor: Tensor, acl_format: int) -> Tensor:
    """Returns the tensor, in the one format that there is.

    Raises:
        ValueError: There is no format of this number.
    """
    Format(acl_format)
    return tensor


npu_format_cast_ = npu_format_cast
