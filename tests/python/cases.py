"""Random legal calls of the operator: seed -> Spec (sizes, flags) -> Case (with tensors).

`draw` is cheap and has no tensors, so coverage can be counted over many seeds (see features);
`build` makes the tensors of one. Sizes straddle the tiles that kernels use. Knows the rules of
legality, nothing of results.
"""

import math
import random
from dataclasses import dataclass, field
from typing import Any

import torch

LAYOUTS = ("BSH", "SBH", "BNSD", "BSND", "TND")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
INT64 = (-(2**63), 2**63 - 1)
UNLIMITED = 2147483647
COMPRESSED_ROWS = 1024
SMALL_DIMS = (1, 3, 8, 16, 40, 64, 72, 80, 128)
LARGE_DIMS = (192, 256, 768)
TILE_EDGES = tuple(edge + d for edge in (16, 32, 48, 64, 96, 128, 256) for d in (-1, 0, 1))


@dataclass
class Spec:
    """Everything about a case but the numbers in its tensors."""

    seed: int
    layout: str
    dtype: torch.dtype
    sparse_mode: int
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int
    q_lens: list[int]
    kv_lens: list[int]
    zero_lengths: str = "none"
    unused: int = 0  # trailing zero entries of the length lists
    spare_tokens: int = 0  # tokens after the last sequence
    mask: str = "none"
    mask_dtype: torch.dtype = torch.bool
    mask_density: float = 0.3
    pse: str = "none"  # "slopes ..." belong to pse_type 2 and 3, the other shapes to 0 and 1
    pse_type: int = 1
    starts: str = "none"  # which of q_start_idx and kv_start_idx are given
    rope_dim: int = 0
    dropout: str = "none"
    strides: str = "contiguous"
    scale_kind: str = "usual"
    arguments: dict[str, Any] = field(default_factory=dict)

    @property
    def is_packed(self) -> bool:
        return self.layout == "TND"

    @property
    def has_slopes(self) -> bool:
        return self.pse.startswith("slopes")


@dataclass
class Case:
    """A spec with its tensors.

    Attributes:
        spec: what the case is.
        call: the arguments of npu_fusion_attention by name, and of those that only _v2 has.
        dy: gradient of attention_out.
    """

    spec: Spec
    call: dict[str, Any]
    dy: torch.Tensor


def features(spec: Spec) -> dict[str, str]:
    """The named choices of a case; pairs of them are what coverage counts."""
    if all(q == k for q, k in zip(spec.q_lens, spec.kv_lens, strict=True)):
        lengths = "equal"
    elif all(q <= k for q, k in zip(spec.q_lens, spec.kv_lens, strict=True)):
        lengths = "more keys"
    else:
        lengths = "more queries"
    return {
        "layout": spec.layout,
        "mode": "none" if spec.mask == "none" else str(spec.sparse_mode),
        "dtype": str(spec.dtype).removeprefix("torch."),
        "pse": spec.pse,
        "pse_type": "none" if spec.pse == "none" else str(spec.pse_type),
        "starts": spec.starts,
        "ropes": "yes" if spec.rope_dim else "no",
        "mask": spec.mask,
        "dropout": spec.dropout,
        "heads": "grouped" if spec.heads > spec.kv_heads else "equal",
        "value_dim": "smaller" if spec.value_dim < spec.head_dim else "equal",
        "lengths": lengths,
        "zero_lengths": spec.zero_lengths,
        "sink": "yes" if spec.arguments["sink"] else "no",
        "strides": spec.strides,
        "scale": spec.scale_kind,
        "statistics": spec.arguments.get("softmax_layout") or "default",
    }


def _length(rng: random.Random) -> int:
    kind = rng.random()
    if kind < 0.25:
        return rng.randint(1, 8)
    if kind < 0.5:
        return rng.randint(9, 40)
    if kind < 0.85:
        return rng.choice(TILE_EDGES)
    if kind < 0.97:
        return rng.randint(41, 160)
    return rng.randint(200, 300)


def _tockens_are_legal(pre: int, following: int, q_len: int, kv_len: int) -> bool:
    """The rule of modes 0 and 4 in dense layouts, in units that start at the top left."""
    if pre < 0 and following < 0:
        return False
    if pre < 0:
        return following >= -pre and -pre < kv_len
    if following < 0:
        return pre >= -following and -following < q_len
    return True


