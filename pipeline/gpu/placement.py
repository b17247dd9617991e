"""Which devices run the network, and which source is on which GPU: decided here, once.

    --device cuda:0,cuda:1 -> devices_of -> Placement:  gate  -> cuda:0
                                                        yard  -> cuda:1
                                                        door  -> cuda:0

A source stays on its GPU: that one decodes it and runs the network on its frames, so they keep
their order. Gpus have two numbers: the place in --device, which messages carry (NetInput.gpu),
and CUDA's own, called device here. This file decodes nothing and needs torch only for `auto`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence

from common.settings import ConfigError
from kernels.arrays import why_no_gpu
from pipeline.config import InferenceConfig


def devices_of(config: InferenceConfig) -> list[str]:
    """The devices that a user asked for: "cuda:0,cuda:1" are two; "auto" may become the CPU.

    Raises:
        ConfigError: the CPU beside GPUs, or a GPU twice.
    """
    names = [name.strip() for name in config.device.split(",")]
    if names == ["auto"]:
        names = ["cuda" if _has_gpu(config) else "cpu"]
    names = ["cuda:0" if name == "cuda" else name for name in names]
    if len(names) > 1 and ("cpu" in names or "auto" in names or len(set(names)) < len(names)):
        raise ConfigError(f"several devices must be different GPUs, got {config.device!r}")
    return names


def cuda_devices(config: InferenceConfig) -> list[int]:
    """CUDA's numbers of the GPUs that will run the network; none where it runs on the CPU.

    What is wrong with a device is left to those who load the network on it.
    """
    if config.device == "cpu" or why_no_gpu() is not None:
        return []  # known without importing torch, which takes seconds
    matches = [re.fullmatch(r"cuda:(\d+)", name) for name in devices_of(config)]
    return [int(match[1]) for match in matches if match is not None]


def _has_gpu(config: InferenceConfig) -> bool:
    if config.engine == "openvino":
        return False
    import torch

    return torch.cuda.is_available()


class Placement:
    """Which source is on which GPU. From any thread.

    Args:
        devices: CUDA's number of each GPU; none where the network runs on no GPU, or in another
            process.
    """

    def __init__(self, devices: Sequence[int]) -> None:
        self._devices = tuple(devices)
        self._gpu_of: dict[str, int] = {}
        self._lock = threading.Lock()

    def emptiest(self) -> int | None:
        """The GPU with the fewest sources; None where there are no GPUs."""
        with self._lock:
            return self._emptiest()

    def put(self, source: str, gpu: int | None) -> None:
        """The source is on that GPU from now on; None: on none."""
        if gpu is not None:
            with self._lock:
                self._gpu_of[source] = gpu

    def gpu_of(self, source: str) -> int:
        """The source's GPU. One that nobody put anywhere, as its decoder is in another process,
        goes where the fewest are."""
        with self._lock:
            if source not in self._gpu_of:
                gpu = self._emptiest()
                assert gpu is not None, "frames reach a GPU only where there is one"
                self._gpu_of[source] = gpu
            return self._gpu_of[source]

    def device(self, gpu: int | None) -> int | None:
        """CUDA's number of a GPU."""
        return None if gpu is None else self._devices[gpu]

    def gpu_with(self, device: int) -> int:
        """The GPU that has this CUDA number."""
        return self._devices.index(device)

    def forget_source(self, name: str) -> None:
        """The source has gone; one that comes later may take its place."""
        with self._lock:
            self._gpu_of.pop(name, None)

    def _emptiest(self) -> int | None:
        counts = [list(self._gpu_of.values()).count(i) for i in range(len(self._devices))]
        return counts.index(min(counts)) if counts else None
