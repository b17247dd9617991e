"""The loader of settings: what a key without a value stands for."""

from pathlib import Path

from pydantic import Field

from common.settings import Settings, checked, read_yaml


class _Group(Settings):
    weights: str = "in the box"


class _All(Settings):
    group: _Group = _Group()
    optional: _Group | None = Field(default_factory=_Group)
    several: tuple[_Group, ...] = ()
    number: int | None = 3


def test_a_key_without_a_value(tmp_path: Path) -> None:
    """A group whose lines are all commented out is its defaults; what may be None is None."""
    path = tmp_path / "settings.yaml"
    path.write_text("group:\n  # weights: mine\noptional:\nseveral:\nnumber:\n")
    settings = checked(_All, read_yaml(path, _All, noun="settings"))
    assert settings == _All(group=_Group(), optional=None, several=(), number=None)
