"""Runs all benchmarks and writes their tables into the pages of the documentation, each between two markers.

    python benchmarks/all.py [--root PATH] [--only usual floor]

Takes a quarter of an hour to half an hour on two cores, on which nothing else should run. ``--root`` is the folder with
CIFAR-100; without it images are random. What stands outside the markers is left as it is.
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
PAGES = (
    *sorted((DOCS / "benchmarks").glob("*.md")),
    DOCS / "how_it_works" / "history_format.md",
    DOCS / "study" / "nf_efficientnet.md",
)
# The name of each table, and its command; those that take --root.
COMMANDS = {
    "usual": ["usual.py"],
    "training": ["training.py"],
    "normalizer_free": ["normalizer_free.py"],
    "kept_memory": ["kept_memory.py"],
    "constants": ["constants.py"],
    "subnormal": ["subnormal.py"],
    "floor": ["floor.py"],
    "lightning": ["lightning_overhead.py"],
    "spp": ["spp_overhead.py"],
    "launches": ["launches.py"],
    "memory": ["spp_overhead.py", "--memory"],
    "scaling": ["scaling.py"],
    "growth": ["history_growth.py"],
    "loader": ["loader.py"],
    "start_up": ["start_up.py"],
    "end_to_end": ["end_to_end.py", "results"],
}
WITH_ROOT = ("usual", "loader", "start_up")


def table_of(name: str, root: Path | None) -> str:
    """What a benchmark prints, under the line that runs it.

    Raises:
        subprocess.CalledProcessError: It fails; its error is on the terminal.
    """
    with_root = root is not None and name in WITH_ROOT
    script, *arguments = COMMANDS[name]
    done = subprocess.run(
        [sys.executable, str(HERE / script), *arguments, *(["--root", str(root)] if with_root else [])],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE.parent,
    )
    shown = [f"benchmarks/{script}", *arguments, *(["--root path/to/cifar100"] if with_root else [])]
    return f"`python {' '.join(shown)}`\n\n{done.stdout.strip()}"


def put(name: str, content: str) -> None:
    """Writes a table in its place.

    Raises:
        ValueError: No page has a place for it.
    """
    place = re.compile(f"(<!-- {name} -->\\n).*?(<!-- end -->)", re.DOTALL)
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        if place.search(page):
            path.write_text(place.sub(lambda found: f"{found[1]}{content}\n{found[2]}", page), encoding="utf-8")
            return
    raise ValueError(f"no page has <!-- {name} --> ... <!-- end -->")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path)
    parser.add_argument("--only", nargs="+", choices=COMMANDS, default=list(COMMANDS))
    options = parser.parse_args()
    failed = []
    for name in options.only:
        start = time.monotonic()
        try:
            content = table_of(name, options.root.resolve() if options.root else None)
        except subprocess.CalledProcessError:
            failed.append(name)
            continue
        put(name, content)
        print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
