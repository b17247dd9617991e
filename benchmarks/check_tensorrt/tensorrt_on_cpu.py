"""torch_tensorrt on a machine without a GPU: enough of it to build engines.

TensorRT-RTX builds engines without a GPU, and torch-tensorrt-rtx has the converters of
torch-tensorrt, file for file. What asks for a GPU on the way is answered here; what runs an engine
is not: it needs one. Import this before anything that imports torch_tensorrt.
"""

import sys
from typing import Any

import torch

CAPABILITY = (8, 6)
"""The GPU that converters believe in; TensorRT-RTX decides on the real one when it runs."""

MEMORY_BYTES = 8 << 30


def torch_tensorrt() -> Any:
    """The module torch_tensorrt, which goes without a GPU from here on."""
    cuda: Any = torch.cuda
    cuda.get_device_capability = lambda *_, **__: CAPABILITY
    cuda.current_device = lambda: 0
    cuda.mem_get_info = lambda *_, **__: (MEMORY_BYTES, MEMORY_BYTES)
    cuda.empty_cache = lambda: None
    import torch_tensorrt as module

    for loaded in list(sys.modules.values()):
        name = getattr(loaded, "__name__", "")
        if name.startswith("torch_tensorrt") and "to_torch_device" in vars(loaded):
            vars(loaded)["to_torch_device"] = lambda *_, **__: torch.device("cpu")
    # The builder's engine is deserialised at once, which needs a GPU: its bytes are enough.
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter

    _TRTInterpreter.trt.Runtime = _Runtime
    return module


class _Runtime:
    """In the place of TensorRT's runtime."""

    def __init__(self, *_: Any) -> None: ...

    def deserialize_cuda_engine(self, engine: Any) -> "_Engine":
        return _Engine(bytes(engine))


class _Engine:
    """In the place of TensorRT's engine: the bytes of one."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def get_aliased_input_tensor(self, _: str) -> None:
        return None

    def serialize(self) -> bytes:
        return self._content

    def serialize_with_config(self, *_: Any) -> bytes:
        return self._content
