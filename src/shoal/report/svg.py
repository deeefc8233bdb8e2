"""The least one needs to write SVG safely: elements whose attributes and text are always escaped."""

from html import escape


class Markup(str):
    """Text that is SVG already and is not escaped again."""

    __slots__ = ()


def tag(name: str, *children: str, **attributes: str | float) -> Markup:
    """One element.

    Args:
        name: of the element.
        children: markup as it is, any other text escaped.
        attributes: `class_` is `class`; other underscores become hyphens.
    """
    written = "".join(f' {_key(key)}="{escape(_value(value))}"' for key, value in attributes.items())
    inside = "".join(child if isinstance(child, Markup) else escape(child) for child in children)
    return Markup(f"<{name}{written}>{inside}</{name}>")


def group(*children: str, **attributes: str | float) -> Markup:
    """A `g` element."""
    return tag("g", *children, **attributes)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def rect(x: float, y: float, width: float, height: float, class_: str, **more: str | float) -> Markup:
    """A rectangle."""
    return tag("rect", x=x, y=y, width=width, height=height, class_=class_, **more)


def label(x: float, y: float, text: str, class_: str = "", **more: str | float) -> Markup:
    """A piece of text at a point."""
    return tag("text", text, x=x, y=y, class_=class_, **more)


def picture(
    ident: str, width: float, height: float, title: str, desc: str, *children: str, role: str = "img"
) -> Markup:
    """The outer `svg`, named and described for those who do not see it.

    Args:
        ident: unique on the page; ids inside start with it.
        width: of the drawing, in pixels.
        height: of the drawing, in pixels.
        title: its name.
        desc: what it shows, in words.
        children: what is drawn.
        role: `group` where there are links inside, which an image would hide from those who listen.
    """
    return tag(
        "svg",
        tag("title", title, id=f"{ident}-title"),
        tag("desc", desc, id=f"{ident}-desc"),
        *children,
        role=role,
        aria_labelledby=f"{ident}-title {ident}-desc",
        viewBox=f"0 0 {_value(width)} {_value(height)}",
        width=width,
        height=height,
    )


def stock(*children: str) -> Markup:
    """What other drawings on the page use; it is there but has no size, because what is not displayed has no fills."""
    return tag("svg", *children, width=0, height=0, class_="stock", aria_hidden="true")


def use(ident: str) -> Markup:
    """What stands in a stock under this id, drawn here."""
    return tag("use", href=f"#{ident}")


def icon(*children: str) -> Markup:
    """A small sign of 22 pixels beside a word that says the same, hidden from those who listen."""
    return tag("svg", *children, width=22, height=22, viewBox="0 0 22 22", aria_hidden="true")


def _key(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
