"""Replay against another record, a device's dump or another target: where they part, and why."""

import os
import pathlib
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from simd import simd_targets
from torch import Tensor

from fusion_attention import (
    cli,
    npu_fusion_attention,
    npu_ring_attention_update,
    record,
    replay,
)
from fusion_attention._call import Call
from fusion_attention._errors import FeatureError
from fusion_attention.recording import compare, files, tensors
from fusion_attention.recording.gradients import watch

DTYPE = torch.bfloat16


def make(folder: pathlib.Path, kept: str = "all", scale: float = 0.25) -> dict[str, Tensor]:
    """Records a call and returns its results and gradients, as a device's program would save."""
    generator = torch.Generator().manual_seed(1)
    query, key, value, dy = (
        torch.randn(2, 4, 24, 16, generator=generator).to(DTYPE) for _ in range(4)
    )
    for tensor in (query, key, value):
        tensor.requires_grad_()
    with record(folder, tensors=kept):
        out, row_max, row_sum, *_ = npu_fusion_attention(query, key, value, 4, "BNSD", scale=scale)
        out.backward(dy)
    results = {"out": out.detach(), "softmax_max": row_max, "softmax_sum": row_sum}
    return results | {"dq": query.grad, "dk": key.grad, "dv": value.grad}


def rounded(dump: dict[str, Tensor]) -> dict[str, Tensor]:
    """The results as a device might round them: some last bits differ."""
    noise = torch.Generator().manual_seed(2)
    return {
        name: (x.float() * (1 + 0.004 * torch.rand(x.shape, generator=noise))).to(x.dtype)
        for name, x in dump.items()
    }


def save(dump: dict[str, Tensor], path: pathlib.Path) -> pathlib.Path:
    """Writes a dump in the form that the path's name asks for."""
    if path.suffix == ".safetensors":
        save_file(dump, path)
    elif path.suffix:
        torch.save(dump, path)
    else:
        path.mkdir(parents=True)
        for name, tensor in dump.items():
            torch.save(tensor, path / f"{name}.pt")
    return path


@pytest.mark.parametrize("form", ["dump.safetensors", "dump.pt", "dump"])
def test_a_dump_within_the_tolerance_is_the_same(form: str, tmp_path: pathlib.Path) -> None:
    dump = rounded(make(tmp_path / "record"))
    report = replay(tmp_path / "record", against=save(dump, tmp_path / form))
    assert report.same
    names = [x.name for x in report.calls[0].comparisons]
    assert names == ["out", "softmax_max", "softmax_sum", "dq", "dk", "dv"]
    assert not replay(tmp_path / "record", against=tmp_path / form, tolerance=1e-4).same


@pytest.mark.parametrize("form", ["1.safetensors", "1.pt", "1"])
def test_dumps_of_several_calls_are_found_by_number(form: str, tmp_path: pathlib.Path) -> None:
    dumps = tmp_path / "dumps"
    dumps.mkdir()
    first = make(tmp_path / "record")
    second = make(tmp_path / "record", scale=0.5)
    save(rounded(first), dumps / form)
    with pytest.raises(FeatureError, match=r"nothing for call 2: expected 2\.safetensors"):
        replay(tmp_path / "record", against=dumps)
    name = max(x.name for x in (tmp_path / "record").iterdir())
    save(rounded(second), dumps / f"{name}.safetensors")
    assert replay(tmp_path / "record", against=dumps).same


def test_files_of_msprobe_are_found_by_the_index_of_the_call(tmp_path: pathlib.Path) -> None:
    query = torch.randn(4, 1, 8)
    dumps = []
    for scale in (0.25, 0.5):
        dumps.append(make(tmp_path / "record", scale=scale))
        with record(tmp_path / "record"):  # calls of other functions are counted apart
            statistics = (torch.zeros(1, 1, 4, 8), torch.ones(1, 1, 4, 8))
            npu_ring_attention_update(query, *statistics, query, *statistics)
    with pytest.raises(FeatureError, match="nothing for call 1"):
        replay(tmp_path / "record", against=tmp_path)
    for index, dump in enumerate(dumps):
        for place, name in enumerate(("out", "softmax_max", "softmax_sum")):
            file = tmp_path / f"NPU.npu_fusion_attention.{index}.forward.output.{place}.pt"
            torch.save(rounded(dump)[name], file)
    for number in (1, 3):
        report = replay(tmp_path / "record", against=tmp_path, call=number)
        assert report.same
        assert len(report.calls[0].comparisons) == 3
    with pytest.raises(FeatureError, match=r"no NPU\.npu_ring_attention_update\.0\.forward"):
        replay(tmp_path / "record", against=tmp_path)


