"""Goal and configuration as flat options, for tests that go through many of them."""

from shoal.pipeline.api import FORMER_KEYWORDS, from_former_keywords


def typed(**options):
    """The keywords of compress() for flat options, `remove=2, images=...` alike."""
    former = {name: options.pop(name) for name in FORMER_KEYWORDS if name in options}
    return from_former_keywords(former, options)
