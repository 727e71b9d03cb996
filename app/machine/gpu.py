"""Memory and utilization of the GPU, read from the NVIDIA driver."""

from typing import Any, NamedTuple


class GpuFigures(NamedTuple):
    """Figures of the whole card, including the work of other processes."""

    memory_used_bytes: int
    memory_total_bytes: int
    utilization: float | None
    """Share of recent time that the card was busy, 0 to 1. None for a slice of a card (MIG)."""


class Gpu:
    """One card."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle

    @classmethod
    def find(cls, index: int, uuid: str | None) -> "Gpu | None":
        """The card with this UUID, or with this index if the UUID is unknown. None if the driver does not answer.

        The UUID is preferred, because CUDA counts only the visible cards and the driver counts all of them.
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
        """The current figures. None if the driver does not report them."""
        try:
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        except self._nvml.NVMLError:
            return None
        return GpuFigures(memory.used, memory.total, self._utilization())

    def energy(self) -> int | None:
        """Microjoules that the card has used since the driver was loaded. None if it does not report them."""
        try:
            return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) * 1000
        except self._nvml.NVMLError:
            return None

    def _utilization(self) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu / 100)
        except self._nvml.NVMLError:
            return None
