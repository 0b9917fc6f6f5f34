"""torch_npu.testing: comparisons fail where they must, and only there."""

import os
import random
import unittest
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch_npu
from torch_npu.testing.common_distributed import skipIfUnsupportMultiNPU
from torch_npu.testing.common_utils import (
    SkipIfNotGteCANNVersion,
    SupportedDevices,
    create_common_tensor,
    create_dtype_tensor,
    freeze_rng_state,
    get_npu_device,
    is_iterable,
    iter_indices,
)
from torch_npu.testing.testcase import TestCase as DeviceTestCase

CASE = DeviceTestCase()
X = np.linspace(1, 2, 20_000, dtype=np.float32)


def changed(by: float, count: int, dtype: type = np.float32) -> np.ndarray:
    """Returns X with `by` added to its first `count` elements."""
    y = X.astype(dtype)
    y[:count] += dtype(by)
    return y


@pytest.mark.parametrize("kind", [lambda x: x, torch.from_numpy, lambda x: [torch.from_numpy(x)]])
def test_a_few_elements_may_miss_the_tolerance(kind: Callable[..., object]) -> None:
    CASE.assertRtolEqual(kind(X), kind(changed(0, 0)))
    CASE.assertRtolEqual(kind(X), kind(changed(9e-5, 20_000)))  # within 1e-4 absolutely
    CASE.assertRtolEqual(kind(100 * X), kind(100 * changed(9e-5, 20_000)))  # or relatively
    CASE.assertRtolEqual(kind(X), kind(changed(1, 2)))  # two of 20,000 are the share of 1e-4
    with pytest.raises(AssertionError, match="result error: of 20000 elements 3 differ"):
        CASE.assertRtolEqual(kind(X), kind(changed(1, 3)))
    with pytest.raises(AssertionError, match="result error"):
        CASE.assertRtolEqual(kind(X), kind(changed(3e-4, 20_000)))
    CASE.assertRtolEqual(kind(X), kind(changed(3e-4, 20_000)), prec=1e-3)


def test_half_precision_has_a_tolerance_of_its_own() -> None:
    half = X.astype(np.float16)
    CASE.assertRtolEqual(half, changed(1, 20, np.float16))  # the share of 1e-3
    with pytest.raises(AssertionError, match="result error"):
        CASE.assertRtolEqual(half, changed(1, 21, np.float16))
    with pytest.raises(AssertionError, match="result error"):
        CASE.assertRtolEqual(half, changed(0.01, 20_000, np.float16), prec=1)
    CASE.assertRtolEqual(half, changed(0.01, 20_000, np.float16), prec16=0.02)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, X[:-1], "shape error"),
        (X, X.astype(np.float64), "dtype error"),
        (X.astype(complex), X.astype(complex), "required dtype"),
        (np.array([True, False]), np.array([True, True]), "result error"),
        (np.uint8([3]), np.uint8([5]), "result error"),
        (np.int8([-128]), np.int8([127]), "result error"),
        ([1.0, 2.0], [1.0], "length error"),
        (np.float32([1, np.nan]), np.float32([1, 1]), "NaNs in different places"),
        (np.float32([1, np.inf]), np.float32([1, 1]), "result error"),
        (1.0, 2.0, "result error"),
        (torch.tensor([1.0]), [2.0], "result error"),
    ],
)
def test_what_differs_fails(x: object, y: object, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        CASE.assertRtolEqual(x, y)
    if message != "required dtype":
        CASE.assertRtolEqual(x, x)
        CASE.assertRtolEqual(y, y)


def test_dtypes_are_translated_on_demand() -> None:
    half = torch.ones(3, dtype=torch.float16)
    with pytest.raises(AssertionError, match="dtype error"):
        CASE.assertRtolEqual(half, half.float())
    CASE.assertRtolEqual(half, half.float(), auto_trans_dtype=True)
    CASE.assertRtolEqual(half.npu().requires_grad_(), half)
    CASE.assertRtolEqual([1.0, 1.0, 1.0], half)


@pytest.mark.parametrize(
    ("x", "y", "options"),
    [
        (1.0, 1.0 + 1e-6, {}),
        (1, torch.tensor(1.0), {}),
        (torch.ones(2), torch.ones(2) + 1e-6, {}),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), {}),
        (torch.tensor([float("nan")]), torch.tensor([float("nan")]), {}),
        (torch.tensor([float("inf")]), torch.tensor([float("inf")]), {"allow_inf": True}),
        (torch.ones(2), torch.ones(2) + 0.5, {"prec": 1}),
        (torch.eye(2).to_sparse(), torch.eye(2).to_sparse(), {}),
        (torch.tensor([True]), torch.tensor([True]), {}),
        ({"a": [1, torch.ones(1)]}, {"a": [1, torch.ones(1)]}, {}),
        ("text", "text", {}),
        (None, None, {}),
    ],
)
def test_equal_values(x: object, y: object, options: dict[str, object]) -> None:
    CASE.assertEqual(x, y, **options)


