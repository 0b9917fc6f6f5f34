"""A report as text for a terminal: the verdict first, then what to mend, then everything else."""

from collections.abc import Iterable, Iterator
from textwrap import wrap
from typing import TYPE_CHECKING

from fusion_attention.explaining import blocks, words
from fusion_attention.explaining.facts import Facts, Span
from fusion_attention.explaining.panels import panels_of, show_all
from fusion_attention.explaining.visible import Visible

if TYPE_CHECKING:
    from fusion_attention.explaining.report import Report

_LABEL = 12  # columns of what stands in front of a line
_SHOWN = 6  # sequences that are listed
_MATRICES = 2
_CELLS = 16  # along the edge of a matrix that is too large for a cell a token


def render(report: "Report", width: int, charset: str) -> str:
    """Returns the whole text, no line longer than `width`."""
    rule = ("─" if charset == "unicode" else "-") * width
    lines = [
        report.reading.call.function,
        *wrap(report.verdict, width),
        rule,
        *_error(report, width),
        *_findings(report, width),
    ]
    for title, body in _sections(report, width, charset):
        lines += [title, *(f"  {line}".rstrip() for line in body), ""]
    while lines[-1] == "":
        lines.pop()
    text = "\n".join(lines)
    return text if charset == "unicode" else text.encode("ascii", "replace").decode()


def _error(report: "Report", width: int) -> Iterator[str]:
    if report.error is not None:
        yield "What the operator says"
        yield from _hanging("", report.error, width - 2, 2)
        yield ""


def _findings(report: "Report", width: int) -> Iterator[str]:
    for finding in report.findings:
        head = f"{finding.severity.upper()} {finding.id}  "
        yield from _hanging(head, finding.title, width, 4)
        yield from _hanging("    why   ", finding.why, width, 10)
        yield from _hanging("    mend  ", finding.mend, width, 10)
        yield ""


def _hanging(head: str, text: str, width: int, indent: int) -> list[str]:
    """Wraps text behind a head, later lines indented."""
    return wrap(
        text,
        width,
        initial_indent=head or " " * indent,
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
    )


def _labelled(label: str, text: str, width: int) -> list[str]:
    return _hanging(f"{label:<{_LABEL}}", text, width - 2, _LABEL)


def _sections(report: "Report", width: int, charset: str) -> Iterator[tuple[str, list[str]]]:
    facts = report.facts
    yield "Tensors", _tensors(report, width)
    if facts is None:
        return
    title = "Mask"
    if facts.without:
        title += f" (of the call without {', '.join(facts.without)})"
    if report.visible is None:
        what = "nothing can be said about it before its shape and type are right"
        yield title, _labelled("atten_mask", what, width)
    else:
        yield title, _mask(facts, report.visible, width, charset)
    yield "Work", _work(report, width)
    yield "Statistics", _statistics(facts, width)
    yield "Dropout", _list("weights", words.dropout_in_words(facts, report.reading), width)
    yield "Runs on", _machine(facts, width)


def _list(label: str, texts: Iterable[str], width: int) -> list[str]:
    lines: list[str] = []
    for index, text in enumerate(texts):
        lines += _labelled(label if index == 0 else "", text, width)
    return lines


def _tensors(report: "Report", width: int) -> list[str]:
    reading, facts = report.reading, report.facts
    lines = []
    names = ("query", "key", "value", "dy", "pse", "query_rope", "key_rope", "atten_mask", "sink")
    for name in (*names, "dropout_mask"):
        tensor = reading.tensor(name)
        if tensor is not None:
            meta = ", no data" if tensor.is_meta else ""
            dtype = str(tensor.dtype).removeprefix("torch.")
            lines += _labelled(name, f"{dtype} {list(tensor.shape)}{meta}", width)
    if facts is None:
        sizes = " ".join(f"{name}={size}" for name, size in reading.sizes.items())
        layout = f"{reading.layout or reading['input_layout']!s}: {sizes or 'the ranks do not fit'}"
        return lines + _labelled("read as", layout, width)
    group = facts.q_heads // facts.kv_heads
    shared = f" (each serves {group} query heads)" if group > 1 else ""
    lengths = (
        f"{words.many(facts.sequences, 'packed sequence')}, T={facts.q_len:,} and {facts.kv_len:,}"
        if facts.packed
        else f"B={facts.sequences:,} Sq={facts.q_len:,} Skv={facts.kv_len:,}"
    )
    rope = f"+{facts.rope_dim} (rope)" if facts.rope_dim else ""
    lines += _labelled(
        "read as",
        f"{facts.layout}: {lengths}, N={facts.q_heads} Nkv={facts.kv_heads}{shared}, "
        f"D={facts.head_dim}{rope} Dv={facts.value_dim}, {facts.dtype}, scale={facts.scale:g}",
        width,
    )
    if facts.pse != "none":
        lines += _labelled("pse", words.bias_in_words(facts, reading), width)
    if facts.packed:
        lines += _sequences(facts, width)
    return lines


