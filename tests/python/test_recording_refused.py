"""A record that was changed, cut short or made up is refused before anything of it runs."""

import hashlib
import json
import os
import pathlib
import struct
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fusion_attention import cli, npu_fusion_attention, record, replay
from fusion_attention._errors import FeatureError

Change = Callable[[pathlib.Path], None]


@pytest.fixture
def folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The folder of one recorded call; running it fails the test, whatever replay makes of that."""
    query = torch.randn(1, 2, 16, 8).requires_grad_()
    mask = torch.zeros(16, 16, dtype=torch.bool)
    with record(tmp_path):
        out = npu_fusion_attention(query, query, query, 2, "BNSD", atten_mask=mask)[0]
        out.sum().backward()

    def must_not_run(*_: object) -> None:
        pytest.fail("the call was made")

    monkeypatch.setattr("fusion_attention.recording.verdicts.rerun", must_not_run)
    (found,) = tmp_path.iterdir()
    return found


def cut(name: str, share: float) -> Change:
    def change(folder: pathlib.Path) -> None:
        path = folder / name
        os.truncate(path, int(path.stat().st_size * share))

    return change


def flip_last_byte(name: str) -> Change:
    def change(folder: pathlib.Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    return change


def delete(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def link(folder: pathlib.Path) -> None:
    (folder / "inputs.safetensors").rename(folder.parent / "elsewhere")
    (folder / "inputs.safetensors").symlink_to(folder.parent / "elsewhere")


def edit(name: str, *path: str, value: Any, honest: bool = False) -> Change:
    """Sets one entry of a JSON file; an honest forger brings the digest up to date."""

    def change(folder: pathlib.Path) -> None:
        content = json.loads((folder / name).read_text())
        place = content
        for key in path[:-1]:
            place = place[key]
        if value is KeyError:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        if not honest:
            content.pop("digest")
            canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
            content["digest"] = hashlib.sha256(canonical.encode()).hexdigest()
        (folder / name).write_text(json.dumps(content))

    return change


def write(name: str, content: bytes) -> Change:
    def change(folder: pathlib.Path) -> None:
        (folder / name).write_bytes(content)

    return change


QUERY = ("arguments", "query", "tensor")
OUT = ("results", "out", "tensor")
HUGE = struct.pack("<Q", 2**62)

CHANGES = {
    # cut short or missing
    "json cut": (cut("call.json", 0.7), "call.json is damaged or was cut short"),
    "json empty": (cut("call.json", 0), "call.json is damaged or was cut short"),
    "inputs cut": (cut("inputs.safetensors", 0.9), "inputs.safetensors is damaged"),
    "inputs empty": (cut("inputs.safetensors", 0), "inputs.safetensors is damaged"),
    "results cut": (cut("results.safetensors", 0.5), "results.safetensors is damaged"),
    "backward cut": (cut("backward-1.safetensors", 0.99), "backward-1.safetensors is damaged"),
    "no json": (delete("call.json"), "was never finished"),
    "no inputs": (delete("inputs.safetensors"), "inputs.safetensors is missing"),
    "no results": (delete("results.safetensors"), "results.safetensors is missing"),
    "no gradients": (delete("backward-1.safetensors"), "backward-1.safetensors is missing"),
    "no backward json": (delete("backward-1.json"), "backward-1.json is missing"),
    # changed
    "inputs changed": (flip_last_byte("inputs.safetensors"), "was changed after it was recorded"),
    "results changed": (flip_last_byte("results.safetensors"), "was changed after"),
    "gradients changed": (flip_last_byte("backward-1.safetensors"), "was changed after"),
    "scale changed": (
        edit("call.json", "arguments", "scale", value=2.0, honest=True),
        "its digest does not fit",
    ),
    "no digest": (edit("call.json", "digest", value=KeyError, honest=True), "digest does not fit"),
    # not ours
    "other format": (edit("call.json", "format", value="x"), "is not a recorded call"),
    "newer version": (edit("call.json", "version", value=2), "version 2 of the format"),
    "a list": (write("call.json", b"[1]"), "is not a recorded call"),
    "not text": (write("call.json", b"\xff\xfe{"), "is damaged"),
    "deep": (write("call.json", b"[" * 100_000), "is damaged"),
    "long number": (write("call.json", b"9" * 5000), "is damaged"),
    "bomb": (write("call.json", b" " * (17 * 2**20)), "more than any recorded call needs"),
    "huge header": (write("inputs.safetensors", HUGE + b"{}"), "inputs.safetensors is damaged"),
    "pickle": (write("inputs.safetensors", b"\x80\x04cos\nsystem\n."), "is damaged"),
    "link": (link, "is a link"),
    # forged with fitting digests
    "other function": (edit("call.json", "function", value="eval"), "no function of the family"),
    "function list": (edit("call.json", "function", value=["eval"]), "no function of"),
    "path in name": (
        edit("call.json", "function", value="../../etc/passwd"),
        "no function of the family",
    ),
    "names a file": (
        edit("call.json", "arguments", "query", value={"file": "../../../etc/passwd"}),
        "describes no tensor",
    ),
    "tensor with a file": (edit("call.json", *QUERY, "file", value="/etc/passwd"), "one too many"),
    "text for a tensor": (edit("call.json", "arguments", "key", value="/etc/passwd"), "hold"),
    "unknown argument": (edit("call.json", "arguments", "shell", value="ls"), "unexpected keyword"),
    "no query": (edit("call.json", "arguments", "query", value=KeyError), "missing a required"),
    "nested list": (edit("call.json", "arguments", "prefix", value=[[1]]), "list of something"),
    "no result": (edit("call.json", "results", value={}), "its results are not those"),
    "no machine": (edit("call.json", "machine", value=KeyError), "lacks 'machine'"),
    "kept": (edit("call.json", "kept", value="some"), "it keeps 'some'"),
    "kept list": (edit("call.json", "kept", value=["all"]), "it keeps"),
    "autocast": (edit("call.json", "autocast", value="int3"), "no dtype 'int3'"),
    "grad_enabled": (edit("call.json", "grad_enabled", value=1), "grad_enabled"),
    "dtype": (edit("call.json", *QUERY, "dtype", value="object"), "no dtype 'object'"),
    "dtype list": (edit("call.json", *QUERY, "dtype", value=[]), "no dtype []"),
    "other dtype": (edit("call.json", *QUERY, "dtype", value="int32"), "recorded was int32"),
    "negative shape": (edit("call.json", *QUERY, "shape", value=[-1, 2, 16, 8]), "shape is not"),
    "bool shape": (edit("call.json", *QUERY, "shape", value=[True, 2, 16, 8]), "shape is not"),
    "float stride": (edit("call.json", *QUERY, "stride", value=[1.0, 1, 1, 1]), "stride is not"),
    "fewer strides": (edit("call.json", *QUERY, "stride", value=[1]), "as many strides"),
    "other shape": (edit("call.json", *QUERY, "shape", value=[1, 2, 16, 9]), "has the shape"),
    "absurd shape": (
        edit("call.json", *QUERY, "shape", value=[2**40, 2**40, 16, 8]),
        "more than 2",
    ),
    "absurd strides": (
        edit("call.json", *QUERY, "stride", value=[2**50, 2**50, 2**50, 2**50]),
        "bytes of memory, which are not there",
    ),
    "absurd offset": (edit("call.json", *QUERY, "storage_offset", value=-1), "storage offset"),
    "device": (edit("call.json", *QUERY, "device", value=3), "device has the wrong type"),
    "digest": (edit("call.json", *QUERY, "sha256", value=3), "digest is no text"),
    "statistics": (edit("call.json", *QUERY, "statistics", value=3), "statistics are no table"),
    "figures": (
        edit("call.json", *QUERY, "statistics", "norm", value="x"),
        "statistics are no table",
    ),
    "seed": (edit("call.json", "results", "seed", value="x"), "seed is 'x', not an integer"),
    "no tensor": (edit("call.json", "arguments", "query", value=None), "first argument is no"),
    "illegal call": (edit("call.json", "arguments", "head_num", value=3), "cannot be made again"),
    "results of another call": (
        edit("call.json", "results", "out", value=7),
        "does not hold the tensors",
    ),
    "backward of text": (
        edit("backward-1.json", "values", "dq", value="x"),
        "has something that is no tensor",
    ),
    "backward number": (write("backward-99999999999.json", b"{}"), "with the number"),
    "backward gap": (write("backward-3.json", b"{}"), "backward-2.json is missing"),
    "backward renamed": (
        lambda folder: (folder / "backward-1.json").rename(folder / "backward-2.json"),
        "backward-1.json is missing",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_record_is_refused(
    name: str, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change, text = CHANGES[name]
    change(folder)
    with pytest.raises(FeatureError) as error:
        replay(folder.parent)
    assert text in str(error.value)
    assert cli.main(["replay", str(folder.parent)]) == 1
    captured = capsys.readouterr()
    assert text in captured.err
    assert captured.out == ""


def test_an_expanded_result_cannot_ask_for_memory(folder: pathlib.Path) -> None:
    """Stride 0 makes any shape cost nothing on disk; the shapes of results are checked first."""
    path = folder / "call.json"
    content = json.loads(path.read_text())
    content["results"]["softmax_max"]["tensor"]["shape"] = [1, 2, 16, 2**40]
    content["results"]["softmax_max"]["tensor"]["stride"] = [0, 0, 0, 0]
    edit("call.json", "results", value=content["results"])(folder)
    with pytest.raises(FeatureError, match="has the shape"):
        replay(folder)


def test_the_unchanged_record_would_run(folder: pathlib.Path) -> None:
    with pytest.raises(pytest.fail.Exception, match="the call was made"):
        replay(folder)


def test_one_bad_call_keeps_the_others_from_running(folder: pathlib.Path) -> None:
    query = torch.randn(1, 1, 4, 4)
    with record(folder.parent):
        npu_fusion_attention(query, query, query, 1, "BNSD")
    flip_last_byte("inputs.safetensors")(max(folder.parent.iterdir()))
    with pytest.raises(FeatureError, match="was changed"):
        replay(folder.parent)


def test_wrong_arguments_are_said_so(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    root = folder.parent
    with pytest.raises(FeatureError, match="is not a folder"):
        replay(root / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeatureError, match="holds no recorded calls"):
        replay(tmp_path / "empty")
    with pytest.raises(FeatureError, match="has no call 2, but 1 other"):
        replay(root, call=2)
    with pytest.raises(FeatureError, match="threads must be positive"):
        replay(root, threads=0)
    with pytest.raises(FeatureError, match="does not exist"):
        replay(root, against=root / "nowhere")
