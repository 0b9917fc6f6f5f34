"""Report: everything that explain found out about a call, as values; and its forms for readers.

The values are computed here from the facts; how they look in a terminal is text.py's business, how
they look as pictures picture.py's.
"""

import functools
import html
import sys
from dataclasses import dataclass
from pathlib import Path

from fusion_attention._errors import FeatureError
from fusion_attention.explaining.facts import Facts
from fusion_attention.explaining.findings import Case, Finding
from fusion_attention.explaining.linter import findings_of
from fusion_attention.explaining.reading import Reading
from fusion_attention.explaining.visible import Visible

_RESULTS = ("query", "key", "value")
_OPERANDS = (*_RESULTS, "query_rope", "key_rope", "pse", "atten_mask", "sink", "dropout_mask")


@dataclass(frozen=True)
class Report:
    """What the operator would do with a call. Printing it gives the whole story.

    Attributes:
        reading: The call's arguments under npu_fusion_attention's names.
        error: Why the operator refuses the call; None if it takes it.
        findings: What lint has to say, the gravest first.
        facts: The validated call as the core has it. Of a refused call: without the arguments in
            the way (`facts.without`); None where nothing legal is left.
        visible: The effective mask; None where it cannot be told.
    """

    reading: Reading
    error: str | None
    findings: tuple[Finding, ...]
    facts: Facts | None
    visible: Visible | None

    @property
    def runs(self) -> bool:
        """Whether the operator takes the call."""
        return self.error is None

    @property
    def verdict(self) -> str:
        """The answer in a line."""
        wrong = [finding for finding in self.findings if finding.severity == "wrong"]
        risks = [finding for finding in self.findings if finding.severity == "risk"]
        advice = [finding for finding in self.findings if finding.severity == "advice"]
        cause = wrong[0].title if wrong else ""
        if not self.runs:
            rule = str(self.error).split(", but got")[0].split("expected ")[-1]
            return f"REFUSED: {cause or f'the operator expects {rule}'}."
        if wrong:
            return f"RUNS, BUT WRONG: {cause}."
        if risks:
            return f"Runs, with a risk: {risks[0].title}."
        if advice:
            return f"Runs. Advice: {advice[0].title}."
        return "Runs. Lint has nothing against it."

    @property
    def pairs(self) -> int | None:
        """Unmasked (row, key) pairs over all heads and sequences; None where unknown.

        A dense mask without data (a meta tensor) leaves it unknown.
        """
        return self.visible.pairs if self.visible and self.visible.known else None

    @property
    def flops(self) -> tuple[int, int] | None:
        """Floating point operations of the visible pairs' matrix products: (forward, backward).

        Forward: query @ key.T and weights @ value. Backward: the scores again, and four products
        for the gradients. A multiplication and an addition are two operations.
        """
        if self.pairs is None or self.facts is None:
            return None
        score, value = self.facts.head_dim + self.facts.rope_dim, self.facts.value_dim
        return 2 * self.pairs * (score + value), 2 * self.pairs * (3 * score + 2 * value)

    @functools.cached_property
    def memory(self) -> dict[str, int]:
        """Bytes: of the operands and the results by name, and of what is never stored, "scores".

        "gradients" is what the backward pass returns.
        """
        if self.facts is None:
            return {}
        tensors = {name: self.reading.tensor(name) for name in _OPERANDS}
        found = {name: x.numel() * x.element_size() for name, x in tensors.items() if x is not None}
        width = {"float16": 2, "bfloat16": 2, "float64": 8}.get(self.facts.dtype, 4)
        out = rows = 1
        for extent in self.facts.out_shape:
            out *= extent
        for extent in self.facts.statistics_shape:
            rows *= extent
        found["attention_out"] = out * width
        found["softmax_max and softmax_sum"] = 2 * rows * 4
        differentiable = (*_RESULTS, "query_rope", "key_rope", "pse", "sink")
        found["gradients"] = sum(found.get(name, 0) for name in differentiable)
        found["scores"] = self.facts.numels * 4
        return found

    def text(self, width: int = 100, charset: str = "unicode") -> str:
        """The report for a terminal of `width` columns; charset is "unicode" or "ascii"."""
        from fusion_attention.explaining.text import render

        return render(self, width, charset)

    def __str__(self) -> str:
        encoding = getattr(sys.stdout, "encoding", None) or "ascii"
        try:
            "██▒·".encode(encoding)
        except (UnicodeEncodeError, LookupError):
            return self.text(charset="ascii")
        return self.text()

    def _repr_html_(self) -> str:
        shown = f"<pre>{html.escape(self.text())}</pre>"
        try:
            return self._repr_svg_() + shown
        except FeatureError:  # no matplotlib: the text has a picture too
            return shown

    def _repr_svg_(self) -> str:
        from fusion_attention.explaining.picture import svg_of

        return svg_of(self)

    def save(self, path: str | Path) -> None:
        """Writes the report's picture (.png, .svg), its text (.txt) or both (.html).

        Raises:
            FeatureError: The ending is another one, or a picture is asked for without matplotlib.
        """
        path = Path(path)
        if path.suffix in (".png", ".svg"):
            from fusion_attention.explaining.picture import save

            save(self, path)
        elif path.suffix in (".txt", ".html"):
            text = self.text() if path.suffix == ".txt" else self._repr_html_()
            path.write_text(text + "\n", encoding="utf-8")
        else:
            raise FeatureError(
                f"explain: expected a file ending in .png, .svg, .txt or .html, but got {path}."
            )


def report_of(reading: Reading) -> Report:
    """Explains a call."""
    case = Case(reading)
    error = None if case.error is None else f"{type(case.error).__name__}: {case.error}"
    return Report(reading, error, findings_of(case), case.facts, case.visible)