def _sequences(facts: Facts, width: int) -> list[str]:
    def shown(span: Span) -> str:
        q_end, kv_end = span.q_begin + span.q_len, span.kv_begin + span.kv_len
        return (
            f"{span.index}: queries {span.q_begin}-{q_end} (Sq={span.q_len}), "
            f"keys {span.kv_begin}-{kv_end} (Skv={span.kv_len})"
        )

    texts = [shown(span) for span in facts.spans[:_SHOWN]]
    if len(facts.spans) > _SHOWN:
        texts.append(f"... and {len(facts.spans) - _SHOWN} more")
    return _list("sequences", texts, width)


def _mask(facts: Facts, visible: Visible, width: int, charset: str) -> list[str]:
    lines = _labelled(f"mode {facts.sparse_mode}", words.mode_in_words(facts), width)
    rows = facts.q_heads * sum(span.count * span.q_len for span in facts.spans)
    if not visible.known:
        lines += _labelled(
            "unknown", "atten_mask has no data: what follows is an upper bound", width
        )
    lines += _labelled(
        "pairs",
        f"{visible.pairs:,} of {facts.numels:,} (row, key) pairs are visible "
        f"({words.share(visible.pairs, facts.numels)}), over all heads",
        width,
    )
    if visible.empty_rows:
        noun = "sequence" if facts.packed else "batch"
        runs = [
            f"{first}-{end - 1}"
            + (f" of {noun} {sequence}" if visible.distinct > 1 else f" of every {noun}")
            + (f" head {head}" if head >= 0 else "")
            for sequence, head, first, end in visible.empty_ranges[:4]
        ]
        blind = f"{visible.empty_rows:,} of {rows:,} rows see no key: rows {', '.join(runs)}"
        more = ", ..." if len(visible.empty_ranges) > len(runs) else ""
        lines += _labelled("blind rows", blind + more, width)
    else:
        lines += _labelled("blind rows", f"none: each of {rows:,} rows sees a key", width)
    if facts.mask == "compressed":
        lines += _labelled(
            "", "(the mode's rule decides; the compressed mask is only checked)", width
        )
    panels = panels_of(facts, visible, _MATRICES, _CELLS)
    if panels:
        lines += ["", *blocks.beside(panels, width - 2, charset), ""]
        if not show_all(facts, visible, panels):
            lines.append(f"{visible.distinct:,} score matrices may differ; these are some of them")
        lines.append(blocks.legend(panels, charset))
    return lines


def _work(report: "Report", width: int) -> list[str]:
    memory = dict(report.memory)
    scores, gradients = memory.pop("scores"), memory.pop("gradients")
    lines = []
    if report.flops is not None:
        forward, backward = map(words.flops, report.flops)
        lines += _labelled("flops", f"forward {forward}, backward {backward}", width)
    operands = ", ".join(f"{name} {words.size(count)}" for name, count in memory.items())
    lines += _labelled(
        "memory", f"{operands}; the gradients would take {words.size(gradients)}", width
    )
    never = f"the {words.size(scores)} that a float32 score matrix would take are never stored"
    return lines + _labelled("", never, width)


def _statistics(facts: Facts, width: int) -> list[str]:
    sink = " (sink included)" if facts.has_sink else ""
    texts = [
        f"softmax_max and softmax_sum: float32 {list(facts.statistics_shape)}, each row's value 8 "
        f"times; of the scaled scores, natural logarithm's units{sink}"
    ]
    if facts.packed:
        texts.append(
            "memory order: token, head (softmax_layout='TND')"
            if facts.softmax_layout_tnd
            else "memory order: for each sequence a block [N, Sq, 8], although the shape says "
            "[T, N, 8]; softmax_layout='TND' stores what the shape says"
        )
    lonely = "3.4028235e38" if facts.invalid_row_mode else "its Skv"
    texts.append(
        "a row that sees no key has max = its sink, sum = 1"
        if facts.has_sink
        else f"a row that sees no key has max = -3.4028235e38, sum = {lonely}, and output 0"
    )
    return _list("values", texts, width)


def _machine(facts: Facts, width: int) -> list[str]:
    target = f", SIMD target {facts.target}" if facts.target != "none" else ""
    threads = words.many(facts.threads, "thread")
    return _labelled(
        "backend", f"{facts.backend}{target}, {threads} (no result depends on their number)", width
    )
