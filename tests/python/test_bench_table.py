"""The developers' benchmark: its table is well formed, every way to measure runs on tiny problems.

Nothing here looks at how long something took.
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from fusion_attention import _library
from fusion_attention._errors import FeatureError
from fusion_attention.benchmark.cases import Case
from fusion_attention.benchmark.contestants import Ours
from fusion_attention.benchmark.masks import CAUSAL, Mask

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))

import attention
import compare
import document
import fma_peak
import long_sequence
import measuring
import report
import results
import roofline
import roofline_plot
import running
from targets import TARGETS, Must, Target, Yardstick

EFFORT = measuring.Effort(seconds=0, checked_tokens=64)
TINY = Case(8, q_len=24, kv_len=24).with_heads(2)
SECTIONS = (
    "fp32, of the peak",
    "fp32, other D, of the peak",
    "16-bit without native products, against fp32",
    "native bf16, of the fp32 peak",
    "AVX2 kernels, of AVX2's peak",
    "layout, rows of 1 KiB, against BNSD",
    "layout, rows of 4 KiB, against BNSD",
    "layout, rows of 16 KiB, against BNSD",
    "band, prefix, packed, against causal or full",
    "dense mask or pse, against none",
    "dropout, added time",
    "two threads, against one",
    "small calls, of torch's time",
    "fp32, against torch",
    "native bf16, against torch",
    "against torch where it is not fused",
    "packed sequences against torch in a loop: told, no target",
)


class FakePeak(fma_peak.FmaPeak):
    """The peak as the benchmark's own library would measure it, which tests do not build."""

    def __init__(self, threads: int, target: str) -> None:
        """Takes what FmaPeak takes."""
        self.speed = threads * fma_peak.width_of(target) * 1e9

    def slice(self, seconds: float) -> float:
        """A constant speed."""
        assert 0.5e-3 <= seconds <= 50e-3
        return self.speed


