"""Hardware of a rank: memory sizes and bandwidths as published, each of which can be overridden."""

import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Literal

import torch
from torchrec.distributed.planner import Topology

from mail_torchrec.embeddings.rates.hardware_file import SUFFIX, HardwareFile, read_hardware_file
from mail_torchrec.embeddings.rates.machine_rates import MachineRates
from mail_torchrec.embeddings.rates.machine_rates import specs as rate_specs
from mail_torchrec.embeddings.storage import MemoryKind

GIB = 1024**3
_GB_S_TO_BYTES_MS = 1e9 / 1000  # TorchRec's planner counts bytes a millisecond


@dataclass(frozen=True)
class Hardware:
    """One rank's share of a host.

    Bandwidths are the peak in one direction, in decimal GB/s; memories are in GiB.
    """

    device: Literal["cuda", "cpu"]
    """Device that holds the tables and the towers."""
    local_world_size: int
    """Ranks of one host."""
    hbm_gib: float
    """Memory of the GPU as CUDA reports it; 0 on CPU."""
    host_gib: float
    """Memory of the host, divided by its ranks."""
    hbm_gb_s: float
    """Bandwidth of the GPU's memory."""
    host_gb_s: float
    """Bandwidth of the host's memory, divided by its ranks."""
    pcie_gb_s: float
    """Bandwidth between the GPU and the host's memory."""
    intra_gb_s: float
    """Bandwidth between the ranks of one host (NVLink)."""
    inter_gb_s: float
    """Bandwidth from a rank to other hosts."""
    tflops: float
    """Peak float32 TFLOP/s, in which the towers compute."""
    reserved_share: float = 0.1
    """Share of the memory that is kept free: for CUDA's context, NCCL's buffers and the allocator's
    fragments; on CPU for the rest of the process and of the host."""
    efficiency: float = 0.6
    """Share of every peak bandwidth and of the peak TFLOP/s that is reached; an assumption, to be
    replaced by a measurement."""
    source: str = ""
    """Where the numbers come from."""
    preset: str = ""
    """Preset that stands for what was not measured; empty where nothing was."""
    rates: MachineRates | None = None
    """Measured rates, by which times are estimated in the place of bandwidths and TFLOP/s."""

    @property
    def capacity(self) -> dict[MemoryKind, int]:
        """Bytes of each memory that a rank may fill."""
        usable = 1 - self.reserved_share
        return {
            "hbm": int(self.hbm_gib * GIB * usable),
            "host": int(self.host_gib * GIB * usable),
        }

    def topology(self, world_size: int) -> Topology:
        """Converts to the topology that TorchRec's estimators take."""
        reached = _GB_S_TO_BYTES_MS * self.efficiency
        return Topology(
            world_size=world_size,
            compute_device=self.device,
            local_world_size=min(self.local_world_size, world_size),
            hbm_cap=int(self.hbm_gib * GIB) if self.device == "cuda" else None,
            ddr_cap=int(self.host_gib * GIB),
            hbm_mem_bw=self.hbm_gb_s * reached,
            ddr_mem_bw=self.host_gb_s * reached,
            hbm_to_ddr_mem_bw=self.pcie_gb_s * reached,
            intra_host_bw=self.intra_gb_s * reached,
            inter_host_bw=self.inter_gb_s * reached,
        )

    def specs(self) -> dict[str, object]:
        """Returns every number by its name, for reports."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        rates, preset = found.pop("rates"), found.pop("preset")
        return found if rates is None else found | {"preset": preset, "rates": rate_specs(rates)}


_DGX_A100 = (
    "NVIDIA A100 datasheet (SXM4); DGX A100 datasheet: 8 GPUs, ConnectX-6 of 200 Gb/s a GPU, "
    "2 x 8 channels of DDR4-3200"
)
_DGX_H100 = (
    "DGX datasheet: 8 GPUs, ConnectX-7 of 400 Gb/s a GPU, 2 TB of host memory, "
    "2 x 8 channels of DDR5-4800, 8 x 3.84 TB NVMe"
)
_A100_80 = Hardware(
    device="cuda",
    local_world_size=8,
    hbm_gib=79.1,
    host_gib=256,
    hbm_gb_s=2039,
    host_gb_s=51,
    pcie_gb_s=32,
    intra_gb_s=300,
    inter_gb_s=25,
    tflops=19.5,
    source=f"{_DGX_A100}; 2 TB of host memory, 8 x 3.84 TB NVMe",
)
_H100 = Hardware(
    device="cuda",
    local_world_size=8,
    hbm_gib=79.1,
    host_gib=256,
    hbm_gb_s=3350,
    host_gb_s=77,
    pcie_gb_s=64,
    intra_gb_s=450,
    inter_gb_s=50,
    tflops=67,
    source=f"NVIDIA H100 datasheet (SXM5); {_DGX_H100}",
)
PRESETS: dict[str, Hardware] = {
    "a100-40": replace(
        _A100_80,
        hbm_gib=39.4,
        host_gib=128,
        hbm_gb_s=1555,
        source=f"{_DGX_A100}; 1 TB of host memory, 4 x 3.84 TB NVMe",
    ),
    "a100-80": _A100_80,
    "h100": _H100,
    "h200": replace(
        _H100,
        hbm_gib=139.7,
        hbm_gb_s=4800,
        source=f"NVIDIA H200 datasheet (SXM5); {_DGX_H100}",
    ),
    "b200": replace(
        _H100,
        hbm_gib=178.3,
        hbm_gb_s=8000,
        host_gb_s=90,
        intra_gb_s=900,
        tflops=75,
        source=(
            "DGX B200 datasheet: 8 GPUs of 180 GB, NVLink 5, ConnectX-7 of 400 Gb/s a GPU, 2 TB "
            "of DDR5-5600, 8 x 3.84 TB NVMe"
        ),
    ),
    "cpu": Hardware(
        device="cpu",
        local_world_size=2,
        hbm_gib=0,
        host_gib=512,
        hbm_gb_s=0,
        host_gb_s=307,
        pcie_gb_s=0,
        intra_gb_s=48,
        inter_gb_s=12.5,
        tflops=7.2,
        source=(
            "Xeon Platinum 8480+: a rank a socket of 56 cores (AVX-512), 8 channels of DDR5-4800, "
            "UPI 2.0; 200 Gb/s Ethernet a host"
        ),
    ),
}
"""Hardware by the name that ``--hardware`` takes."""


_NO_NUMBERS = ("device", "source", "preset", "rates")


def hardware_preset(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Hardware:
    """Looks up a preset, or reads a hardware file, and applies ``key=value`` overrides.

    Raises:
        ValueError: no such preset, file or key, or a value that is no positive number.
    """
    changes = dict(_parse_override(override) for override in overrides)
    by_hand = "".join(f"; set by hand: {text}" for text in overrides)
    if name.endswith(SUFFIX):
        found = measured_hardware(read_hardware_file(Path(name)), name)
        return replace(found, **changes, source=found.source + by_hand)  # type: ignore[arg-type]
    if name not in PRESETS:
        raise ValueError(
            f"unknown hardware '{name}'; known are {', '.join(PRESETS)}, and every number can be "
            "set: --set hbm_gib=96; or name the file of plan --calibrate, such as hardware.json"
        )
    preset = PRESETS[name]
    return replace(preset, **changes, source=preset.source + by_hand)  # type: ignore[arg-type]


def measured_hardware(file: HardwareFile, name: str) -> Hardware:
    """Converts a hardware file; what it does not hold is as published, less the efficiency.

    Args:
        file: the content.
        name: of the file, for reports.

    Raises:
        ValueError: its preset is not known, or is of another device.
    """
    rates, preset = file.rates, PRESETS.get(file.preset)
    if preset is None or preset.device != rates.device:
        raise ValueError(
            f"'{name}' is damaged: no preset of {rates.device} is called '{file.preset}'; make it "
            "anew: mail-torchrec plan --calibrate"
        )
    link = 1 / max(rates.all_to_all.ms_a_mb, 1e-9)  # a MB a millisecond is a GB a second
    over_hosts = rates.world_size > file.local_world_size
    return replace(
        preset,
        local_world_size=file.local_world_size,
        hbm_gib=file.hbm_gib,
        host_gib=file.host_gib,
        hbm_gb_s=rates.copy_gb_s if rates.device == "cuda" else 0,
        host_gb_s=rates.host_copy_gb_s,
        pcie_gb_s=preset.pcie_gb_s * preset.efficiency,
        intra_gb_s=preset.intra_gb_s * preset.efficiency if over_hosts else link,
        inter_gb_s=link if over_hosts else preset.inter_gb_s * preset.efficiency,
        tflops=rates.tower_tflops,
        efficiency=1.0,
        source=f"measured on {file.measured_on}; the rest as published: {preset.source}",
        preset=file.preset,
        rates=rates,
    )


def _parse_override(override: str) -> tuple[str, float]:
    key, _, text = override.partition("=")
    known = [field.name for field in fields(Hardware) if field.name not in _NO_NUMBERS]
    if key not in known:
        raise ValueError(
            f"--set {override}: hardware has no key '{key}'; it has {', '.join(known)}"
        )
    try:
        value = int(text) if key == "local_world_size" else float(text)
    except ValueError:
        raise ValueError(f"--set {key} should be a number, received '{text}'") from None
    least = 0 if key.endswith("_gib") or key == "reserved_share" else 1e-9
    is_share = key in ("reserved_share", "efficiency")
    if not least <= value < float("inf") or (is_share and value > 1):
        raise ValueError(
            f"--set {key}: should be a positive number (shares at most 1), received {text}"
        )
    return key, value


def detect_hardware(
    device: torch.device, local_world_size: int, file: str | None = None
) -> Hardware:
    """Describes the hardware of this process.

    Memory sizes are those of the device and the host. Bandwidths are those of the preset that the
    GPU's name contains, and of an A100 if no preset matches.

    Args:
        device: of this rank.
        local_world_size: ranks of one host.
        file: a hardware file, whose rates count instead of published bandwidths.

    Raises:
        ValueError: there is no such file, or it is of another device.
    """
    published = PRESETS[preset_of(device)]
    if file is not None:
        published = hardware_preset(file)
        if published.device != device.type:
            raise ValueError(
                f"sharding.hardware: '{file}' was measured on {published.device}, and this job "
                f"runs on {device.type}; measure it there, or leave it out"
            )
    host_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB / local_world_size
    if device.type == "cpu":
        return replace(published, local_world_size=local_world_size, host_gib=host_gib)
    return replace(
        published,
        local_world_size=local_world_size,
        hbm_gib=torch.cuda.get_device_properties(device).total_memory / GIB,
        host_gib=host_gib,
    )


def preset_of(device: torch.device) -> str:
    """Returns the preset that the GPU's name contains, an A100's if none does; ``cpu`` on CPU."""
    if device.type == "cpu":
        return "cpu"
    gpu = torch.cuda.get_device_properties(device).name.lower()
    return next((name for name in PRESETS if name.partition("-")[0] in gpu), "a100-80")
