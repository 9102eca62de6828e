"""Prints what the tables of networks say of memory: millions of weights, and bytes of a training step in fp32 for each
pixel of a batch.

    python benchmarks/network_memory.py convnext_tiny swin_t
    python benchmarks/network_memory.py --measure convnext_tiny

The bytes are of the tensors that autograd keeps for the backward pass of images of 128 pixels, counted without
computing anything, and a fifth more: of ResNets, whose peak was measured, a tenth to a third more (LOG.md). --measure
compares them with the peak memory of steps that are computed, of batches of 8 and 24 images of 128 pixels.
"""

import argparse
import resource
import subprocess
import sys

import torch
from torch import Tensor, nn

from hpo.doors.network import ALL_SIZES, family_of, network_names

SIZES = 128, 126
"""The second for patches of 14 pixels."""
SHARE_BESIDE = 1.2


def kept_bytes(module: nn.Module, size: int, images: int = 2) -> float:
    """Bytes that autograd keeps for each pixel of a batch. module: on the meta device; size: of the images."""
    of_weights = {parameter.untyped_storage()._cdata for parameter in module.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in of_weights:
            kept[storage._cdata] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(torch.empty(images, 3, size, size, device="meta"))
    return sum(storage.nbytes() for storage in kept.values()) / (images * size**2)


def peak_mib(name: str, images: int) -> float:
    """Of a process that computes two steps."""
    code = (
        "import torch; from hpo.doors.network import family_of\n"
        f"net = family_of('{name}').build('{name}', 10, 128).train()\n"
        f"for _ in range(2): net(torch.rand({images}, 3, 128, 128)).square().sum().backward()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=network_names())
    parser.add_argument("--measure", action="store_true")
    given = parser.parse_args()
    for name in given.networks:
        family = family_of(name)
        if given.measure:
            few, many = peak_mib(name, 8), peak_mib(name, 24)  # the largest child so far: the smaller one first
            measured = f", measured {(many - few) * 2**20 / (16 * 128**2):.0f}"
        size = next(size for size in SIZES if size in family.input_sizes.get(name, ALL_SIZES))
        module = family.build(name, 1000, size).to("meta")
        millions = sum(parameter.numel() for parameter in module.parameters()) / 1e6
        in_table = f"{family.million_weights[name]}, {family.bytes_per_pixel[name]}"
        estimated = f"{millions:.1f}, {SHARE_BESIDE * kept_bytes(module.train(), size):.0f}"
        print(f"{name}: {estimated} (table: {in_table}){measured if given.measure else ''}", flush=True)


if __name__ == "__main__":
    main()