@pytest.mark.parametrize(
    ("x", "y", "options"),
    [
        (1.0, 1.1, {}),
        (float("inf"), float("inf"), {}),
        (torch.ones(2), torch.ones(2) + 1e-4, {}),
        (torch.ones(2), torch.ones(3), {}),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), {"exact_dtype": True}),
        (torch.tensor([float("nan")]), torch.ones(1), {}),
        (torch.tensor([float("inf")]), torch.tensor([-float("inf")]), {"allow_inf": True}),
        (torch.tensor([True]), torch.tensor([False]), {}),
        ({"a": 1}, {"b": 1}, {}),
        ([1, 2], [1, 3], {}),
        ([1, 2], [1], {}),
        ("text", "texts", {}),
        (1, None, {}),
    ],
)
def test_unequal_values(x: object, y: object, options: dict[str, object]) -> None:
    with pytest.raises(AssertionError):
        CASE.assertEqual(x, y, **options)


def test_a_message_may_stand_where_the_tolerance_does() -> None:
    with pytest.raises(AssertionError, match="they differ"):
        CASE.assertEqual(1, 2, "they differ")
    with pytest.raises(TypeError, match="both tensors or none to be bool"):
        CASE.assertEqual(torch.tensor([True]), torch.ones(1))
    CASE.assertTensorsSlowEqual(torch.ones(2, 2), torch.ones(2, 2), 1e-6)
    with pytest.raises(AssertionError):
        CASE.assertTensorsSlowEqual(torch.ones(2, 2), torch.eye(2), 1e-6)


def test_pairs_of_tensors_have_equal_values_and_memories_of_their_own() -> None:
    host, there = create_common_tensor([np.float16, 2, (3, 4)], -2, 3)
    assert host.dtype == torch.float16
    assert host.shape == (3, 4)
    assert host.min() >= -2
    assert host.max() <= 3
    assert torch.equal(host, there)
    assert there.npu() is there
    there.zero_()
    assert host.abs().sum() > 0
    for dtype in (torch.bool, torch.float16, torch.float32, torch.int32):
        host, there = create_dtype_tensor((2, 50), dtype, no_zero=dtype == torch.int32)
        assert host.dtype == dtype
        assert torch.equal(host, there)
        assert dtype != torch.int32 or bool((host != 0).all())


def test_devices_are_told_apart_by_ten_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Case(unittest.TestCase):
        @SupportedDevices(["Ascend910B"])
        def test(self) -> None:
            pass

    result = unittest.TestResult()
    Case("test").run(result)
    assert result.skipped == []
    monkeypatch.setenv("FUSION_ATTENTION_NPU_NAME", "Ascend310P3")
    Case("test").run(result)
    assert "current device is Ascend310P" in result.skipped[0][1]


def test_tests_run_where_there_are_devices_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    class Case(unittest.TestCase):
        @skipIfUnsupportMultiNPU(2)
        @SkipIfNotGteCANNVersion("9.0.0")
        def test(self) -> None:
            raise RuntimeError("it ran")

    result = unittest.TestResult()
    Case("test").run(result)
    assert "FUSION_ATTENTION_NPU_COUNT=2 makes that many" in result.skipped[0][1]
    monkeypatch.setenv("FUSION_ATTENTION_NPU_COUNT", "2")
    Case("test").run(result)
    assert "it ran" in result.errors[0][1]


def test_a_case_starts_from_the_same_seed() -> None:
    drawn = []
    for _ in range(2):
        CASE.setUp()
        drawn.append((random.random(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    DeviceTestCase.setUpClass()
    assert DeviceTestCase.npu_device == get_npu_device() == "npu:0"


def test_helpers(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    with freeze_rng_state():
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(iter_indices(torch.ones(2, 1))) == [(0, 0), (1, 0)]
    assert list(iter_indices(torch.ones(2))) == [0, 1]
    assert is_iterable([])
    assert not is_iterable(1)
    monkeypatch.setenv("SET_NPU_DEVICE", "0")
    assert get_npu_device() == "npu:0"
    assert os.environ["SET_NPU_DEVICE"] == "0"
    assert torch_npu.testing.testcase.TestCase is DeviceTestCase