@pytest.fixture(autouse=True)
def fake_peak(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for module in (measuring, roofline, long_sequence):
        monkeypatch.setattr(module, "FmaPeak", FakePeak)
    caches = (measuring._peak, measuring._checked, measuring._contestant, roofline._peak)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for cache in caches:
        cache.cache_clear()


def target(yardstick: Yardstick, rival: object = None, case: Case = TINY, **more: object) -> Target:
    return Target("tiny", case, "backward", yardstick, rival, Must(0.5, 0.5), 1.0, **more)


def test_the_table_is_well_formed() -> None:
    assert tuple(dict.fromkeys(x.section for x in TARGETS)) == SECTIONS
    assert len({x.name for x in TARGETS}) == len(TARGETS)
    for row in TARGETS:
        is_told = row.must is None
        assert is_told == (row.aim is None) == ("told" in row.section), row.name
        assert (row.rival is None) == (row.yardstick == Yardstick.OF_PEAK), row.name
        if is_told:
            continue
        for column in ("Ice Lake", "Zen 4"):
            must = row.limit(column)
            assert row.aim < must if row.yardstick.less_is_better else row.aim > must, row.name


def test_quick_rows_keep_their_kind() -> None:
    for row in TARGETS:
        quick = row.quick()
        assert quick.case.pairs() <= row.case.pairs()
        assert (quick.section, quick.case.mask, quick.case.q_len) == (
            row.section, row.case.mask, row.case.q_len,
        )  # fmt: skip
        if isinstance(row.rival, Case):  # both lose as many heads, or a ratio would be another one
            factor = row.case.q_heads // quick.case.q_heads
            assert row.rival.q_heads == factor * quick.rival.q_heads or (
                row.case.q_heads != row.rival.q_heads
            )
    layouts = [x for x in TARGETS if x.section.startswith("layout")]
    assert all(x.quick() == x for x in layouts)


@pytest.mark.parametrize("row", TARGETS, ids=lambda row: row.name)
def test_every_row_says_what_both_sides_compute(row: Target) -> None:
    """A ratio compares like with like: the same width of head and the same number type or fp32."""
    assert row.case.flops(row.direction) > 0
    if isinstance(row.rival, Case):
        assert row.rival.head_dim == row.case.head_dim
        assert row.rival.dtype in (row.case.dtype, torch.float32)
        if row.yardstick in (Yardstick.PER_CALL, Yardstick.ADDED_TIME):
            assert row.rival.q_len == row.case.q_len


BAND = replace(TINY, mask=Mask("band", 5))
PACKED = Case(8, CAUSAL, layout="TND", lengths=(9, 15), q_len=24, kv_len=24).with_heads(2)
TINY_TARGETS = (
    target(Yardstick.OF_PEAK),
    target(Yardstick.PER_PAIR, replace(TINY, mask=CAUSAL), BAND),
    target(Yardstick.PER_CALL, TINY, replace(TINY, bias="learned")),
    target(Yardstick.PER_CALL, "torch", replace(TINY, q_heads=4)),
    target(Yardstick.PER_CALL, "torch, a call each", PACKED),
    target(Yardstick.ADDED_TIME, TINY, replace(TINY, keep_prob=0.5)),
    replace(target(Yardstick.TIME, "torch"), direction="training"),
)


@pytest.mark.parametrize("row", TINY_TARGETS, ids=lambda row: f"{row.yardstick.name} {row.rival}")
def test_every_yardstick_measures(row: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []
    run = Ours.run
    monkeypatch.setattr(Ours, "run", lambda self, way: ran.append(self.case) or run(self, way))
    result = measuring.measure(row, EFFORT)
    measured = result.measurement
    assert measured.rounds >= 3
    assert measured.flops == row.case.flops(row.direction)
    assert measured.peak == FakePeak(1, _library.target()).speed
    expected = {
        Yardstick.OF_PEAK: measured.flops / measured.ours / measured.peak,
        Yardstick.PER_PAIR: (measured.rival or 0) / measured.ours
        * measured.flops / measured.rival_flops,
        Yardstick.PER_CALL: (measured.rival or 0) / measured.ours,
        Yardstick.TIME: measured.ours / (measured.rival or 1),
        Yardstick.ADDED_TIME: measured.ours / (measured.rival or 1) - 1,
    }  # fmt: skip
    assert result.value == pytest.approx(expected[row.yardstick])
    assert set(ran) == {row.case, *([row.rival] if isinstance(row.rival, Case) else [])}
    assert results.from_json(json.loads(json.dumps(results.to_json(result)))) == result


def test_two_threads_run_against_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "cores", lambda: 2)
    seen = []
    run = Ours.run

    def watched(self: Ours, direction: str) -> object:
        seen.append(torch.get_num_threads())
        return run(self, direction)

    monkeypatch.setattr(Ours, "run", watched)
    row = target(Yardstick.PER_CALL, "one thread", threads=2)
    result = measuring.measure(row, EFFORT)
    assert result.measurement.threads == 2
    fitting_the_peak, turns = seen[:2], seen[2:]
    assert fitting_the_peak == [2, 2]
    assert turns == [2, 1] * (len(turns) // 2)
    assert result.measurement.peak == FakePeak(2, _library.target()).speed


@pytest.mark.parametrize(
    ("work_seconds", "slice_seconds"), [(1e-6, 0.5e-3), (0.02, 0.02), (3, 0.05)]
)
def test_the_peak_runs_as_long_as_the_work(
    monkeypatch: pytest.MonkeyPatch, work_seconds: float, slice_seconds: float
) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    asked = []
    monkeypatch.setattr(FakePeak, "slice", lambda _, seconds: asked.append(seconds) or 7.0)

    def work() -> None:
        clock[0] += work_seconds

    turn, speeds = FakePeak(1, "avx2").turn_as_long_as(work)
    assert (asked, speeds) == ([], [])
    turn()
    assert asked == pytest.approx([slice_seconds])
    assert speeds == [7.0]


def test_what_this_machine_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "cores", lambda: 1)
    monkeypatch.setattr(_library, "target", lambda: "avx512")
    monkeypatch.setattr(_library, "targets", lambda: ["avx512"])
    rows = (
        target(Yardstick.PER_CALL, "one thread", threads=2),
        target(Yardstick.OF_PEAK, simd="native bf16"),
        target(Yardstick.OF_PEAK, simd="avx2"),
    )
    found = list(running.run(rows, EFFORT))
    assert [x.why_not for x in found] == [
        "this process has only 1 core",
        "no native bf16 (avx512)",
        "this CPU has no kernels of kind 'avx2'",
    ]
    summary = report.summary(found, "Zen 4")
    assert "0 of 0 musts hold" in summary
    assert "not measured: 1 rows: no native bf16 (avx512)" in summary


def test_the_simd_target_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "target", lambda: "avx512_bf16")
    monkeypatch.setattr(_library, "targets", lambda: ["avx512_bf16", "avx512", "avx2", "sse4"])
    kinds = ("selected", "native bf16", "exact", "avx2")
    rows = [target(Yardstick.OF_PEAK, simd=kind) for kind in kinds]
    assert [running.simd_of(x) for x in rows] == ["avx512_bf16", "avx512_bf16", "avx512", "avx2"]
    monkeypatch.setattr(_library, "target", lambda: "sse4")
    assert running.simd_of(rows[2]) == "sse4"
    assert fma_peak.width_of("avx512_bf16") == 512


