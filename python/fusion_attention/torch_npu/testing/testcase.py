"""torch_npu.testing.testcase: unittest's TestCase with the comparisons that device tests use.

The rules are the vendor's. Its slips are not: here unequal bools and sequences of unequal lengths
are unequal, equal infinities are equal, and integers do not wrap around when they are subtracted.
"""

import os
import random
import sys
import unittest
from collections.abc import Iterable, Mapping, Sequence
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusion_attention.torch_npu.testing.common_utils import iter_indices, set_npu_device

# What keeps a quotient of two zeros from being NaN, by dtype.
_TINY = {np.dtype(np.float16): 6e-8}
_TINY_OTHERWISE = 1e-9
_COMPARED = frozenset("bui") | {"f"}  # numpy's kinds: bool, unsigned, signed, floating


def run_tests() -> None:
    """Runs the tests of the program's main module, as unittest.main does."""
    unittest.main(argv=sys.argv)


class TestCase(unittest.TestCase):
    """unittest's, with a seed for each test and comparisons with tolerances."""

    maxDiff = None
    exact_dtype = False
    precision = 1e-5

    @classmethod
    def setUpClass(cls) -> None:
        cls.npu_device = set_npu_device()

    def setUp(self) -> None:
        seed = int(os.environ.get("SEED", "666"))
        torch.manual_seed(seed)
        random.seed(seed)

    def assertRtolEqual(
        self,
        x: Any,
        y: Any,
        prec: float = 1e-4,
        prec16: float = 1e-3,
        auto_trans_dtype: bool = False,
        message: str | None = None,
    ) -> None:
        """Fails when too many elements differ both absolutely and relatively.

        That is: when more than a share `prec` of them differ by more than prec, and more than that
        share by more than prec of the larger of the two. For float16 prec16 takes prec's place.
        NaNs must be in the same places; shapes and dtypes must be equal.

        Args:
            x: A tensor, a numpy array, a number or a sequence of such.
            y: The same.
            prec: The tolerance and the share of elements that may miss it.
            prec16: The same for float16.
            auto_trans_dtype: Cast x to y's dtype first, when both are tensors.
            message: What to say when the NaNs differ.
        """
        if isinstance(x, Sequence) and isinstance(y, Sequence):
            if len(x) != len(y):
                self.fail(f"length error: {len(x)} and {len(y)}")
            for x_element, y_element in zip(x, y, strict=True):
                self.assertRtolEqual(x_element, y_element, prec, prec16, auto_trans_dtype, message)
            return
        if isinstance(x, Tensor) and isinstance(y, Sequence):
            y = torch.as_tensor(y, dtype=x.dtype)
        elif isinstance(y, Tensor) and isinstance(x, Sequence):
            x = torch.as_tensor(x, dtype=y.dtype)
        if isinstance(x, Tensor) and isinstance(y, Tensor) and auto_trans_dtype:
            x = x.to(y.dtype)
        x, y = _as_array(x), _as_array(y)
        if x.shape != y.shape:
            self.fail(f"shape error: {x.shape} and {y.shape}")
        if x.dtype != y.dtype:
            self.fail(f"dtype error: {x.dtype} and {y.dtype}")
        if x.dtype.kind not in _COMPARED:
            self.fail(f"required dtype: bool, integer or floating, not {x.dtype}")
        if x.dtype.kind == "b":
            if not np.array_equal(x, y):
                self.fail("result error")
            return
        tolerance = prec16 if x.dtype == np.float16 else prec
        self._compare(x, y, tolerance, message)

    def _compare(self, x: Any, y: Any, tolerance: float, message: str | None) -> None:
        tiny = _TINY.get(x.dtype, _TINY_OTHERWISE)
        if x.dtype.kind in "ui":
            x, y = x.astype(np.float64), y.astype(np.float64)
        nans = np.isnan(x)
        if not np.array_equal(nans, np.isnan(y)):
            self.fail(message or "NaNs in different places")
        with np.errstate(invalid="ignore"):  # infinities, of which no comparison is true
            difference = np.abs(np.where(nans | (x == y), 0, y - x))
            relative = np.where(
                difference == 0, 0, difference / (np.maximum(abs(x), abs(y)) + tiny)
            )
        absolutely, relatively = (np.sum(~(z <= tolerance)) for z in (difference, relative))
        allowed = x.size * tolerance
        if absolutely > allowed and relatively > allowed:
            self.fail(
                f"result error: of {x.size} elements {absolutely} differ by more than {tolerance} "
                f"and {relatively} by more than that share of their size; {allowed:.1f} may."
            )

    def assertEqual(
        self,
        x: Any,
        y: Any,
        prec: Any = None,
        message: str = "",
        allow_inf: bool = False,
        exact_dtype: bool | None = None,
    ) -> None:
        """Fails unless the values are equal: numbers and tensors within `prec`, all others exactly.

        Args:
            x: A value; tensors, mappings and iterables are compared by element.
            y: The same.
            prec: The largest absolute difference, by default self.precision; a str is a message.
            message: What to say.
            allow_inf: Take infinities for equal that have the same sign.
            exact_dtype: Compare the tensors' dtypes too, by default self.exact_dtype.
        """
        if isinstance(prec, str):
            prec, message = None, message or prec
        prec = self.precision if prec is None else prec
        rest = (prec, message, allow_inf, exact_dtype)
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            self._assert_tensors_equal(x, y, *rest)
        elif isinstance(x, Number) or isinstance(y, Number):
            self._assert_numbers_equal(_as_number(x), _as_number(y), prec, message, allow_inf)
        elif isinstance(x, Mapping) and isinstance(y, Mapping):
            super().assertEqual(set(x), set(y), message)
            for key in x:
                self.assertEqual(x[key], y[key], *rest)
        elif _has_elements(x) and _has_elements(y):
            super().assertEqual(len(x), len(y), message)
            for x_element, y_element in zip(x, y, strict=True):
                self.assertEqual(x_element, y_element, *rest)
        else:
            super().assertEqual(x, y, message)

    def assertTensorsSlowEqual(
        self, x: Tensor, y: Tensor, prec: float | None = None, message: str = ""
    ) -> None:
        """Fails unless sizes and dtypes are equal, and all elements within `prec`."""
        super().assertEqual((x.size(), x.dtype), (y.size(), y.dtype), message)
        for index in iter_indices(x):
            self.assertEqual(x[index], y[index], prec, message)

    def _assert_numbers_equal(
        self, x: Any, y: Any, prec: float, message: str, allow_inf: bool
    ) -> None:
        if isinstance(x, Number) and isinstance(y, Number) and not (np.isinf(x) or np.isinf(y)):
            self.assertLessEqual(abs(x - y), prec, message)
        elif isinstance(x, Number) and isinstance(y, Number) and not allow_inf:
            self.fail(f"Expected finite numeric values - x={x}, y={y}")
        else:
            super().assertEqual(x, y, message)

    def _assert_tensors_equal(
        self,
        x: Tensor,
        y: Tensor,
        prec: float,
        message: str,
        allow_inf: bool,
        exact_dtype: bool | None,
    ) -> None:
        super().assertEqual(x.size(), y.size(), message)
        if self.exact_dtype if exact_dtype is None else exact_dtype:
            super().assertEqual(x.dtype, y.dtype, message)
        if (x.dtype == torch.bool) != (y.dtype == torch.bool):
            raise TypeError("expected both tensors or none to be bool")
        wide = torch.complex128 if x.is_complex() or y.is_complex() else torch.float64
        x, y = (z.detach().to_dense() if z.layout != torch.strided else z.detach() for z in (x, y))
        x, y = x.to(wide), y.to(wide)
        difference = (x - y).abs()
        nans = x.isnan()
        self.assertTrue(torch.equal(nans, y.isnan()), message)
        difference[nans] = 0
        if allow_inf:
            difference[x == y] = 0
        if difference.numel():
            self.assertLessEqual(difference.max().item(), prec, message)


def _as_array(value: Any) -> Any:
    return value.detach().numpy() if isinstance(value, Tensor) else np.asarray(value)


def _as_number(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _has_elements(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str | bytes | set | frozenset)
