# SPDX-License-Identifier: MIT OR Apache-2.0
"""A page as the tests read it: strictly, as HTML and as XML."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser


class Balanced(HTMLParser):
    """Reads a page as HTML, and refuses what a browser would have to mend."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs)
        self.open.append(tag)
        self.seen.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # In HTML a slash closes only what never has content, and whatever stands in an SVG.
        assert tag in ("meta", "br", "wbr") or "svg" in self.open
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag


class Page:
    """A page that has been read twice, as HTML and as XML, and found to be in order."""

    def __init__(self, source: str):
        self.source = source
        html = Balanced()
        html.feed(source)
        html.close()
        assert not html.open
        self.root = ElementTree.fromstring(source)
        elements = list(self.root.iter())
        assert sorted(html.seen) == sorted(element.tag for element in elements)
        self.text = text_of(self.root)
        self.check_outside(elements)
        self.check_headings(elements)
        self.check_names(elements)

    def check_outside(self, elements: list[ElementTree.Element]) -> None:
        assert {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image"}.isdisjoint(
            element.tag for element in elements
        )
        for element in elements:
            for name, value in element.attrib.items():
                assert not name.startswith("on") and name not in ("src", "srcset", "style", "action")
                assert name != "href" or value.startswith("#")
        style = "".join(text_of(element) for element in self.root.iter("style"))
        assert "@import" not in style and "url(" not in style and "//" not in style
        assert "prefers-color-scheme: dark" in style and "@media print" in style

    def check_headings(self, elements: list[ElementTree.Element]) -> None:
        levels = [int(element.tag[1]) for element in elements if re.fullmatch("h[1-6]", element.tag)]
        assert levels[0] == 1 and levels.count(1) == 1
        assert all(after <= before + 1 for before, after in zip(levels, levels[1:]))
        assert text_of(self.find("title")).strip()

    def check_names(self, elements: list[ElementTree.Element]) -> None:
        ids = [element.attrib["id"] for element in elements if "id" in element.attrib]
        assert len(set(ids)) == len(ids)
        assert {element.attrib["href"][1:] for element in elements if "href" in element.attrib} <= set(ids)
        for picture in self.root.iter("svg"):
            title, description = picture[0], picture[1]
            assert (title.tag, description.tag, picture.attrib["role"]) == ("title", "desc", "img")
            assert text_of(title).strip() and text_of(description).strip()
            assert picture.attrib["aria-labelledby"].split() == [title.attrib["id"], description.attrib["id"]]
        for table in self.root.iter("table"):
            assert all(cell.attrib.get("scope") in ("row", "col") for cell in table.iter("th"))
            assert all(row[0].tag == "th" for row in table.iter("tr"))

    def find(self, tag: str) -> ElementTree.Element:
        return next(self.root.iter(tag))

    def by_id(self, name: str) -> ElementTree.Element:
        return next(element for element in self.root.iter() if element.attrib.get("id") == name)

    def rows(self, element: ElementTree.Element) -> list[list[str]]:
        """The text of a table's cells, pictures left out."""
        body = [row for body in element.iter("tbody") for row in body.iter("tr")]
        return [[text_of(cell) for cell in row if cell.find("svg") is None] for row in body]


def text_of(element: ElementTree.Element) -> str:
    return "".join(element.itertext())
