"""A page as a reader's browser takes it apart."""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

VOID = {"meta", "img", "br", "link", "input", "hr"}


@dataclass
class Element:
    """An element with what is in it, in order: texts and elements."""

    tag: str
    attributes: dict[str, str]
    content: list[Any] = field(default_factory=list)

    @property
    def text(self) -> str:
        """Without scripts and styles; white space as one blank."""
        if self.tag in ("script", "style"):
            return ""
        parts = [part if isinstance(part, str) else part.text for part in self.content]
        return " ".join("".join(parts).split())

    def all(self, tag: str = "", **attributes: str | None) -> list[Element]:
        """Elements below this one; attributes with _ for -, None for any value."""
        wanted = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()}
        found = []
        for part in self.content:
            if isinstance(part, Element):
                fits = tag in ("", part.tag) and all(
                    key in part.attributes and value in (None, part.attributes[key]) for key, value in wanted.items()
                )
                found += [part] * fits + part.all(tag, **attributes)
        return found

    def one(self, tag: str = "", **attributes: str | None) -> Element:
        [element] = self.all(tag, **attributes)
        return element

    @property
    def values(self) -> list[float]:
        """The exact numbers in it."""
        return [float(element.attributes["data-value"]) for element in self.all(data_value=None)]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.path = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {key: value or "" for key, value in attrs})
        self.path[-1].content.append(element)
        if tag not in VOID:
            self.path.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag in {element.tag for element in self.path}:
            while self.path.pop().tag != tag:
                pass

    def handle_data(self, data: str) -> None:
        self.path[-1].content.append(data)


def read_page(html: str) -> Element:
    """Parses a page."""
    reader = _Reader()
    reader.feed(html)
    return reader.path[0]
