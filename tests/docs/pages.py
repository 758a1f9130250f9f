"""What the README and the pages of docs/ are, and what is in them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").rglob("*.md")))
SHELL = re.compile(r"^```bash\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name(path: Path) -> str:
    """Of a page, for the ids of tests."""
    return path.relative_to(ROOT).as_posix()


def command_lines(block: str) -> list[str]:
    """The commands of a block of shell: without comments, lines that go on joined."""
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in block.replace("\\\n", " ").splitlines())
    return [line.strip() for line in lines if line.strip()]


ALL = "\n".join(path.read_text(encoding="utf-8") for path in PAGES)
COMMANDS = [line for block in SHELL.findall(ALL) for line in command_lines(block)]
INLINE = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", ALL)
