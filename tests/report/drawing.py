"""An SVG as a test reads it: what each mark is, and where."""

import re
from xml.etree import ElementTree

Points = list[tuple[float, float]]


class Drawing:
    """The marks of a plot by their CSS class."""

    def __init__(self, text: str) -> None:
        self.root = ElementTree.fromstring(text)
        self.width, self.height = float(self.root.get("width")), float(self.root.get("height"))

    def marks(self, style: str) -> list[ElementTree.Element]:
        """The groups of exactly this class."""
        return [group for group in self.root.iter("g") if group.get("class") == style]

    def lines(self, style: str) -> list[Points]:
        """The corners of every line of this class."""
        found = []
        for mark in self.marks(style):
            for path in mark.findall("path"):
                numbers = list(map(float, re.findall(r"-?[\d.]+", path.get("d"))))
                found.append(list(zip(numbers[::2], numbers[1::2], strict=True)))
        return found

    def markers(self, style: str) -> Points:
        """The centre of every marker of this class."""
        uses = [use for mark in self.marks(style) for use in mark.iter("use")]
        return [(float(use.get("x")), float(use.get("y"))) for use in uses]

    def texts(self, style: str = "") -> list[str]:
        """What is written, in texts of this class or all."""
        within = [group for group in self.root.iter("g") if not style or group.get("class") == style]
        return [text.text or "" for group in within for text in group.findall("text")]

    def titles(self) -> list[str]:
        """The hover titles; the first title of all names the picture."""
        return [title.text or "" for title in self.root.iter("title")][1:]