def child_target(row: Target, effort: measuring.Effort) -> str:
    return f"{row.section} {_library.target()} {effort.seconds}"


def test_a_child_has_other_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    other = _library.targets()[-1]
    monkeypatch.setattr(running, "measure", child_target)
    monkeypatch.setattr(running, "simd_of", lambda row: other)
    monkeypatch.setattr(_library, "target", lambda: "another")
    assert list(running.run([target(Yardstick.OF_PEAK)] * 2, EFFORT)) == [f"tiny {other} 0"] * 2


def test_a_wrong_result_stops_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Ours.attention
    monkeypatch.setattr(Ours, "attention", lambda *x: right(*x) * 1.01)
    with pytest.raises(FeatureError, match="out is off by"):
        measuring.measure(target(Yardstick.OF_PEAK), EFFORT)


def judged(value: float, yardstick: Yardstick, must: float, aim: float) -> results.Result:
    row = replace(target(yardstick, "torch"), must=Must.both(must), aim=aim)
    measured = results.Measurement.of(1, [100], [[1.0, 2.0], [value, value + 1]], [100 / value])
    return results.Result.of(row, "Zen 4", "avx512", measured)


def test_verdicts() -> None:
    speed, time = Yardstick.PER_CALL, Yardstick.TIME
    found = [judged(x, speed, 0.8, 0.9) for x in (0.7, 0.8, 0.89, 0.9)]
    assert [x.verdict for x in found] == ["SHORT", "holds", "holds", "aim"]
    found = [judged(1 / x, time, 1.5, 1.0) for x in (1.6, 1.4, 1.0)]
    assert [x.verdict for x in found] == ["SHORT", "holds", "aim"]
    summary = report.summary(found, "Zen 4")
    assert "falls short: tiny: BNSD 1x2x24x8 fp32 full, backward: 1.60 x, must 1.50 x" in summary
    assert "2 of 3 musts hold (column Zen 4), 1 of them reach the aim" in summary


@pytest.mark.parametrize("width", [60, 80, 100, report.WIDTH, 300])
def test_a_table_fits_its_terminal(width: int) -> None:
    found = [results.Result.of(x, "Zen 4", "avx512", None, "why") for x in TARGETS]
    found += [judged(x, Yardstick.PER_CALL, 0.8, 0.9) for x in (0.7, 0.9)]
    console = Console(width=width)
    with console.capture() as capture:
        console.print(report.section_table(found, width))
    printed = capture.get()
    assert max(map(len, printed.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in printed
    assert "SHORT" in printed or width < 80
    assert ("aim" in printed.splitlines()[2]) == (width >= report.WIDTH)


def test_a_second_chance_counts_for_everybody() -> None:
    first = results.Measurement.of(2, [10, 20], [[3.0, 4.0], [2.0, 5.0]], [7, 8])
    later = results.Measurement.of(2, [10, 20], [[2.0, 9.0], [6.0, 7.0]], [6, 9])
    both = first.best_of(later)
    assert (both.ours, both.rival, both.peak, both.rounds) == (2.0, 2.0, 9, 4)
    alone = results.Measurement.of(1, [10], [[3.0]], [7])
    assert alone.best_of(results.Measurement.of(1, [10], [[2.0]], [7])).rival is None


@pytest.fixture
def tiny_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "TARGETS", TINY_TARGETS)


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["attention.py", *map(str, arguments)])
    attention.main()


@pytest.mark.usefixtures("tiny_table")
def test_the_command_prints_writes_and_compares(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    page, old, new = (tmp_path / name for name in ("page.md", "old.json", "new.json"))
    page.write_text("before\n<!-- begin table -->\n\nstale\n<!-- end table -->\nafter\n")
    run_command(monkeypatch, "--seconds", 0, "--write", page, "--json", old)
    printed = capsys.readouterr().out
    assert printed.count("BNSD 1x2x24x8 fp32 full") >= 2
    assert "musts hold" in printed
    text = page.read_text()
    assert text.startswith("before\n<!-- begin table -->\n")
    assert text.endswith("```\n\n<!-- end table -->\nafter\n")
    assert "stale" not in text
    assert text.count("\n| ") == 1 + len(TINY_TARGETS)
    run_command(monkeypatch, "--quick", "--seconds", 0, "--json", new, "--filter", "keep 0.5")
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["compare.py", str(old), str(new)])
    compare.main()
    printed = capsys.readouterr().out
    assert "keep 0.5" in printed
    assert f"only in old: {len(TINY_TARGETS) - 1} rows" in printed


