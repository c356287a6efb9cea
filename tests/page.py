"""What a page consists of, by itself and in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium here to look at a page with"
)


class Page(HTMLParser):
    """What a page consists of."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._inside:
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif not self._inside:
            self.text += " " + data

    @property
    def words(self) -> str:
        return " ".join(self.text.split())

    def section(self, id_: str) -> Page:
        """The measurement's page with that id, alone."""
        (found,) = re.findall(rf'<section [^>]*id="{id_}".*?</section>', self.source, re.DOTALL)
        return Page(found)

    def data(self, id_: str) -> Any:
        """What the script element with that id holds."""
        pattern = rf'<script type="application/json" id="{id_}">(.*?)</script>'
        (found,) = re.findall(pattern, self.source, re.DOTALL)
        return json.loads(found)

    def cells(self) -> list[list[str]]:
        """Every row of every table, each cell as its words."""
        rows = re.findall(r"<tr[^>]*>(.*?)</tr>", self.source, re.DOTALL)
        found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL) for row in rows]
        return [[Page(cell).words for cell in row] for row in found]


def browse(address: str, folder: Path) -> tuple[str, list[str]]:
    """Have Chromium open a page, without a network; its final document, and what went wrong."""
    assert CHROMIUM
    done = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-extensions",
            "--no-first-run",
            f"--user-data-dir={folder / 'profile'}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
            "--virtual-time-budget=10000",
            "--enable-logging=stderr",
            "--dump-dom",
            address,
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
