"""Options by their short names: the same on the command line and in Python."""

from pathlib import Path

import pytest

import run_stream
from common.settings import ConfigError
from pipeline.config import StreamConfig
from pipeline.options import OPTIONS, SETTING_OF, SWITCHED_OFF, config_of_options


def test_every_option_is_a_setting_that_there_is() -> None:
    for setting in (*SETTING_OF.values(), *SWITCHED_OFF.values()):
        group: object = StreamConfig()
        for word in setting.split("."):
            group = getattr(group, word)


def test_the_command_line_has_all_of_them_but_threads() -> None:
    known = vars(run_stream._parser().parse_args(["demo"]))
    assert set(OPTIONS) - set(known) == {"threads"}


def test_options_become_settings() -> None:
    config = config_of_options(
        {"max_frames": 3, "device": "cpu", "save": "a.mp4", "no_track": True, "input_size": 64},
        sources=["demo", "testsrc"],
        settings={"poses.refine": "off"},
    )
    assert [source.max_frames for source in config.sources] == [3, 3]
    assert (config.inference.device, config.video.path) == ("cpu", Path("a.mp4"))
    assert (config.tracker.enabled, config.smooth.enabled) == (False, True)
    assert (config.preprocess.input_size, config.poses.refine) == (64, "off")


def test_a_size_of_two_sides_is_a_canvas() -> None:
    assert config_of_options({"input_size": "512x288"}).preprocess.canvas == (288, 512)


def test_what_is_none_or_false_was_not_given() -> None:
    assert config_of_options({"flip_test": False, "device": None}) == StreamConfig()
    with pytest.raises(ConfigError, match="max_fps"):  # 0 equals False, and is a mistake
        config_of_options({"max_fps": 0}, sources=["demo"])


@pytest.mark.parametrize(
    ("name", "said"),
    [("max_frame", "did you mean 'max_frames'"), ("xyz", "known: pace, loop")],
)
def test_an_option_that_there_is_not(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config_of_options({name: 1})
