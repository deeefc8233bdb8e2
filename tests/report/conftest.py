import pytest
from browsing import find_chromium
from handmade import bare_record, make_record

from shoal.record import Record


@pytest.fixture
def record() -> Record:
    return make_record()


@pytest.fixture
def bare() -> Record:
    return bare_record()


@pytest.fixture(scope="session")
def chromium() -> str:
    return find_chromium()
