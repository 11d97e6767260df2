import pytest

from tests.support.sites import Sites, make_sites


@pytest.fixture
def five_sites() -> Sites:
    return make_sites((31, 24, 47, 12, 60), p=40)
