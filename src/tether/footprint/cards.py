"""What graphics cards can do at the most, by their data sheets."""

from typing import NamedTuple


class Card(NamedTuple):
    """Rates in one second, for one card: bfloat16 operations (dense), bytes of memory, bytes each
    way to the cards of the same machine (`link`) and to other machines (`network`).

    `memory` in bytes is the round number of the name; the driver shows about 6% more, which is
    left to CUDA, NCCL and memory in unusable pieces.
    """

    flops: float
    bandwidth: float
    memory: int
    link: float
    network: float
    source: str


CARDS = {
    "H100": Card(
        *(989e12, 3.35e12, 80 * 10**9, 450e9, 50e9),
        "SXM: NVLink 900 GB/s both ways; a 400 Gb/s adapter a card; "
        "https://www.nvidia.com/en-us/data-center/h100/",
    ),
    "H200": Card(
        *(989e12, 4.8e12, 141 * 10**9, 450e9, 50e9),
        "SXM: NVLink 900 GB/s both ways; a 400 Gb/s adapter a card; "
        "https://www.nvidia.com/en-us/data-center/h200/",
    ),
    "A100-80": Card(
        *(312e12, 2.039e12, 80 * 10**9, 300e9, 25e9),
        "SXM: NVLink 600 GB/s both ways; a 200 Gb/s adapter a card; "
        "https://www.nvidia.com/en-us/data-center/a100/",
    ),
    "RTX4090": Card(
        *(165e12, 1.008e12, 24 * 10**9, 32e9, 3.1e9),
        "PCIe 4.0 x16, no NVLink; 25 Gb/s of network a card is an assumption; "
        "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf",
    ),
}
"""By name. Operations are without sparsity, of which data sheets name twice as many."""
