"""Observers of calls: each sees whole calls, and a call that raises leaves nothing behind."""

import sys
import threading
from typing import Any

import pytest
import torch

from fusion_attention import _observers, npu_fusion_attention
from fusion_attention._call import Call


def test_an_observer_sees_all_of_a_call_or_nothing_of_it() -> None:
    query = torch.randn(1, 2, 30, 8)
    seen: list[str] = []

    class Late:
        def before(self, call: Call) -> None:
            seen.append("before")

        def after(self, call: Call, result: Any) -> None:
            seen.append("after")

    late = Late()

    class Early:
        def before(self, call: Call) -> None:
            _observers.add(late)

        def after(self, call: Call, result: Any) -> None:
            _observers.remove(late)

    early = Early()
    _observers.add(early)
    try:
        npu_fusion_attention(query, query, query, 2, "BNSD")
        with pytest.raises(RuntimeError, match="head_num"):
            npu_fusion_attention(query, query, query, 3, "BNSD")
        assert seen == []
        _observers.remove(early)
        npu_fusion_attention(query, query, query, 2, "BNSD")
        assert seen == ["before", "after"]
    finally:
        _observers.remove(early)
        _observers.remove(late)


def test_observers_of_many_threads_come_and_go() -> None:
    def come_and_go() -> None:
        for _ in range(20_000):
            mine: Any = object()
            _observers.add(mine)
            _observers.remove(mine)

    threads = [threading.Thread(target=come_and_go) for _ in range(4)]
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-7)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(usual)
    assert _observers.watching == ()


def test_a_call_that_raises_does_not_hide_the_next_one() -> None:
    query = torch.randn(1, 2, 30, 8)
    seen: list[str] = []

    class Refusing:
        def before(self, call: Call) -> None:
            seen.append("before")
            if len(seen) == 1:
                raise KeyboardInterrupt

        def after(self, call: Call, result: Any) -> None:
            # Made by an observer: part of the call that it looks at.
            npu_fusion_attention(query, query, query, 2, "BNSD")
            seen.append("after")

    refusing = Refusing()
    _observers.add(refusing)
    try:
        with pytest.raises(KeyboardInterrupt):
            npu_fusion_attention(query, query, query, 2, "BNSD")
        with pytest.raises(RuntimeError, match="head_num"):
            npu_fusion_attention(query, query, query, 3, "BNSD")
        npu_fusion_attention(query, query, query, 2, "BNSD")
    finally:
        _observers.remove(refusing)
    assert seen == ["before", "before", "before", "after"]
