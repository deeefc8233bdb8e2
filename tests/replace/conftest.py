import pytest
from given import dissected, spans

import networks


@pytest.fixture(scope="session")
def residual():
    """The spans of a residual network whose blocks all keep their shape."""
    return spans(dissected(lambda: networks.PreactNet(8, 3), 1, 6, 6))
