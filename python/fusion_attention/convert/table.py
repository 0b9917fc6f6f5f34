"""What corresponds to what, for readers: the command line prints it, docs/porting.md shows it."""

COLUMNS = ("", "npu_fusion_attention", "SDPA", "FlexAttention", "flash-attn")

ROWS = (
    ("tensors", "BSH SBH BSND BNSD TND", "[B, N, S, D]", "[B, N, S, D]", "[B, S, N, D], [T, N, D]"),
    ("scale, by default", "1.0", "1/sqrt(D)", "1/sqrt(D)", "1/sqrt(D)"),
    ("True in a mask", "hides", "shows", "shows", "no masks"),
    ("causal, top left", "sparse_mode 2", "is_causal", "row >= key", "Sq == Skv only"),
    ("causal, bottom right", "sparse_mode 3", "mask", "row + Skv - Sq >= key", "causal"),
    ("window, bottom right", "sparse_mode 4: pre, next", "mask", "mask_mod", "window_size"),
    ("window without a bound", "2147483647", "-", "-", "-1"),
    ("window of w keys", "pre = w - 1, next = 0", "mask", "row - key < w", "(w - 1, 0)"),
    ("prefix LM", "sparse_mode 6: prefix", "mask", "mask_mod", "refused"),
    ("any mask", "sparse_mode 1", "attn_mask", "mask_mod", "refused"),
    ("packed sequences", "TND, [2, 5, 9]", "mask", "mask_mod", "cu_seqlens [0, 2, 5, 9]"),
    ("bias after scaling", "v2: pse, pse_type 0", "attn_mask", "score_mod", "refused"),
    ("bias before scaling", "pse", "attn_mask = pse * scale", "score_mod", "refused"),
    ("ALiBi", "v2: pse_type 2, top left", "attn_mask", "score_mod", "alibi_slopes, bottom right"),
    ("dropout", "keep_prob = 1 - p", "dropout_p", "refused", "dropout_p"),
    ("log of the softmax's sum", "max + log(sum)", "-", "return_aux", "softmax_lse"),
    ("sink", "sink", "refused", "refused", "refused"),
    ("softcap", "refused", "-", "refused", "refused"),
    ("rows that see no key", "0", "0 (NaN before 2.5)", "0", "0"),
)


def as_text() -> str:
    """Returns the table in columns of equal width.

    Example:
        >>> as_text().splitlines()[3].split("  ")[0]
        'True in a mask'
    """
    widths = [max(len(row[i]) for row in (COLUMNS, *ROWS)) for i in range(len(COLUMNS))]
    lines = []
    for row in (COLUMNS, *ROWS):
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def as_markdown() -> str:
    """Returns the table as docs/porting.md shows it.

    Example:
        >>> print(as_markdown().splitlines()[4])
        | True in a mask | hides | shows | shows | no masks |
    """
    lines = [COLUMNS, ("---",) * len(COLUMNS), *ROWS]
    return "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in lines)
