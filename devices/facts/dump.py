"""What the script printed, taken apart into sources; nothing in it is trusted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

#: More than any machine has; a longer list of cores is garbage.
MOST_CORES = 4096


class Dump:
    """The sources a device named, each with its lines.

    Args:
        text: what the script printed.
        nonce: the word its section lines begin with.
    """

    def __init__(self, text: str, nonce: str) -> None:
        self._sections: dict[str, list[str]] = {}
        lines: list[str] = []
        for raw in text.replace("\0", "\n").splitlines():
            line = raw.strip()
            if line.startswith(f"{nonce} "):
                lines = self._sections.setdefault(line.removeprefix(nonce).strip(), [])
            elif line:
                lines.append(line)

    @property
    def complete(self) -> bool:
        """Whether the script came to its end."""
        return "end" in self._sections

    def lines(self, name: str) -> Sequence[str]:
        """The lines of a source that are not blank."""
        return self._sections.get(name, [])

    def text(self, name: str) -> str | None:
        """The first line of a source, or ``None`` where the device does not have it."""
        return next(iter(self.lines(name)), None)

    def number(self, name: str) -> int | None:
        """The whole number a source consists of, in decimal or with ``0x``."""
        return whole_number(self.text(name) or "")

    def each(self, pattern: str) -> Iterator[tuple[re.Match[str], str]]:
        """The sources whose name matches a regular expression, with their first lines."""
        for name in sorted(self._sections, key=_numbers_by_value):
            match = re.fullmatch(pattern, name)
            text = self.text(name)
            if match and text:
                yield match, text

    def pairs(self, name: str, separator: str) -> Mapping[str, str]:
        """A source of ``KEY separator VALUE`` lines; the first of equal keys counts."""
        found: dict[str, str] = {}
        for line in self.lines(name):
            key, there, value = line.partition(separator)
            if there:
                found.setdefault(key.strip(), value.strip())
        return found

    def properties(self) -> Mapping[str, str]:
        """Android's system properties that are set."""
        found = {}
        for line in self.lines("getprop"):
            match = re.fullmatch(r"\[([^]]+)\]: \[(.+)\]", line)
            if match:
                found[match[1]] = match[2].strip()
        return found


def whole_number(text: str) -> int | None:
    """A number of at most 18 digits as the kernel prints it, else ``None``."""
    match = re.fullmatch(r"(-?[0-9]{1,18})|0[xX]([0-9a-fA-F]{1,16})", text, re.ASCII)
    if not match:
        return None
    return int(match[1]) if match[1] else int(match[2], 16)


def core_list(text: str) -> list[int]:
    """Core numbers as the kernel lists them: ``0-3,6`` or ``0 1 2``; empty if it is neither."""
    cores: set[int] = set()
    for part in re.split(r"[,\s]+", text.strip()):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part, re.ASCII)
        if not match:
            return []
        cores.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return sorted(core for core in cores if core < MOST_CORES)


def _numbers_by_value(name: str) -> list[tuple[int, str]]:
    return [(int(part or 0), text) for text, part in re.findall(r"([^0-9]*)([0-9]{0,18})", name)]
