import pytest
from handmade import bare_record, make_record

from shoal.record import Record


@pytest.fixture
def record() -> Record:
    return make_record()


@pytest.fixture
def bare() -> Record:
    return bare_record()
