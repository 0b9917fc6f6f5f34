"""Lint rules about sparse_mode and the mask that belongs to it, and what neither of them reads."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fusion_attention._arguments import UNLIMITED
from fusion_attention._masks import causal_mask, prefix_mask
from fusion_attention.explaining.facts import Facts
from fusion_attention.explaining.findings import Case, Finding
from fusion_attention.explaining.patterns import Pattern
from fusion_attention.explaining.reading import Reading

_CAUSAL = "torch.ones(2048, 2048, dtype=torch.bool).triu(1)"
_COMPRESSED = {
    2: f"atten_mask={_CAUSAL}",
    3: f"atten_mask={_CAUSAL}",
    4: f"atten_mask={_CAUSAL}",
    6: "the 3072 x 2048 mask: triu(ones(2048, 2048), 1) above 1024 rows of 1024 zeros, 1024 ones",
    7: f"atten_mask={_CAUSAL}",
    8: f"atten_mask={_CAUSAL}",
}
_MIB = 1 << 20


def mode_without_mask(case: Case) -> Iterator[Finding]:
    """L01: the operator reads sparse_mode only where there is an atten_mask."""
    call = case.reading
    mode = call.integer("sparse_mode")
    if mode == 0 or call.tensor("atten_mask") is not None:
        return
    if "expected sparse_mode" in str(case.error):  # a mode that there is not has no effect to tell
        return
    one_row = case.facts is not None and all(span.q_len <= 1 for span in case.facts.spans)
    harmless = mode == 1 or (mode == 3 and one_row)
    yield Finding(
        "L01",
        "advice" if harmless else "wrong",
        f"sparse_mode={mode} without atten_mask has no effect: every query sees every key",
        "Without atten_mask the operator ignores sparse_mode, "
        f"{call.spelling('pre_tockens')}, {call.spelling('next_tockens')} and prefix, and computes "
        "full attention; the device does so without a word."
        + (" Here that is the same." if harmless and mode == 3 else ""),
        f"Pass {_COMPRESSED[mode]}."
        if mode in _COMPRESSED
        else "Pass the full atten_mask (True masks), or sparse_mode=0 if full attention is meant.",
    )


def compressed_pattern(case: Case) -> Iterator[Finding]:
    """L05: modes 2, 3, 4, 6, 7 and 8 read one canonical matrix, the others the mask itself."""
    call = case.reading
    mask, mode = call.tensor("atten_mask"), call.integer("sparse_mode")
    if mask is None or mask.dim() < 2:
        return
    needed = (3072, 2048) if mode == 6 else (2048, 2048)
    shape = tuple(mask.shape[-2:])
    if mode in (0, 1, 5):
        if case.facts and "atten_mask" in case.facts.without and shape in (needed, (3072, 2048)):
            yield Finding(
                "L05",
                "wrong",
                f"atten_mask is the compressed {shape[0]} x 2048 mask, but sparse_mode={mode} "
                "reads a full one",
                "The compressed mask has a meaning in sparse_mode 2, 3, 4, 6, 7 and 8 alone.",
                "Set sparse_mode=3 for causal attention (2 to align it at the top left).",
            )
        return
    if mode not in _COMPRESSED:
        return
    if shape != needed:
        yield Finding(
            "L05",
            "wrong",
            f"sparse_mode={mode} takes the {needed[0]} x 2048 mask, not one of {list(mask.shape)}",
            "These modes are computed from a rule; the mask is the same matrix for all lengths.",
            f"Pass {_COMPRESSED[mode]}, or this mask with sparse_mode=1.",
        )
        return
    data = call.data("atten_mask")
    difference = _difference(data) if data is not None else ""
    if difference:
        yield Finding(
            "L05",
            "wrong",
            f"atten_mask is not the compressed mask of sparse_mode={mode}: {difference}",
            "True (1) masks. The device reads windows of this matrix, so any other content gives "
            "garbage there; here it is refused where it shows.",
            f"Pass {_COMPRESSED[mode]}.",
        )


def _difference(mask: Tensor) -> str:
    """How a mask of the right size differs from the canonical one; "" if it does not."""
    given = mask.reshape(-1, *mask.shape[-2:])
    canonical = causal_mask() if given.shape[1] == 2048 else prefix_mask()
    if mask.element_size() == 1 and all(torch.equal(x.view(torch.bool), canonical) for x in given):
        return ""  # nearly always, and without a copy
    masked = given != 0
    triangle, upper = canonical[:2048], masked[:, :2048]
    if (upper == triangle).all():
        fine = (masked == canonical).all()
        return "" if fine else "its last 1024 rows are not 1024 zeros, then 1024 ones"
    named = {
        "it is inverted": ~triangle,
        "it is all False and masks nothing": torch.zeros_like(triangle),
        "it is all True and masks everything": torch.ones_like(triangle),
        "it is transposed (it masks the past)": triangle.T,
        "it also masks the diagonal (diagonal=1 is missing)": triangle | torch.eye(2048).bool(),
    }
    for name, pattern in named.items():
        if (upper == pattern).all():
            return name
    return f"{int((upper != triangle).sum()):,} elements differ"


def clipped(case: Case) -> Iterator[Finding]:
    """L06: tockens that hide what the mask keeps."""
    visible, facts, call = case.visible, case.facts, case.reading
    if visible is None or facts is None or facts.mask != "dense" or facts.sparse_mode != 0:
        return
    pre, following = call.integer("pre_tockens"), call.integer("next_tockens")
    names = f"{call.spelling('pre_tockens')}={pre}, {call.spelling('next_tockens')}={following}"
    if not visible.known:
        if pre >= facts.q_len and following >= 0:
            return
    elif not visible.hidden:
        return
    hides = f"hides {visible.hidden:,} pairs that atten_mask keeps" if visible.known else "may hide"
    copied = {pre, following} & {65535, 65536}
    yield Finding(
        "L06",
        "risk",
        f"the band of {names} {hides}" if visible.known else f"the band of {names} is narrow",
        "sparse_mode=0 keeps a pair where the mask is 0 and the key is in the band. The device "
        "uses the band only to skip tiles: what is kept at its border depends on the kernel."
        + (" 65535 and 65536 are often copied; longer sequences pass them." if copied else ""),
        f"Leave both at the default {UNLIMITED} if the mask alone is meant, or use sparse_mode=1.",
    )


def compressible(case: Case) -> Iterator[Finding]:
    """L16: a full mask that one of the compressed ones says as well."""
    visible, facts = case.visible, case.facts
    mask = case.reading.tensor("atten_mask")
    if visible is None or facts is None or mask is None or facts.mask != "dense":
        return
    if not visible.known or mask.numel() <= 4 * _MIB or len(visible.patterns) != 1:
        return
    (pattern,) = visible.patterns
    form = "" if facts.packed else _compressed_form(pattern, facts, case.reading)
    if not form:
        return
    kept = 0 if pattern.kind == "all" else (6 if pattern.kind == "prefix" else 4) * _MIB
    masked = f" and the {kept // 2048} x 2048 mask" if kept else ""
    yield Finding(
        "L16",
        "advice",
        f"the full atten_mask says what {form} says",
        "A full mask is built, kept and read tile by tile; a compressed one is a rule that skips "
        "the masked tiles.",
        f"Use {form}{masked}: {(mask.numel() - kept) / _MIB:,.0f} MiB less.",
    )


def _compressed_form(pattern: Pattern, facts: Facts, call: Reading) -> str:
    """The arguments that say the same without a full mask; "" if there are none."""
    shift = facts.kv_len - facts.q_len  # mode 4 counts from the bottom right
    pre, following = call.spelling("pre_tockens"), call.spelling("next_tockens")
    match pattern.kind:
        case "all":
            return "no atten_mask"
        case "causal" if pattern.end == shift + 1:
            return "sparse_mode=3"
        case "causal" if pattern.end == 1:
            return "sparse_mode=2"
        case "causal":
            return f"sparse_mode=4, {following}={pattern.end - 1 - shift}"
        case "band":
            bounds = shift - pattern.begin, pattern.end - 1 - shift
            return f"sparse_mode=4, {pre}={bounds[0]}, {following}={bounds[1]}"
        case "prefix" if facts.sequences <= 32:
            return f"sparse_mode=6, prefix={[pattern.end] * facts.sequences}"
    return ""


def unread(case: Case) -> Iterator[Finding]:
    """L17: arguments that this call does not read."""
    call = case.reading
    mode, mask = call.integer("sparse_mode"), call.tensor("atten_mask")
    tockens = [
        f"{call.spelling(name)}={call[name]}"
        for name in ("pre_tockens", "next_tockens")
        if call.integer(name) < 65535
    ]
    if mask is None and mode == 0 and tockens:
        yield Finding(
            "L17",
            "advice",
            f"{' and '.join(tockens)} without atten_mask: every query sees every key",
            "Without atten_mask the operator masks nothing.",
            f"For a causal call pass {_COMPRESSED[3]} with sparse_mode=3.",
        )
    if call.integers("prefix") and mode not in (5, 6):
        yield Finding(
            "L17",
            "risk",
            f"prefix has no effect in sparse_mode={mode}",
            "Only sparse_mode 5 and 6 read it.",
            "Set sparse_mode=6 and pass the 3072 x 2048 mask.",
        )


def open_band(case: Case) -> Iterator[Finding]:
    """L21: a band that was given no end."""
    facts, call = case.facts, case.reading
    if facts is None or facts.mask != "compressed" or facts.sparse_mode != 4:
        return
    if facts.next_tockens < UNLIMITED or all(span.q_len <= 1 for span in facts.spans):
        return
    name = call.spelling("next_tockens")
    whole = facts.pre_tockens >= UNLIMITED
    yield Finding(
        "L21",
        "risk",
        f"sparse_mode=4 with {name}={facts.next_tockens}: "
        + ("nothing is masked" if whole else "every query sees all keys after its own"),
        "The band is what the tockens say; atten_mask is the same for all bands and makes none "
        f"causal. {facts.next_tockens} is the default.",
        f"Pass {name}=0 if no query is meant to see later keys.",
    )


def left_up_rectangle(case: Case) -> Iterator[Finding]:
    """L18: causal attention from the top left where lengths differ."""
    facts = case.facts
    if facts is None or facts.mask != "compressed" or facts.sparse_mode != 2:
        return
    unseen = [span for span in facts.spans if 0 < span.q_len < span.kv_len]
    if unseen:
        span = unseen[0]
        yield Finding(
            "L18",
            "advice" if facts.packed else "risk",  # so is card 1 of a cut batch
            f"sparse_mode=2 with Sq={span.q_len} < Skv={span.kv_len}: the last "
            f"{span.kv_len - span.q_len} keys are seen by no query",
            "Mode 2 aligns the diagonal at the top left. New queries against a longer cache are "
            "aligned at the bottom right.",
            "Use sparse_mode=3 if the last query is meant to see the last key.",
        )


RULES = (
    mode_without_mask,
    compressed_pattern,
    clipped,
    compressible,
    unread,
    left_up_rectangle,
    open_band,
)
