import pytest
import yaml

from study.settings import load_study
from tests.support.federation import STUDY


@pytest.fixture
def read(tmp_path):
    """Write the small study with changes, and read it."""

    def write_and_read(**changes):
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({**STUDY, **changes}))
        return load_study(tmp_path / "study.yaml")

    return write_and_read
