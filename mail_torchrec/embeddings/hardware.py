"""What a rank runs on: memories and bandwidths, as published; every figure can be overridden."""

import os
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

import torch
from torchrec.distributed.planner import Topology

GIB = 1024**3
_PER_MS = 1e9 / 1000  # GB/s -> bytes a millisecond, the planner's unit


@dataclass(frozen=True)
class Hardware:
    """One rank's share of a host. Bandwidths are one direction's peak, decimal GB/s; memories are GiB."""

    device: Literal["cuda", "cpu"]
    ranks_a_host: int
    hbm_gib: float
    """The GPU's memory, as CUDA reports it; 0 on CPU."""
    host_gib: float
    """The host's memory over its ranks."""
    ssd_gib: float
    """Local SSDs over the host's ranks, for key-value tables."""
    hbm_gb_s: float
    host_gb_s: float
    pcie_gb_s: float
    """Between the GPU and the host's memory."""
    intra_gb_s: float
    """Between the ranks of one host (NVLink)."""
    inter_gb_s: float
    """From a rank to other hosts."""
    tflops: float
    """Float32, as the towers run."""
    reserved_share: float = 0.1
    """Of the memory: CUDA's context, NCCL's buffers, fragments of the allocator; on CPU the rest of
    the process and of the host."""
    efficiency: float = 0.6
    """Of every peak that work like this reaches; an assumption, to be replaced by a measurement."""
    source: str = ""

    @property
    def capacity(self) -> dict[str, int]:
        """Bytes a rank may fill, by kind of memory; nothing is kept back of an SSD."""
        usable = 1 - self.reserved_share
        return {
            "hbm": int(self.hbm_gib * GIB * usable),
            "host": int(self.host_gib * GIB * usable),
            "ssd": int(self.ssd_gib * GIB),
        }

    def topology(self, world_size: int) -> Topology:
        """The ranks as TorchRec's estimators see them."""
        speed = _PER_MS * self.efficiency
        return Topology(
            world_size=world_size,
            compute_device=self.device,
            local_world_size=min(self.ranks_a_host, world_size),
            hbm_cap=int(self.hbm_gib * GIB) if self.device == "cuda" else None,
            ddr_cap=int(self.host_gib * GIB),
            hbm_mem_bw=self.hbm_gb_s * speed,
            ddr_mem_bw=self.host_gb_s * speed,
            hbm_to_ddr_mem_bw=self.pcie_gb_s * speed,
            intra_host_bw=self.intra_gb_s * speed,
            inter_host_bw=self.inter_gb_s * speed,
        )


_DGX_A100 = "NVIDIA A100 datasheet (SXM4); DGX A100 datasheet: 8 GPUs, ConnectX-6 of 200 Gb/s a GPU, 2 x 8 channels of DDR4-3200"
_DGX_H100 = "DGX datasheet: 8 GPUs, ConnectX-7 of 400 Gb/s a GPU, 2 TB of host memory, 2 x 8 channels of DDR5-4800, 8 x 3.84 TB NVMe"
_A100_80 = Hardware(
    "cuda",
    8,
    79.1,
    256,
    3500,
    2039,
    51,
    32,
    300,
    25,
    19.5,
    source=f"{_DGX_A100}; 2 TB of host memory, 8 x 3.84 TB NVMe",
)
_H100 = Hardware(
    "cuda",
    8,
    79.1,
    256,
    3500,
    3350,
    77,
    64,
    450,
    50,
    67,
    source=f"NVIDIA H100 datasheet (SXM5); {_DGX_H100}",
)
PRESETS: dict[str, Hardware] = {
    "a100-40": replace(
        _A100_80, hbm_gib=39.4, host_gib=128, ssd_gib=1750, hbm_gb_s=1555, source=f"{_DGX_A100}; 1 TB of host memory, 4 x 3.84 TB NVMe"
    ),
    "a100-80": _A100_80,
    "h100": _H100,
    "h200": replace(_H100, hbm_gib=139.7, hbm_gb_s=4800, source=f"NVIDIA H200 datasheet (SXM5); {_DGX_H100}"),
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
        "cpu", 2, 0, 512, 3500, 0, 307, 0, 48, 12.5, 7.2,
        source=(
            "Xeon Platinum 8480+: a rank a socket of 56 cores (AVX-512), 8 channels of DDR5-4800, "
            "UPI 2.0; 200 Gb/s Ethernet a host"
        ),
    ),
}  # fmt: skip
"""By the name that ``--hardware`` takes."""


def hardware(name: str, overrides: list[str] | tuple[str, ...] = ()) -> Hardware:
    """A preset, with ``key=value`` overrides.

    Raises:
        ValueError: no such preset or figure, or a value that is no positive number.
    """
    if name not in PRESETS:
        raise ValueError(
            f"unknown hardware '{name}'; known are {', '.join(PRESETS)}, and every figure can be "
            "set: --set hbm_gib=96"
        )
    preset = PRESETS[name]
    known = [field.name for field in fields(Hardware) if field.name not in ("device", "source")]
    changes: dict[str, float] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if key not in known:
            raise ValueError(
                f"--set {override}: hardware has no figure '{key}'; it has {', '.join(known)}"
            )
        try:
            changes[key] = int(value) if key == "ranks_a_host" else float(value)
        except ValueError:
            raise ValueError(f"--set {key} should be a number, received '{value}'") from None
        least = 0 if key.endswith("_gib") or key == "reserved_share" else 1e-9
        if not least <= changes[key] < float("inf") or (
            key in ("reserved_share", "efficiency") and changes[key] > 1
        ):
            raise ValueError(
                f"--set {key}: should be a positive number (shares at most 1), received {value}"
            )
    source = preset.source + "".join(f"; set by hand: {text}" for text in overrides)
    return replace(preset, **changes, source=source)  # type: ignore[arg-type]


def this_hardware(device: torch.device, local_world_size: int) -> Hardware:
    """What this process runs on: its device's real memory, bandwidths of the preset that its name speaks of (else an A100's)."""
    host_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB / local_world_size
    if device.type == "cpu":
        return replace(PRESETS["cpu"], ranks_a_host=local_world_size, host_gib=host_gib)
    properties = torch.cuda.get_device_properties(device)
    preset = next(
        (
            preset
            for name, preset in PRESETS.items()
            if name.partition("-")[0] in properties.name.lower()
        ),
        _A100_80,
    )
    return replace(
        preset,
        ranks_a_host=local_world_size,
        hbm_gib=properties.total_memory / GIB,
        host_gib=host_gib,
    )


def figures(machine: Hardware) -> dict[str, object]:
    """Its figures by name, for a report."""
    return asdict(machine)
