"""No argument values may do anything but give a result or a clear error.

hypothesis mixes plausible and hostile values for every argument of a call, shrinks what breaks a
rule, and remembers it. That a legal call's numbers are right is for test_differential.py.
"""

from typing import Any

import hypothesis
import torch
from calls import forward, gradient
from hypothesis import strategies as st

TOKENS = st.sampled_from([0, 1, 2, 7, 16, 33])
HOSTILE = st.sampled_from(
    [-(2**63), -(2**31), -33, -1, 0, 1, 2, 5, 33, 2**31 - 1, 2**40, 2**63 - 1]
)
REALS = st.sampled_from([0.5, 1.0, 0.9, 0.0, -1.0, 1e-12, 2.0, 1e308, float("nan"), float("inf")])
FLOATS = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
DTYPES = st.sampled_from([*FLOATS, torch.int32])
LAYOUTS = ["BSH", "SBH", "BNSD", "BSND", "TND", "tnd"]
LENGTHS = st.none() | st.lists(st.sampled_from([-1, 0, 1, 7, 16, 33, 2**40]), max_size=4)
RARELY = st.integers(0, 11).map(lambda number: number == 11)  # shrinks towards False
SOMETIMES = st.integers(0, 2).map(lambda number: number == 2)


@st.composite
def tensors(draw: Any, shape: list[int], dtypes: Any = DTYPES) -> torch.Tensor:
    """A tensor of about this shape: sometimes with a size changed, a dimension less, or strides."""
    shape = list(shape)
    if draw(RARELY):
        shape[draw(st.integers(0, len(shape) - 1))] = draw(TOKENS)
    if draw(RARELY):
        shape.pop()
    tensor = torch.ones(shape).to(draw(dtypes))
    if draw(RARELY) and tensor.dim() > 1:
        tensor = tensor.transpose(0, -1)
    if draw(RARELY) and tensor.numel() and tensor.dim():
        tensor = tensor[:1].expand(tensor.shape)
    return tensor


