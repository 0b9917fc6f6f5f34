"""Makes recorded calls again and reports where their results part from the record, or a device.

What is compared with what, and why it may part, is decided in verdicts.py.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fusion_attention._errors import FeatureError
from fusion_attention.recording import dumps, saved, verdicts
from fusion_attention.recording.listing import calls_in
from fusion_attention.recording.rerun import check
from fusion_attention.recording.saved import SavedCall
from fusion_attention.recording.verdicts import Comparison


@dataclass(frozen=True)
class CallReport:
    """What the replay of one call showed.

    Attributes:
        number: The call's position in the record, from 1.
        title: Its function, layout, shape and dtype.
        folder: Where it is.
        comparisons: Every result that was compared.
        notes: What to know about them, such as a likely cause.
    """

    number: int
    title: str
    folder: Path
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]

    @property
    def same(self) -> bool:
        """Whether something was compared and nothing parts."""
        return bool(self.comparisons) and all(x.parts is None for x in self.comparisons)

    def __str__(self) -> str:
        verdict = "same" if self.same else "PARTS" if self.comparisons else "nothing to compare"
        lines = [f"{self.number:>4}  {self.title}: {verdict}"]
        for how in dict.fromkeys(x.how for x in self.comparisons if x.parts is None):
            names = [x.name for x in self.comparisons if x.how == how and x.parts is None]
            lines.append(f"      by {how}: {', '.join(names)}")
        for comparison in self.comparisons:
            if comparison.parts is not None:
                text = str(comparison.parts).replace("\n", "\n      ")
                lines.append(f"      {comparison.name} parts by {comparison.how}: {text}")
        return "\n".join([*lines, *(f"      note: {note}" for note in self.notes)])


@dataclass(frozen=True)
class Report:
    """What the replay of a record showed, call by call."""

    calls: tuple[CallReport, ...]

    @property
    def same(self) -> bool:
        """Whether every call could be compared and none parts."""
        return all(call.same for call in self.calls)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.calls), self.summary])

    @property
    def summary(self) -> str:
        """The last line."""
        parted = sum(not call.same for call in self.calls)
        if len(self.calls) == 1:
            return f"1 call: {'not ' if parted else ''}the same"
        return f"{len(self.calls)} calls: {f'{parted} not the same' if parted else 'all the same'}"


def replay(
    folder: str | Path,
    *,
    against: str | Path | None = None,
    threads: int | None = None,
    call: int | str | None = None,
    tolerance: float | None = None,
) -> Report:
    """Makes recorded calls again, with their backward passes, and compares the results.

    Everything in the record is verified before anything runs. Results are compared bit by bit with
    the recorded ones if those come from a CPU, within a tolerance if they come from a device or
    from `against`.

    Args:
        folder: What `record` or FUSION_ATTENTION_RECORD wrote, or the folder of one call in it.
        against: Another record of the same program, or a device's results: a .safetensors or .pt
            file of tensors named out, softmax_max, softmax_sum, dq, dk, dv, dpse, dsink, or a
            folder of such files named 1.safetensors, 2.pt, ... by the numbers of the calls; or the
            dump_tensor_data of msprobe, the vendor's tool (forward results).
        threads: How many threads to use; None leaves it as it is.
        call: Only this call: its number, from 1, or the name of its folder.
        tolerance: Compare within this tolerance: an element may be off by so much of itself plus so
            much of the tensor's root mean square. None: as said above, by the dtype of query.

    Raises:
        FeatureError: The record is damaged, was changed, or asks for what cannot be.

    Example:
        >>> import tempfile, torch
        >>> from fusion_attention import npu_fusion_attention, record, replay
        >>> query = torch.randn(1, 2, 64, 16)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with record(folder):
        ...         _ = npu_fusion_attention(query, query, query, 2, "BNSD", keep_prob=0.9)
        ...     report = replay(folder, threads=1)
        >>> report.same, [x.name for x in report.calls[0].comparisons][:3]
        (True, ['out', 'softmax_max', 'softmax_sum'])
    """
    reports = replay_each(folder, against=against, threads=threads, call=call, tolerance=tolerance)
    return Report(tuple(reports))


def replay_each(
    folder: str | Path,
    *,
    against: str | Path | None = None,
    threads: int | None = None,
    call: int | str | None = None,
    tolerance: float | None = None,
) -> Iterator[CallReport]:
    """The same, giving each call's report as soon as it is known."""
    chosen, folders = _choose(Path(folder), call)
    others: list[dumps.Other | None] = [None] * len(chosen)
    if against is not None:
        others = list(dumps.find(Path(against), chosen, folders))
    for _, recorded in chosen:
        if recorded.kept == "all":
            check(recorded)
    with _threads(threads):
        for (number, recorded), other in zip(chosen, others, strict=True):
            comparisons, notes = verdicts.judge(recorded, other, tolerance)
            title = verdicts.title(recorded)
            yield CallReport(number, title, recorded.folder, tuple(comparisons), tuple(notes))


def _choose(folder: Path, call: int | str | None) -> tuple[list[tuple[int, SavedCall]], list[Path]]:
    """Returns the calls to replay with their numbers, and the folders of all calls."""
    folders = [folder] if (folder / "call.json").exists() else calls_in(folder)
    if not folders:
        raise FeatureError(f"{folder} holds no recorded calls")
    numbered = list(enumerate(folders, 1))
    if call is not None:
        wanted = [(n, path) for n, path in numbered if str(call) in (str(n), path.name)]
        if not wanted:
            raise FeatureError(f"{folder} has no call {call}, but {len(folders)} other")
        numbered = wanted
    return [(number, saved.read(path)) for number, path in numbered], folders


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    if count is None:
        yield
        return
    if count < 1:
        raise FeatureError(f"the number of threads must be positive, not {count}")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