@pytest.mark.usefixtures("tiny_table")
def test_mistakes_are_said_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text("no block\n")
    for arguments, text in (
        (["--filter", "nothing has this name"], "no row's name contains"),
        (["--write", page], "has no lines <!-- begin table -->"),
        (["--long", "--write", page], "has no lines <!-- begin long -->"),
        (["--long", "--filter", "fp64"], "name that contains 'fp64'"),
        (["--write", tmp_path / "none.md"], "there is no page"),
        (["--plot", tmp_path / "a.txt"], "its ending must be one of"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run_command(monkeypatch, *arguments)
        assert text in str(stopped.value.code)


def test_a_page_keeps_the_rest(tmp_path: pathlib.Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- begin a -->\n<!-- end a -->\n<!-- begin b -->\nB\n<!-- end b -->\n")
    document.replace_block(page, "a", r"\1 A")
    expected = "<!-- begin a -->\n\n\\1 A\n\n<!-- end a -->\n<!-- begin b -->\nB\n<!-- end b -->\n"
    assert page.read_text() == expected


def test_long_sequences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(long_sequence, "_reuse_memory", lambda: None)  # it is for good
    for name, value in (("LONG", 32768), ("SHORT", 8192), ("BAND", 256)):
        monkeypatch.setattr(long_sequence, name, value)
    page = tmp_path / "page.md"
    page.write_text("<!-- begin long -->\n<!-- end long -->\n")
    run_command(monkeypatch, "--long", "--threads", 1, "--write", page, "--json", tmp_path / "x")
    assert "of 4 hold" in capsys.readouterr().out
    assert page.read_text().count("\n| fp32 | ") == page.read_text().count("\n| bf16 | ") == 2
    rows = [long_sequence.LongResult(**x) for x in json.loads((tmp_path / "x").read_text())["long"]]
    channels, statistics = 64 * 32768, 2 * 8 * 4 * 32768
    tensors = {"forward": (5, 0), "backward": (8, 4)}  # of the dtype; bytes of a channel of fp32 dQ
    for row, (dtype, direction) in zip(rows, long_sequence.ROWS, strict=True):
        assert (row.dtype, row.direction, row.threads) == (dtype, direction, 1)
        count, dq = tensors[direction]
        size, dq = (4, 0) if dtype == "fp32" else (2, dq)
        assert row.held == (count * size + dq) * channels + statistics
        assert row.allowed == row.held + 16 * 2**20
        assert row.growth >= row.held // 2  # a real figure
        assert row.per_token == pytest.approx(row.long_seconds / 4 / row.short_seconds)
    console = Console(width=100)
    with console.capture() as capture:
        console.print(long_sequence.table(rows))
    assert "\N{HORIZONTAL ELLIPSIS}" not in capture.get()
    kept = replace(rows[0], growth=rows[0].allowed, long_seconds=4.19, short_seconds=1.0)
    assert kept.holds
    assert not replace(kept, growth=kept.growth + 1).holds
    assert not replace(kept, long_seconds=4.21).holds


def test_the_roof_is_above_and_the_plot_is_drawn(tmp_path: pathlib.Path) -> None:
    for direction in ("forward", "backward"):
        ice, zen = (roofline.roof(64, direction, x) for x in ("Ice Lake", "Zen 4"))
        assert 0.9 < ice < zen < roofline.roof(128, direction, "Zen 4") < 1
        assert 1.7 < roofline.roof(64, direction, "Zen 4", native=True) < 2
    assert roofline.problems(quick=True)[0] in roofline.problems(quick=False)
    sizes = {(axis, x.q_len, x.head_dim) for axis, x in roofline.problems(quick=False)}
    assert {x[1] for x in sizes if x[0] == "S"} == set(roofline.LENGTHS)
    assert {x[2] for x in sizes if x[0] == "D"} == set(roofline.HEAD_DIMS)
    points = [
        point
        for axis, head_dim in (("S", 64), ("S", 128), ("D", 16))
        for mask in (Mask("full"), CAUSAL)
        for point in roofline.measure(axis, Case(head_dim, mask).with_tokens(16), seconds=0)
    ]
    assert all(x.ours > 0 and x.torch > 0 for x in points)
    points += [replace(x, dtype="bf16") for x in points]
    roofline_plot.draw(points, "tiny", "Zen 4", tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
