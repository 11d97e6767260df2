import pytest
from pydantic import Field

from cohorts.errors import SettingsError
from cohorts.settings import Settings, read_settings


class Inner(Settings):
    rate: float = Field(1.0, gt=0)


class Outer(Settings):
    name: str
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\ninner: {rat: 2}", r"'inner\.rat' is not a known field. Did you mean 'rate'\?"),
        ("name: a\ncolour: red", "Known fields: inner, name"),
        ("inner: {rate: 2}", "'name' is missing"),
        ("name: a\ninner: {rate: -1}", r"'inner\.rate' is -1; expected a number above 0"),
        ("- a\n- b", "expected 'name: value' lines"),
        ("name: [", "is not valid YAML near line"),
    ],
)
def test_faults_are_said_in_the_user_s_words(tmp_path, text, said):
    (tmp_path / "s.yaml").write_text(text)

    with pytest.raises(SettingsError, match=said) as fault:
        read_settings(tmp_path / "s.yaml", Outer)

    assert str(tmp_path / "s.yaml") in str(fault.value)


def test_good_files_are_read(tmp_path):
    (tmp_path / "s.yaml").write_text("name: a\ninner: {rate: 2}")

    assert read_settings(tmp_path / "s.yaml", Outer) == Outer(name="a", inner=Inner(rate=2))


def test_absent_files_and_folders_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="no such file"):
        read_settings(tmp_path / "none.yaml", Outer)
    with pytest.raises(SettingsError, match="is a folder"):
        read_settings(tmp_path, Outer)