@st.composite
def calls(draw: Any) -> tuple[int, dict[str, Any]]:
    """A version of the function, and arguments that may be legal, nearly legal, or nonsense."""
    layouts = st.sampled_from(["", "BNS\0D", "NTD"]) if draw(RARELY) else st.sampled_from(LAYOUTS)
    layout = draw(layouts)
    batch, heads, head_dim = draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2, 3])), 8
    q_len, kv_len = draw(TOKENS), draw(TOKENS)
    dtype = DTYPES if draw(RARELY) else st.just(draw(st.sampled_from(FLOATS)))

    def shape(tokens: int) -> list[int]:
        return {
            "BSH": [batch, tokens, heads * head_dim],
            "SBH": [tokens, batch, heads * head_dim],
            "BSND": [batch, tokens, heads, head_dim],
            "TND": [tokens, heads, head_dim],
        }.get(layout.upper(), [batch, heads, tokens, head_dim])

    packed = layout.upper() == "TND"
    modes = st.sampled_from([0, 1, 2, 3, 4, 6, 7, 8] if packed else range(7))
    masks = st.sampled_from([torch.bool, torch.uint8])
    call: dict[str, Any] = {
        "query": draw(tensors(shape(q_len), dtype)),
        "key": draw(tensors(shape(kv_len), dtype)),
        "value": draw(tensors(shape(kv_len), dtype)),
        "head_num": draw(HOSTILE) if draw(RARELY) else heads,
        "input_layout": layout,
        "sparse_mode": draw(HOSTILE if draw(RARELY) else modes),
        "scale": draw(REALS) if draw(RARELY) else 0.5,
        "keep_prob": draw(REALS) if draw(RARELY) else draw(st.sampled_from([1.0, 0.9, 1])),
    }
    optional = {
        "atten_mask": st.sampled_from([[2048, 2048], [3072, 2048], [q_len, kv_len]]).flatmap(
            lambda mask_shape: tensors(mask_shape, masks)
        ),
        "pse": tensors([batch, heads, q_len, kv_len], dtype)
        | st.sampled_from([[heads], [batch, heads]]).flatmap(
            lambda slopes: tensors(slopes, st.just(torch.float32))
        ),
        "sink": tensors([heads], st.just(torch.float32)),
        "dropout_mask": tensors([max(1, batch * heads * q_len * kv_len // 8)], masks),
        "pre_tockens": HOSTILE,
        "next_tockens": HOSTILE,
        "inner_precise": HOSTILE,
        "prefix": LENGTHS,
        "softmax_layout": st.sampled_from(["", "", "", "TND" if packed else "", "tnd"]),
        "seed": HOSTILE,
        "offset": HOSTILE,
    }
    version = draw(st.sampled_from([1, 2, 2, 3]))
    if version == 2:
        optional |= {
            "pse_type": st.sampled_from([0, 1, 2, 3]) if not draw(RARELY) else HOSTILE,
            "q_start_idx": LENGTHS | st.lists(HOSTILE, max_size=2),
            "kv_start_idx": LENGTHS | st.lists(HOSTILE, max_size=2),
        }
    for name, values in optional.items():
        if draw(SOMETIMES) and not (version == 3 and name in ("dropout_mask", "seed", "offset")):
            call[name] = draw(values)
    if version == 2 and draw(st.booleans() if packed else RARELY):
        rope_dim = draw(st.sampled_from([0, 1, 3, 8, 9]))
        call["query_rope"] = draw(tensors([*shape(q_len)[:-1], rope_dim], dtype))
        call["key_rope"] = draw(tensors([*shape(kv_len)[:-1], rope_dim], dtype))
    if packed or draw(RARELY):
        exact = st.just([min(1, q_len), q_len]), st.just([min(1, kv_len), kv_len])
        call["actual_seq_qlen"] = draw(exact[0] | LENGTHS)
        call["actual_seq_kvlen"] = draw(exact[1] | LENGTHS)
    return version, call


def refusal_of(version: int, call: dict[str, Any]) -> tuple[RuntimeError | None, Any]:
    """The error of a call, or its results."""
    try:
        return None, forward(call, version)
    except RuntimeError as error:
        return error, None


@hypothesis.settings(max_examples=2500, deadline=None, derandomize=True)
@hypothesis.given(calls())
def test_a_call_gives_results_or_a_clear_error(drawn: tuple[int, dict[str, Any]]) -> None:
    """Both directions; a refused call leaves the random state as it was."""
    version, call = drawn
    before = torch.get_rng_state()
    names = ("query", "key", "value")
    inputs = [call[name].clone() for name in names]
    error, results = refusal_of(version, call)
    if error is not None:
        text = str(error)
        hypothesis.event(f"refused: {text.split()[2]}")
        assert text.startswith("npu_fusion_attention: expected "), text
        assert text.isascii() and len(text) <= 400, text  # noqa: PT018
        assert torch.equal(torch.get_rng_state(), before)
        return
    out, softmax_max, softmax_sum, reserved, *words = results
    hypothesis.event(f"accepted by version {version}")
    assert out.dtype == call["query"].dtype
    assert reserved.numel() == 0
    saved = {"softmax_max": softmax_max, "softmax_sum": softmax_sum, "attention_in": out}
    saved |= dict(zip(("seed", "offset", "numels"), words, strict=version != 3))
    assert saved.get("numels", 0) >= 0
    gradients = gradient(call, torch.ones_like(out), saved, version)
    for name, tensor in zip(names, inputs, strict=True):
        found = gradients[{"query": "dq", "key": "dk", "value": "dv"}[name]]
        assert found.shape == tensor.shape, name
        assert torch.equal(call[name], tensor), f"{name} was written to"
    for name, other in (("pse", "dpse"), ("query_rope", "dq_rope"), ("key_rope", "dk_rope")):
        if version == 2 and call.get(name) is not None and call[name].dim() > 0:
            assert gradients[other].shape == call[name].shape, name
