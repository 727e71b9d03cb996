"""Energy that the machine has used, from the counters of Intel and AMD CPUs (RAPL) and of NVIDIA GPUs."""

from collections.abc import Callable
from pathlib import Path

from app.machine.gpu import Gpu

POWERCAP = Path("/sys/class/powercap")

EnergyMeter = Callable[[], int]
"""Microjoules since some moment, of all processes together."""


class Rapl:
    """The counters of CPU packages and their memory."""

    def __init__(self, zones: list[Path]) -> None:
        self._ranges = {zone: int((zone / "max_energy_range_uj").read_text()) for zone in zones}
        self._last = {zone: _energy(zone) for zone in zones}
        self._total = 0

    @classmethod
    def find(cls, folder: Path) -> "Rapl | None":
        """None if the machine has no such counters, or only root may read them."""
        try:
            zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if _is_counted(zone)]
            return cls(zones) if zones else None
        except (OSError, ValueError):
            return None

    def read(self) -> int:
        """Microjoules since the first call. A counter starts again from 0 after its range."""
        for zone, last in self._last.items():
            try:
                now = _energy(zone)
            except (OSError, ValueError):
                continue
            self._total += (now - last) % (self._ranges[zone] + 1)
            self._last[zone] = now
        return self._total


def energy_meter(gpu: Gpu | None, folder: Path | None = None) -> EnergyMeter | None:
    """The energy of the CPU packages and of this GPU. None if the machine counts neither."""
    rapl = Rapl.find(folder or POWERCAP)
    meters = [rapl.read] if rapl else []
    if gpu and gpu.energy() is not None:
        meters.append(lambda: gpu.energy() or 0)
    return (lambda: sum(meter() for meter in meters)) if meters else None


def _is_counted(zone: Path) -> bool:
    """Zones for parts of a package are included in that of the package."""
    return (zone / "name").read_text().strip().startswith(("package", "dram"))


def _energy(zone: Path) -> int:
    return int((zone / "energy_uj").read_text())
