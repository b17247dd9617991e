"""The painted world: a network that reads painted people takes the place of the weights."""

import pytest

from tests.support.painted import painted_model


@pytest.fixture(autouse=True)
def _painted_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.network.load_model", lambda _: painted_model())
