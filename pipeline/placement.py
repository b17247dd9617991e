"""Which devices run the network, and which source is on which card: decided here, once.

    --device cuda:0,cuda:1 -> devices_of -> Placement:  gate  -> cuda:0
                                                        yard  -> cuda:1
                                                        door  -> cuda:0

A source stays on its card: that one decodes it and runs the network on its frames, so they keep
their order. Cards have two numbers: the place in --device, which messages carry (NetInput.card),
and CUDA's own, called device here. This file decodes nothing and needs torch only for `auto`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

from kernels.arrays import why_no_gpu
from pipeline.config import ConfigError, InferenceConfig


def devices_of(config: InferenceConfig) -> list[str]:
    """The devices that a user asked for: "cuda:0,cuda:1" are two; "auto" may become the CPU.

    Raises:
        ConfigError: the CPU beside cards, or a card twice.
    """
    names = [name.strip() for name in config.device.split(",")]
    if names == ["auto"]:
        names = ["cuda" if _has_card(config) else "cpu"]
    names = ["cuda:0" if name == "cuda" else name for name in names]
    if len(names) > 1 and ("cpu" in names or "auto" in names or len(set(names)) < len(names)):
        raise ConfigError(f"several devices must be different cards, got {config.device!r}")
    return names


def cuda_devices(config: InferenceConfig) -> list[int]:
    """CUDA's numbers of the cards that will run the network; none where it runs on the CPU.

    What is wrong with a device is left to those who load the network on it.
    """
    if config.device == "cpu" or why_no_gpu() is not None:
        return []  # known without importing torch, which takes seconds
    matches = [re.fullmatch(r"cuda:(\d+)", name) for name in devices_of(config)]
    return [int(match[1]) for match in matches if match is not None]


def _has_card(config: InferenceConfig) -> bool:
    if config.engine == "openvino":
        return False
    import torch

    return torch.cuda.is_available()


class Placement:
    """Which source is on which card. From any thread.

    Args:
        devices: CUDA's number of each card; none where the network runs on no card, or in another
            process.
    """

    def __init__(self, devices: Sequence[int]) -> None:
        self._devices = tuple(devices)
        self._card_of: dict[str, int] = {}
        self._lock = threading.Lock()

    def emptiest(self) -> int | None:
        """The card with the fewest sources; None where there are no cards."""
        with self._lock:
            return self._emptiest()

    def put(self, source: str, card: int | None) -> None:
        """The source is on that card from now on; None: on none."""
        if card is not None:
            with self._lock:
                self._card_of[source] = card

    def card_of(self, source: str) -> int:
        """The source's card. One that nobody put anywhere, as its decoder is in another process,
        goes where the fewest are."""
        with self._lock:
            if source not in self._card_of:
                card = self._emptiest()
                assert card is not None, "frames reach a card only where there is one"
                self._card_of[source] = card
            return self._card_of[source]

    def device(self, card: int | None) -> int | None:
        """CUDA's number of a card."""
        return None if card is None else self._devices[card]

    def card_with(self, device: int) -> int:
        """The card that has this CUDA number."""
        return self._devices.index(device)

    def forget_source(self, name: str) -> None:
        """The source has gone; one that comes later may take its place."""
        with self._lock:
            self._card_of.pop(name, None)

    def _emptiest(self) -> int | None:
        counts = [list(self._card_of.values()).count(i) for i in range(len(self._devices))]
        return counts.index(min(counts)) if counts else None
