"""What the NVIDIA driver tells of the GPU that the model is on."""

from typing import Any, NamedTuple


class GpuFigures(NamedTuple):
    """What the whole card does, other processes' work included."""

    memory_used_bytes: int
    memory_total_bytes: int
    utilization: float | None
    """Share of the last moments that it computed in, 0 to 1. A slice of a card (MIG) does not tell it."""


class Gpu:
    """One card. Figures are read when they are asked for."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def find(cls, index: int, uuid: str | None) -> "Gpu | None":
        """The card with this UUID, or this number where that is not known; None where the driver does not tell.

        CUDA counts the visible cards only, the driver all of them.
        """
        try:
            import pynvml
        except ImportError:
            return None
        try:
            pynvml.nvmlInit()
            if uuid:
                return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid.removeprefix('GPU-')}"))
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError:
            return None

    @classmethod
    def of_device(cls, device: str, uuid: str | None) -> "Gpu | None":
        """The card of a torch device such as `cuda:1`; None if the driver reports nothing."""
        return cls.find(int(device.partition(":")[2] or 0), uuid)

    def read(self) -> GpuFigures | None:
        """The figures of now; None while the driver does not tell them."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        except self._nvml.NVMLError:
            return None
        return GpuFigures(memory.used, memory.total, self._utilization())

    def _utilization(self) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100)
        except self._nvml.NVMLError:
            return None
