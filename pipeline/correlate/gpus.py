"""GPUs that are not here: what a correlation would take on one, from the figures that its maker publishes.

``subspace plan --gpu h100`` answers before anybody rents one. Sums are exact on any of them, so only memory, bandwidth
and the rate of float32 products (TF32 off) count. Published figures are peaks. The shares of them that are reckoned
with here are assumptions until ``benchmarks/gpu.sh`` has measured them on such a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.correlate.cost import Rates
from storage.errors import InputError

#: Shares of the published peaks that sums at scattered places, products of large float32 matrices, and copies reach.
BANDWIDTH_SHARE, PRODUCT_SHARE, LINK_SHARE = 0.6, 0.75, 0.8


@dataclass(frozen=True)
class PublishedGpu:
    """A GPU by its data sheet.

    Attributes
    ----------
    memory
        Bytes.
    bandwidth
        Bytes that its memory moves in a second.
    flops
        Float32 operations in a second, outside of tensor cores; a product and its addition are two.
    link
        Bytes that pass between it and its host in a second, one way.
    """

    memory: float
    bandwidth: float
    flops: float
    link: float

    def rates(self, host: Rates) -> Rates:
        """Return the rates of a host with this GPU.

        >>> round(GPUS["h100"].rates(Rates()).gpu_product / GPUS["l4"].rates(Rates()).gpu_product, 2)
        0.09
        """
        return replace(
            host,
            gpu_byte=1 / (BANDWIDTH_SHARE * self.bandwidth),
            gpu_dense_product=2 / (PRODUCT_SHARE * self.flops),
            gpu_copy=1 / (LINK_SHARE * self.link),
        )


#: PCI Express 3, 4 and 5 with 16 lanes.
_PCIE3, _PCIE4, _PCIE5 = 15.8e9, 31.5e9, 63e9
#: By name, from the data sheets of NVIDIA.
GPUS = {
    "t4": PublishedGpu(16e9, 320e9, 8.1e12, _PCIE3),
    "v100": PublishedGpu(16e9, 900e9, 15.7e12, _PCIE3),
    "l4": PublishedGpu(24e9, 300e9, 30.3e12, _PCIE4),
    "a10": PublishedGpu(24e9, 600e9, 31.2e12, _PCIE4),
    "rtx4090": PublishedGpu(24e9, 1008e9, 82.6e12, _PCIE4),
    "a100-40": PublishedGpu(40e9, 1555e9, 19.5e12, _PCIE4),
    "a100-80": PublishedGpu(80e9, 2039e9, 19.5e12, _PCIE4),
    "l40s": PublishedGpu(48e9, 864e9, 91.6e12, _PCIE4),
    "h100": PublishedGpu(80e9, 3350e9, 67e12, _PCIE5),
    "h200": PublishedGpu(141e9, 4800e9, 67e12, _PCIE5),
}


def published_gpu(name: str) -> PublishedGpu:
    """Return a GPU by its name.

    Raises
    ------
    InputError
        If its figures are not known here.
    """
    if name.lower() not in GPUS:
        raise InputError(f"There are no figures for a GPU {name!r}; known are {', '.join(GPUS)}")
    return GPUS[name.lower()]
