"""The network run by PyTorch itself: anywhere, and what the other engines are compared with."""

import copy
import logging
import threading

import torch
from torch import Tensor

from nets.aggregation import Maps
from nets.checkpoints import Model
from nets.engines.engine import NetWithMaps, Precision, check_images, maps_of_outputs
from nets.engines.half_precision import half_copy

logger = logging.getLogger(__name__)


class TorchEngine:
    """PyTorch as it comes, in the memory order that its convolutions are fastest in."""

    name = "torch"

    def __init__(
        self, model: Model, *, device: str = "cpu", precision: str = "auto", threads: int | None
    ) -> None:
        self.device = device
        self.precision: Precision = (
            "bf16" if precision == "bf16" else "fp16" if precision == "fp16" else "fp32"
        )
        self._tag_ramp_px = model.tag_ramp_px
        self._lock = threading.Lock()  # two calls at once would fight for the same cores
        self._dtype = torch.float16 if precision == "fp16" else torch.float32
        if threads is not None:
            torch.set_num_threads(threads)
        # A copy: the caller may continue to train the original.
        net = half_copy(model.net) if precision == "fp16" else copy.deepcopy(model.net).eval()
        # torch's stubs know no memory_format in Module.to
        self._net = NetWithMaps(net).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        logger.info("engine: torch %s on %s", self.precision, device)

    def __call__(self, images: Tensor) -> Maps:
        check_images(images, self.device)
        autocast = torch.autocast(
            torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"
        )
        with self._lock, torch.inference_mode(), autocast:
            moved = images.to(self.device, self._dtype, memory_format=torch.channels_last)
            outputs = [output.to(images.device, torch.float32) for output in self._net(moved)]
        # Cloned out here: callers may write into the result, which inference tensors forbid.
        outputs = [output.clone(memory_format=torch.contiguous_format) for output in outputs]
        return maps_of_outputs(outputs, images, self._tag_ramp_px)
