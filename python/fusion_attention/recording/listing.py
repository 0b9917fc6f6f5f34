"""Names the folders of calls in a record, and finds them again in the order they were made in."""

import re
from pathlib import Path

from fusion_attention._errors import FeatureError

_NAME = re.compile(r"rank(\d+)-pid(\d+)-(\d+)-(\w+)")


def folder_name(rank: int, process: int, number: int, function: str) -> str:
    """Returns the name of a call's folder; a name for every process."""
    return f"rank{rank}-pid{process}-{number:06d}-{function}"


def calls_in(record: Path) -> list[Path]:
    """Returns the folders of calls in `record`, by rank, process and number; [] if it has none.

    Raises:
        FeatureError: `record` is not a folder, or a call in it was never finished.
    """
    if not record.is_dir():
        raise FeatureError(f"{record} is not a folder")
    found = []
    for folder in record.iterdir():
        if folder.is_dir() and (match := _NAME.fullmatch(folder.name)):
            found.append((tuple(map(int, match.groups()[:3])), folder))
    folders = [folder for _, folder in sorted(found)]
    for folder in folders:
        if not (folder / "call.json").exists():
            raise FeatureError(
                f"{folder} was never finished: the program stopped while it was written. "
                "Delete it to use the rest."
            )
    return folders


def calls_before(folders: list[Path], number: int) -> int:
    """Returns how many calls of its function the process of call `number` had made before it."""

    def maker(folder: Path) -> tuple[str, ...]:
        match = _NAME.fullmatch(folder.name)
        return match.group(1, 2, 4) if match else ()

    *before, this = map(maker, folders[:number])
    return before.count(this)