def test_what_parts_and_what_does_not() -> None:
    nan, infinity, most = torch.nan, torch.inf, torch.finfo(torch.float32).max
    here = torch.tensor([0.0, nan, infinity, 1.0, 1.0, nan, -most, 1.0])
    there = torch.tensor([-0.0, nan, infinity, 1.001, 1.1, 1.0, -most, infinity])
    bits = [True, False, False, True, True, True, False, True]
    assert compare.parting(here, there, None).tolist() == bits
    # The mark of a row that sees no key, -FLT_MAX, must not stretch the tolerance of the others.
    near = [False, False, False, False, True, True, False, True]
    assert compare.parting(here, there, 0.01).tolist() == near
    found = compare.difference(here, there, torch.tensor(near), "")
    assert (found.first, found.count, found.max_abs) == ((4,), 3, infinity)
    assert found.ours == 1.0
    assert found.theirs == pytest.approx(1.1)


def test_where_results_part_is_told(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = make(tmp_path / "record")
    dump["out"] = dump["out"].clone()
    dump["out"][1, 2, 12:, 3] += 100
    dump["dq"] = dump["dq"][:, :2].contiguous()
    dump["extra"] = torch.zeros(1)
    path = save(dump, tmp_path / "dump.safetensors")
    report = replay(tmp_path / "record", against=path)
    by_name = {x.name: x.parts for x in report.calls[0].comparisons}
    found = by_name["out"]
    assert found.first == (1, 2, 12, 3)
    assert (found.count, found.total) == (12, 2 * 4 * 24 * 16)
    assert 99 < found.max_abs < 101
    assert found.theirs - found.ours == pytest.approx(100, rel=0.01)
    assert by_name["softmax_max"] is None
    assert by_name["dq"] == "its shape is [2, 4, 24, 16] here and [2, 2, 24, 16] there"
    assert cli.main(["replay", str(tmp_path / "record"), "--against", str(path)]) == 1
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    # Heads are lines, tokens of both batch entries columns: the second half of head 2, batch 1.
    assert f"          2 |{' ' * 36}{'#' * 12}|" in lines
    assert f"          1 |{' ' * 48}|" in lines
    assert "no such result: extra" in printed
    assert lines[-1] == "1 call: not the same"


def test_what_a_device_recorded_is_compared_within_a_tolerance(tmp_path: pathlib.Path) -> None:
    """The same package on a device writes the same record; here its results are put in by hand."""
    dump = rounded(make(tmp_path))
    (folder,) = tmp_path.iterdir()
    content = files.read_json(folder / "call.json")
    results = {name: dump[name] for name in ("out", "softmax_max", "softmax_sum")}
    for name, tensor in results.items():
        content["results"][name]["tensor"]["sha256"] = tensors.digest(tensor)
    for value in content["arguments"].values():
        if isinstance(value, dict):
            value["tensor"]["device"] = "npu:0"
    files.write_json(folder / "call.json", content)
    empty = {"reserved": torch.empty(0, dtype=DTYPE)}
    files.write_tensors(folder / "results.safetensors", results | empty)
    report = replay(tmp_path)
    assert report.same
    assert report.calls[0].notes == ("recorded on npu:0: compared within a tolerance",)
    assert not replay(tmp_path, tolerance=1e-6).same


def test_gradients_of_a_vendor_are_told_by_where_they_lead() -> None:
    """Its operator has an order of its own; the tensors themselves say which slot is whose."""

    class Vendor(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: object, value: Tensor, extra: Tensor, key: Tensor, query: Tensor
        ) -> Tensor:
            return query.clone()

        @staticmethod
        def backward(ctx: object, dy: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.empty(size, device="meta") for size in (3, 9, 2, 1))

    query, key, value = (torch.empty(size, device="meta", requires_grad=True) for size in (1, 2, 3))
    seen = []
    out = Vendor.apply(value, torch.empty(9, device="meta"), key, query)
    arguments = {"query": query, "key": key, "value": value, "head_num": 1}
    watch(Call("npu_fusion_attention", arguments), out, lambda dy, found: seen.append((dy, found)))
    out.sum().backward()
    ((dy, found),) = seen
    assert dy.shape == (1,)
    assert {name: tuple(x.shape) for name, x in found.items()} == {
        "dq": (1,),
        "dk": (2,),
        "dv": (3,),
    }


def test_without_safetensors_recording_works_and_replay_says_what_it_needs(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "safetensors", None)
    make(tmp_path)
    with pytest.raises(FeatureError, match="pip install safetensors"):
        replay(tmp_path)


def test_our_files_are_safetensors_files(tmp_path: pathlib.Path) -> None:
    dump = make(tmp_path)
    (folder,) = tmp_path.iterdir()
    loaded = load_file(folder / "results.safetensors")
    assert torch.equal(loaded["out"], dump["out"])
    assert loaded["reserved"].shape == (0,)


def test_a_dump_of_nothing_known_is_refused(tmp_path: pathlib.Path) -> None:
    make(tmp_path / "record")
    path = save({"attention": torch.zeros(3)}, tmp_path / "dump.safetensors")
    with pytest.raises(FeatureError, match="has attention, and nothing of this call: out"):
        replay(tmp_path / "record", against=path)


class _Trap:
    """What a hostile .pt file would hold: unpickled, it makes a folder."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pt_file_that_runs_something_is_refused(tmp_path: pathlib.Path) -> None:
    make(tmp_path / "record")
    torch.save({"out": _Trap(tmp_path / "sprung")}, tmp_path / "dump.pt")
    with pytest.raises(FeatureError, match="cannot be read as tensors alone"):
        replay(tmp_path / "record", against=tmp_path / "dump.pt")
    assert not (tmp_path / "sprung").exists()
    torch.save({"out": "text"}, tmp_path / "dump.pt")
    with pytest.raises(FeatureError, match="something else than a tensor"):
        replay(tmp_path / "record", against=tmp_path / "dump.pt")
    (tmp_path / "dump.pt").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(FeatureError, match="cannot be read as tensors alone"):
        replay(tmp_path / "record", against=tmp_path / "dump.pt")


def test_two_records_of_one_program_are_compared_call_by_call(tmp_path: pathlib.Path) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    assert replay(tmp_path / "a", against=tmp_path / "b").same
    make(tmp_path / "b")
    with pytest.raises(FeatureError, match="2 recorded calls and the record has 1"):
        replay(tmp_path / "a", against=tmp_path / "b")


@pytest.mark.parametrize(("here", "there"), [("statistics", "statistics"), ("all", "statistics")])
def test_records_without_tensors_are_compared_by_digest(
    here: str, there: str, tmp_path: pathlib.Path
) -> None:
    make(tmp_path / "a", kept=here)
    make(tmp_path / "b", kept=there)
    make(tmp_path / "c", kept=there, scale=0.5)
    report = replay(tmp_path / "a", against=tmp_path / "b")
    assert report.same
    hows = {x.name: x.how for x in report.calls[0].comparisons}
    assert hows["query"] == hows["out"] == hows["backward 1: dq"] == "digest"
    report = replay(tmp_path / "a", against=tmp_path / "c")
    parted = {x.name: str(x.parts) for x in report.calls[0].comparisons if x.parts is not None}
    assert parted["scale"] == "0.25 here, 0.5 there"
    assert "min" in parted["out"]
    assert "query" not in parted
    assert any("different arguments already: scale" in x for x in report.calls[0].notes)


def test_a_record_without_tensors_says_what_it_cannot(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a", kept="none")
    report = replay(tmp_path / "a")
    assert not report.same
    assert "cannot be made again" in report.calls[0].notes[0]
    assert cli.main(["replay", str(tmp_path / "a")]) == 1
    assert "nothing to compare" in capsys.readouterr().out
    make(tmp_path / "b", kept="none", scale=0.5)
    report = replay(tmp_path / "a", against=tmp_path / "b")
    assert [x.name for x in report.calls[0].comparisons if x.parts] == ["scale"]
    assert "results cannot be compared" in report.calls[0].notes[-1]


def test_another_target_is_named_as_the_cause(tmp_path: pathlib.Path) -> None:
    make(tmp_path / "record")
    best, last = simd_targets()[0], simd_targets()[-1]
    command = [sys.executable, "-m", "fusion_attention", "replay", str(tmp_path / "record")]
    for target in (best, last):
        environment = {**os.environ, "FUSION_ATTENTION_TARGET": target}
        completed = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environment
        )
        other = target != best
        assert completed.returncode == int(other), completed.stdout + completed.stderr
        cause = f"recorded with SIMD target {best}, made again with {last}: last bits may differ"
        assert (cause in completed.stdout) == other
        assert (f"FUSION_ATTENTION_TARGET={best} makes it again" in completed.stdout) == other


def test_an_element_that_should_be_zero_is_infinitely_far() -> None:
    ours, theirs = torch.ones(2), torch.zeros(2)
    found = compare.difference(ours, theirs, ours != theirs, "")
    assert found.max_rel == float("inf")
    assert "relative inf" in str(found)