def _tockens(rng: random.Random, spec: Spec) -> tuple[int, int]:
    """A legal pair of pre_tockens and next_tockens; any values where the mode ignores them."""
    mode, lens = spec.sparse_mode, list(zip(spec.q_lens, spec.kv_lens, strict=True))
    longest = max(1, *spec.q_lens, *spec.kv_lens)
    if spec.mask == "none" or mode in (1, 2, 3, 5, 6):
        return rng.choice([(UNLIMITED, UNLIMITED), (0, 0), (-5, -7), (INT64[0], INT64[1])])
    if mode in (7, 8):
        with_queries = [pair for pair in lens if pair[0] > 0]
        q_len, kv_len = (with_queries or [(0, 0)])[-1 if mode == 7 else 0]
        highest = 0 if mode == 7 else max(0, q_len - kv_len) + rng.randint(0, kv_len + 2)
        pre = kv_len + rng.choice([0, 1, 50, UNLIMITED])
        return pre, rng.randint(min(q_len - kv_len, highest), highest)
    if rng.random() < 0.15:
        return rng.choice([(UNLIMITED, UNLIMITED), (INT64[1], INT64[1]), (longest, INT64[1])])
    for _ in range(100):
        pre = rng.choice([longest, rng.randint(-longest, longest), rng.randint(0, 12), UNLIMITED])
        following = rng.choice([0, rng.randint(-longest, longest), rng.randint(0, 12)])
        if spec.is_packed:
            if mode == 0:
                legal = following >= 0 and all(k + pre >= q for q, k in lens)
                legal = legal and (pre >= 0 or following >= -pre)
            else:
                legal = pre >= 0 and pre + following >= 0
                legal = legal and all(q - following <= k for q, k in lens if q > 0)
        else:
            shift = spec.q_lens[0] - spec.kv_lens[0] if mode == 4 else 0
            legal = _tockens_are_legal(pre + shift, following - shift, *lens[0])
        if legal:
            return pre, following
    return UNLIMITED, UNLIMITED


