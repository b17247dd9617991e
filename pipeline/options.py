"""The options of a stream by their short names: the same on the command line and in Python.

    run_stream.py demo --device cpu --max-frames 20      stream("demo", device="cpu", max_frames=20)

An option stands for one setting (config.py has them all), or for one of every source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.nearest import nearest
from common.settings import ConfigError
from pipeline.config import StreamConfig, load_config
from pipeline.sinks.table import ROWS

OF_EVERY_SOURCE = ("pace", "loop", "max_frames", "max_fps", "transport", "decode")
SETTING_OF = {
    "weights": "weights",
    "device": "inference.device",
    "engine": "inference.engine",
    "precision": "inference.precision",
    "threads": "inference.threads",
    "flip_test": "inference.flip_test",
    "target_fps": "contract.target_fps",
    "max_age_ms": "contract.max_age_ms",
    **{option.dest: option.setting for row in ROWS for option in row.options},
    "privacy": "privacy",
}
SWITCHED_OFF = {"no_track": "tracker.enabled", "no_smooth": "smooth.enabled"}
OPTIONS = (*OF_EVERY_SOURCE, *SETTING_OF, *SWITCHED_OFF, "input_size")


def config_of_options(
    options: Mapping[str, Any],
    *,
    path: Path | None = None,
    sources: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
) -> StreamConfig:
    """The configuration that options ask for; see load_config for the rest.

    Args:
        options: by name; one that is None or False was not given.
    Raises:
        ConfigError: no such option, or a value that its setting refuses; one line.
    """
    for name in options:
        if name not in OPTIONS:
            close = nearest(name, OPTIONS)
            hint = f"known: {', '.join(OPTIONS)}" if close is None else f"did you mean {close!r}?"
            raise ConfigError(f"no option is called {name!r}; {hint}")
    # Compared by identity, because 0 equals False: that 0 is no use is for its setting to say.
    given = {name: value for name, value in options.items() if value is not None}
    given = {name: value for name, value in given.items() if value is not False}
    return load_config(
        path,
        sources=sources,
        every_source={name: given[name] for name in OF_EVERY_SOURCE if name in given},
        settings={**_settings(given), **(settings or {})},
        overrides=overrides,
    )


def _settings(given: Mapping[str, Any]) -> dict[str, Any]:
    settings = {setting: given[name] for name, setting in SETTING_OF.items() if name in given}
    settings |= {setting: False for name, setting in SWITCHED_OFF.items() if name in given}
    if "input_size" in given:
        width, _, height = str(given["input_size"]).partition("x")
        if height:
            settings["preprocess.canvas"] = (height, width)
        else:
            settings["preprocess.input_size"] = given["input_size"]
    return settings
