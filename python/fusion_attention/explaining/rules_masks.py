"""Lint rules about what is in atten_mask: its polarity, its type, its shape, rows without a key."""

from collections.abc import Iterator

import torch

from fusion_attention.explaining import words
from fusion_attention.explaining.findings import Case, Finding


def inverted(case: Case) -> Iterator[Finding]:
    """L03: a mask that keeps what it should mask."""
    visible, facts = case.visible, case.facts
    if visible is None or facts is None or facts.mask != "dense" or not visible.known:
        return
    kinds = {pattern.kind for pattern in visible.patterns}
    reverse, judged = visible.reversed_rows
    exactly = "anticausal" in kinds and kinds <= {"anticausal", "all", "nothing"}
    # Causal masks that are inverted together with padding, windows or documents.
    if exactly or (judged >= 8 and reverse > judged // 2):
        who = "each query sees" if exactly else f"{reverse} of {judged} queries see"
        own = "its" if exactly else "their"
        yield Finding(
            "L03",
            "wrong",
            f"atten_mask is inverted: {who} later keys but not {own} own",
            "In atten_mask True (1) means masked, the opposite of PyTorch's "
            "scaled_dot_product_attention; this mask keeps the future and masks the past.",
            "Pass atten_mask.logical_not().",
        )
        return
    if visible.selfless == visible.distinct > 0:
        yield Finding(
            "L03",
            "risk",
            "atten_mask hides each query's own key, though each query sees others",
            "In atten_mask True (1) means masked. A mask that is True for the keys to attend to, "
            "such as those of the same document, leaves all others.",
            "Pass atten_mask.logical_not(), unless no token is meant to see itself.",
        )
        return
    tails = [p for p in visible.patterns if p.kind == "columns" and p.begin > 0]
    if tails and kinds <= {"columns", "nothing"} and all(p.end == facts.kv_len for p in tails):
        shown = max(tails, key=lambda p: p.begin)
        whole = "nothing" in kinds  # a batch without padding sees nothing at all
        if whole or shown.begin > facts.kv_len // 2:
            yield Finding(
                "L03",
                "risk" if whole else "advice",
                f"atten_mask keeps only the last {shown.end - shown.begin} of {shown.end} keys: "
                "it looks like an inverted padding mask",
                "In atten_mask True (1) means masked. A mask that is True for the real tokens "
                "leaves the padding.",
                "Pass atten_mask.logical_not(), unless the padding is on the left or these are the "
                "keys of another block.",
            )


def blind_rows(case: Case) -> Iterator[Finding]:
    """L03, L12: rows that see no key."""
    visible, facts = case.visible, case.facts
    if visible is None or facts is None or facts.mask == "none":
        return
    keys = {span.index: span.kv_len for span in facts.spans}
    blind = [run for run in visible.empty_ranges if keys.get(run[0], 1) > 0]
    if not blind:  # rows of sequences without keys are L07's
        return
    sum_shown = "3.4028235e38" if facts.invalid_row_mode else "Skv"
    zero = (
        f"Here they give 0, softmax_max -3.4028235e38 and softmax_sum {sum_shown}, and vanish in a "
        "merge of partial results."
    )
    sequence, _, first, end = blind[0]
    rows = f"row {first}" if end == first + 1 else f"rows {first} to {end - 1}"
    where = f"such as {rows} of {'sequence' if facts.packed else 'batch'} {sequence}"
    count = words.many(visible.empty_rows, "row")
    if facts.mask == "dense":
        if any(inverted(case)):  # which explains it
            return
        device = "On the device they give 0 with inner_precise=2, and a mean over value without."
        yield Finding(
            "L03",
            "advice",
            f"atten_mask leaves {count} without a key, {where}",
            f"{zero} {device}",
            "Leave it if these are padding or blocks of a ring; otherwise check the polarity: "
            "True masks.",
        )
        return
    shorter = facts.sparse_mode == 3
    yield Finding(
        "L12",
        "risk",
        f"{count} without a key, {where}",
        (
            "sparse_mode=3 aligns the diagonal at the bottom right: with Sq > Skv the first "
            f"Sq - Skv rows are above all keys. {zero}"
            if shorter
            else f"The band or prefix ends before the first key of these rows. {zero}"
        ),
        "Use sparse_mode=2 if query i is meant to see the keys up to i."
        if shorter
        else f"Raise {case.reading.spelling('next_tockens')} if these rows matter.",
    )


def mask_type(case: Case) -> Iterator[Finding]:
    """L03: masks of numbers."""
    mask, data = case.reading.tensor("atten_mask"), case.reading.data("atten_mask")
    if mask is None or mask.dtype == torch.bool:
        return
    if mask.dtype == torch.uint8:
        if data is not None and data.numel() and data.max() > 1:
            yield Finding(
                "L03",
                "risk",
                f"atten_mask holds values above 1 (such as {int(data.max())})",
                "Here any non-zero byte masks; the device promises a meaning for 0 and 1 only.",
                "Pass atten_mask.bool().",
            )
        return
    additive = mask.is_floating_point() and (data is None or bool((data < 0).any()))
    name = str(mask.dtype).removeprefix("torch.")
    yield Finding(
        "L03",
        "wrong",
        f"atten_mask is {name}" + (": an additive mask" if additive else ""),
        "The operator takes bool or uint8, True (1) masks. "
        + (
            "An additive mask holds 0 where a key is kept: .bool() alone keeps that meaning, "
            "inverting it afterwards does not."
            if additive
            else "Other types are refused, here and on the device."
        ),
        "Pass atten_mask=(mask < 0) for masks of 0 and large negative numbers; real biases belong "
        "in pse."
        if additive
        else "Pass atten_mask.bool() if 1 masks, (mask == 0) if 1 keeps.",
    )


def mask_shape(case: Case) -> Iterator[Finding]:
    """L04: shapes that broadcast in PyTorch, but not in the operator."""
    call, facts = case.reading, case.facts
    mask = call.tensor("atten_mask")
    if mask is None or facts is None or "atten_mask" not in facts.without or facts.packed:
        return
    mode = call.integer("sparse_mode")
    shape, (rows, keys) = tuple(mask.shape), (facts.q_len, facts.kv_len)
    batch, heads = facts.sequences, facts.q_heads
    compressed = {(2048, 2048), (3072, 2048)}
    # Other modes' masks are L05's; a mask of the right rows and keys may lack an axis alone.
    if mode not in (0, 1, 5) or shape[-2:] in compressed or shape[-2:] == (rows, keys):
        if len(shape) == 3 and shape[-2:] == (rows, keys):
            mends = {
                heads: f"Pass atten_mask.expand{(batch, heads, rows, keys)}.",
                batch: "Pass atten_mask.unsqueeze(1).",
            }
            yield _unsuitable(shape, mends.get(shape[0], f"Build it for B={batch}, N={heads}."))
        return
    if len(shape) == 2 and shape == (batch, keys):
        full = (batch, 1, rows, keys)
        yield _unsuitable(shape, f"Pass atten_mask[:, None, None, :].expand{full}.")
    elif shape[:1] in ((1,), (batch,)) and shape[1:] in ((1, 1, keys), (heads, 1, keys)):
        lead = shape[:2] if shape[1] == 1 else (batch, heads)
        yield _unsuitable(shape, f"Pass atten_mask.expand{(*lead, rows, keys)}.")
    elif shape[-2:] == (batch, batch) and call.layout in ("BSH", "SBH"):
        other = {"BSH": "SBH", "SBH": "BSH"}[call.layout]
        yield _unsuitable(
            shape, f"Pass input_layout='{other}': there Sq is {batch}, as in the mask."
        )
    else:
        yield _unsuitable(shape, f"Build it for Sq={rows} rows and Skv={keys} keys.")


def _unsuitable(shape: tuple[int, ...], mend: str) -> Finding:
    return Finding(
        "L04",
        "wrong",
        f"atten_mask of shape {list(shape)} does not fit: rows and keys are not broadcast",
        "Supported are [Sq, Skv], [1, 1, Sq, Skv], [B, 1, Sq, Skv] and [B, N, Sq, Skv]; the device "
        "answers EZ9999 'get unsupported atten_mask shape'.",
        mend,
    )


RULES = (
    inverted,
    blind_rows,
    mask_type,
    mask_shape,
)