def _draw_packed_lengths(rng: random.Random, spec: Spec) -> None:
    """One length pair for each sequence, with zeros and unused tails where pse allows them."""
    count = rng.choice([1, 2, 3, 3, 4, 5])
    spec.q_lens = [_length(rng) for _ in range(count)]
    same = spec.pse == "compressed" or rng.random() < 0.25
    spec.kv_lens = list(spec.q_lens) if same else [_length(rng) for _ in range(count)]
    kinds = ["none", "spare"]
    if spec.pse != "compressed":
        kinds += ["leading", "middle", "trailing"]
    spec.zero_lengths = rng.choice(kinds)
    where = {"leading": 0, "middle": count // 2}.get(spec.zero_lengths)
    if where is not None:
        empty = rng.choice(["query", "key", "both"])
        if empty != "key":
            spec.q_lens[where] = 0
        if empty != "query":
            spec.kv_lens[where] = 0
        if sum(spec.q_lens) == 0 or sum(spec.kv_lens) == 0:
            spec.q_lens.append(7)
            spec.kv_lens.append(9)
    if spec.zero_lengths == "trailing":
        spec.unused = rng.randint(1, 3)
    if spec.zero_lengths in ("trailing", "spare"):
        spec.spare_tokens = rng.randint(0 if spec.unused else 1, 20)
    if spec.mask != "none" and (spec.sparse_mode in (3, 7) or rng.random() < 0.3):
        for i, (q_len, kv_len) in enumerate(zip(spec.q_lens, spec.kv_lens, strict=True)):
            spec.q_lens[i], spec.kv_lens[i] = min(q_len, kv_len), max(q_len, kv_len)
    if spec.has_slopes and spec.mask != "none" and spec.sparse_mode == 8:
        spec.kv_lens[1:] = spec.q_lens[1:]  # mode 8 cuts the first sequence alone


def _draw_dense_lengths(rng: random.Random, spec: Spec) -> None:
    spec.batch = rng.choice([1, 1, 2, 2, 3])
    if spec.pse == "compressed":
        q_len = kv_len = rng.randint(COMPRESSED_ROWS + 1, 1300)
        spec.batch = rng.choice([1, 1, 2])
    else:
        q_len, kv_len = _length(rng), _length(rng)
        if spec.has_slopes or rng.random() < 0.2:
            kv_len = q_len
    spec.q_lens, spec.kv_lens = [q_len] * spec.batch, [kv_len] * spec.batch


def _draw_mask(rng: random.Random, spec: Spec) -> None:
    if spec.sparse_mode in (2, 3, 4, 6, 7, 8):
        spec.mask = "compressed"
    elif spec.is_packed:
        spec.mask = "SS"
    elif spec.sparse_mode == 5:
        spec.mask = rng.choice(["B1SS", "BNSS"])
    else:
        spec.mask = rng.choice(["SS", "11SS", "B1SS", "BNSS"])
    spec.mask_dtype = rng.choice([torch.bool, torch.uint8])
    spec.mask_density = rng.choice([0.0, 0.1, 0.5, 0.9, 0.98])


def _draw_heads(rng: random.Random, spec: Spec) -> None:
    large = spec.pse == "compressed" and not spec.is_packed
    spec.kv_heads = 1 if large else rng.choice([1, 1, 2, 3])
    spec.heads = spec.kv_heads * (rng.choice([1, 2]) if large else rng.choice([1, 1, 2, 3, 4]))
    if large:
        spec.head_dim = rng.choice([1, 3, 8, 16])
    else:
        spec.head_dim = rng.choice(LARGE_DIMS if rng.random() < 0.03 else SMALL_DIMS)
    spec.value_dim = spec.head_dim
    if spec.head_dim > 1 and rng.random() < 0.35:
        spec.value_dim = rng.choice([spec.head_dim // 2, rng.randint(1, spec.head_dim - 1)])
    ropes = spec.is_packed and spec.mask != "none" and spec.sparse_mode != 6 and spec.pse == "none"
    if ropes and rng.random() < 0.35:
        spec.rope_dim = rng.choice([spec.head_dim, rng.randint(1, spec.head_dim)])


def _fit(spec: Spec) -> None:
    """Keeps a case under some milliseconds by giving up heads and batches, never lengths."""
    if spec.pse == "compressed" and not spec.is_packed:
        return

    def cost() -> int:
        scores = sum(q * k for q, k in zip(spec.q_lens, spec.kv_lens, strict=True))
        return spec.heads * scores * (spec.head_dim + 30)

    while cost() > 8_000_000:
        group = spec.heads // spec.kv_heads
        if spec.kv_heads > 1:
            spec.kv_heads -= 1
            spec.heads = spec.kv_heads * group
        elif spec.heads > 2:
            spec.heads -= 1
        elif not spec.is_packed and spec.batch > 2:
            spec.batch -= 1
            del spec.q_lens[-1], spec.kv_lens[-1]
        else:
            break


def _draw_prefix(rng: random.Random, spec: Spec) -> list[int]:
    prefix = []
    for q_len, kv_len in zip(spec.q_lens, spec.kv_lens, strict=True):
        lowest = max(kv_len - q_len, 0)
        prefix.append(rng.choice([lowest, kv_len, rng.randint(lowest, kv_len)]))
    return [*prefix, *[0] * spec.unused]


def _draw_pse(rng: random.Random, spec: Spec) -> None:
    """The shape of pse that the mode allows, and a pse_type that the shape allows."""
    packed, masked = spec.is_packed, spec.mask != "none"
    causal = masked and spec.sparse_mode in ((0, 2, 3, 4) if packed else (0, 2, 3))
    slopes = not (masked and spec.sparse_mode == 7) and rng.random() < 0.25
    if packed and causal and rng.random() < 0.35:
        spec.pse = "compressed"
    elif slopes:
        spec.pse = rng.choice(["slopes N", "slopes BN"])
    elif not packed and causal and rng.random() < 0.06:
        spec.pse = "compressed"
    elif not packed and rng.random() < 0.5:
        spec.pse = rng.choice(["BNSS", "1NSS", "BN1S", "1N1S"])
    if spec.pse != "none":
        spec.pse_type = rng.choice([2, 3] if spec.has_slopes else [0, 1])


def _draw_starts(rng: random.Random, spec: Spec) -> None:
    """Start indices, which slopes use when both are given; mode 8 prescribes their difference."""
    q_start, kv_start = rng.randint(-40, 200), rng.randint(-40, 200)
    cut = spec.has_slopes and spec.mask != "none" and spec.sparse_mode == 8
    missing = spec.q_lens[0] - spec.kv_lens[0] if cut else 0
    if cut:
        kv_start = q_start + missing
    spec.starts = rng.choice(
        ["none", "q", "kv", "both"] if spec.has_slopes else ["none"] * 9 + ["q", "kv", "both"]
    )
    if missing != 0:
        spec.starts = "both"
    if spec.starts in ("q", "both"):
        spec.arguments["q_start_idx"] = [q_start]
    if spec.starts in ("kv", "both"):
        spec.arguments["kv_start_idx"] = [kv_start, 77]  # only the first counts


def draw(seed: int) -> Spec:
    """The spec with this seed. Always the same one."""
    rng = random.Random(seed)
    layout = rng.choice([*LAYOUTS, "TND"])
    packed = layout == "TND"
    spec = Spec(seed, layout, rng.choice(DTYPES), 0, 1, 1, 1, 1, 1, [], [])
    modes = [0, 1, 2, 3, 4, 6, 7, 8] if packed else [0, 1, 2, 3, 4, 5, 6]
    spec.sparse_mode = rng.choice(modes)
    if rng.random() > 0.12:
        _draw_mask(rng, spec)
    _draw_pse(rng, spec)
    if packed:
        _draw_packed_lengths(rng, spec)
    else:
        _draw_dense_lengths(rng, spec)
    _draw_heads(rng, spec)
    _fit(spec)
    _draw_arguments(rng, spec)
    return spec


def _draw_arguments(rng: random.Random, spec: Spec) -> None:
    kinds = ["none", "none", "none", "philox", "philox", "external", "all"]
    spec.dropout = "none" if spec.rope_dim else rng.choice(kinds)
    spec.strides = rng.choice(
        ["contiguous", "contiguous", "padded", "stepped", "turned", "expanded"]
    )
    # A score that many large terms nearly cancel to is rounded worse than its size says, whoever
    # adds it up (bounds.py, 1): large scores come with few terms, scale = 1 with small queries.
    large = ["large"] if spec.head_dim <= 16 else []
    spec.scale_kind = rng.choice(["usual"] * 6 + ["one", "zero", "negative", *large])
    scales = {
        "usual": 1.0,
        "one": math.sqrt(spec.head_dim),
        "zero": 0.0,
        "negative": -1.0,
        "large": 4.0,
    }
    arguments = spec.arguments
    arguments["scale"] = scales[spec.scale_kind] / math.sqrt(spec.head_dim)
    arguments["sparse_mode"] = spec.sparse_mode
    if spec.pse_type != 1:
        arguments["pse_type"] = spec.pse_type
    _draw_starts(rng, spec)
    pre, following = _tockens(rng, spec)
    if spec.pse == "compressed" and spec.sparse_mode in (0, 4):
        pre, following = max(spec.kv_lens) + rng.choice([0, 9]), 0
    arguments["pre_tockens"], arguments["next_tockens"] = pre, following
    if spec.mask != "none" and spec.sparse_mode in (5, 6):
        arguments["prefix"] = _draw_prefix(rng, spec)
    arguments["inner_precise"] = rng.choice([0, 0, 1, 2])
    if spec.is_packed:
        arguments["softmax_layout"] = rng.choice(["", "TND"])
    arguments["sink"] = rng.random() < 0.3
    if spec.dropout == "all":
        arguments["keep_prob"] = 1e-10
    elif spec.dropout != "none":
        alone = [1.0] if spec.dropout == "external" else []
        arguments["keep_prob"] = rng.choice([0.9, 0.8, 0.5, 0.3, 0.999, *alone])
    elif rng.random() < 0.1:
        arguments["keep_prob"] = 1 - 1e-10
    if spec.dropout == "philox":
        arguments["seed"] = rng.choice([1, 2, rng.getrandbits(31), rng.getrandbits(62) + 1])
        arguments["offset"] = rng.choice([0, 12, rng.getrandbits(40)])
