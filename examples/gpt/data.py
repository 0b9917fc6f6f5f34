"""Text for the demo: the Python standard library's own source, packed without padding.

Every machine with Python has this text. A file is cut where PEP 8 leaves two blank lines, so a
document is an import block, a function or a class. This file knows bytes and lengths; it must not
know the model.
"""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from torch import Tensor

MARK = 0  # opens and closes every document; no source file contains this byte
SKIPPED = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "idle_test"} | {
    "encodings",  # tables of characters
    "pydoc_data",  # one 700 kB string
    "idlelib",
    "lib2to3",
}
HELD_OUT_EVERY = 40  # every 40th file is kept for validation


@dataclass(frozen=True)
class Document:
    """A piece of one source file: `tokens` are its bytes between two MARKs, uint8 [length + 2]."""

    name: str
    tokens: Tensor


@dataclass(frozen=True)
class PackedBatch:
    """Documents laid end to end, without padding: the TND layout's T axis.

    Attributes:
        tokens: int64 [T], the input bytes.
        targets: int64 [T], the byte that follows each input byte.
        positions: int64 [T], the index of each token within its own document.
        ends: where each document ends, as cumulative lengths: what actual_seq_qlen expects.
        names: one per document.
    """

    tokens: Tensor
    targets: Tensor
    positions: Tensor
    ends: list[int]
    names: list[str]

    @property
    def lengths(self) -> list[int]:
        return [end - begin for begin, end in pairwise([0, *self.ends])]


@dataclass(frozen=True)
class Corpus:
    """Training and validation documents, no file being in both."""

    train: list[Document]
    validation: list[Document]
    files: int
    train_bytes: int


def source_files(root: Path) -> list[Path]:
    """The standard library's own .py files, in a fixed order."""
    files = (
        path for path in root.rglob("*.py") if SKIPPED.isdisjoint(path.relative_to(root).parts)
    )
    return sorted(path for path in files if path.stat().st_size > 0)


def documents_of(name: str, source: bytes, context: int) -> Iterator[Document]:
    """Cuts a file into documents of at most `context` input tokens each."""
    for block in source.split(b"\n\n\n"):
        text = block.strip(b"\n")
        if MARK in text:
            continue
        while text:
            length = cut_length(text, context - 1)  # MARK is an input token too
            tokens = torch.frombuffer(bytearray([MARK, *text[:length], MARK]), dtype=torch.uint8)
            yield Document(name, tokens)
            text = text[length:].lstrip(b"\n")


def cut_length(text: bytes, limit: int) -> int:
    """The length of the first piece: up to a blank line if there is one, else up to a line."""
    if len(text) <= limit:
        return len(text)
    blank_line = text.rfind(b"\n\n", 1, limit)
    line = text.rfind(b"\n", 1, limit)
    return next((cut for cut in (blank_line, line) if cut > 0), limit)


def load_corpus(context: int) -> Corpus:
    """Reads the standard library and holds out every 40th file."""
    root = Path(sysconfig.get_path("stdlib"))
    files = source_files(root)
    train: list[Document] = []
    validation: list[Document] = []
    for index, path in enumerate(files):
        part = validation if index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else train
        name = path.relative_to(root).as_posix()
        part.extend(documents_of(name, path.read_bytes(), context))
    if not train or not validation:
        raise RuntimeError(f"found no Python source to train on in {root}")
    return Corpus(train, validation, len(files), sum(len(d.tokens) - 1 for d in train))


def pack(documents: list[Document], tokens: int) -> PackedBatch:
    """Lays documents end to end and cuts the last one so that exactly `tokens` remain."""
    pieces: list[Tensor] = []
    room = tokens
    for document in documents:
        pieces.append(document.tokens[: room + 1].long())
        room -= len(pieces[-1]) - 1
    if room:
        raise ValueError(f"the documents are {room} tokens short of {tokens}")
    lengths = [len(piece) - 1 for piece in pieces]
    return PackedBatch(
        tokens=torch.cat([piece[:-1] for piece in pieces]),
        targets=torch.cat([piece[1:] for piece in pieces]),
        positions=torch.cat([torch.arange(length) for length in lengths]),
        ends=list(accumulate(lengths)),
        names=[document.name for document in documents],
    )


def packed_batches(documents: list[Document], tokens: int, seed: int) -> Iterator[PackedBatch]:
    """Endless packed batches of exactly `tokens` tokens; every epoch is shuffled anew."""
    shuffle = random.Random(seed)
    order: list[Document] = []
    while True:
        chosen: list[Document] = []
        missing = tokens
        while missing > 0:
            if not order:
                order = shuffle.sample(documents, len(documents))
            chosen.append(order.pop())
            missing -= len(chosen[-1].tokens) - 1
        yield pack(chosen, tokens)
