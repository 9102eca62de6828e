"""torchvision's RegNets (Radosavovic et al., CVPR 2020, arXiv:2003.13678)."""

from typing import TYPE_CHECKING, Any

from hpo.vision.torchvision_network import Published, TorchvisionNetwork

if TYPE_CHECKING:
    from torch import nn


class RegNets(TorchvisionNetwork):
    """RegNets X and Y, whose units are the stem, then each block."""

    published = {
        "regnet_y_400mf": Published(17, 4, 810, "regnet_y_400mf-e6988f5f.pth"),
        "regnet_y_800mf": Published(15, 6, 1100, "regnet_y_800mf-58fc7688.pth"),
        "regnet_y_1_6gf": Published(28, 11, 1700, "regnet_y_1_6gf-0d7bc02a.pth"),
        "regnet_y_3_2gf": Published(22, 19, 2400, "regnet_y_3_2gf-9180c971.pth"),
        "regnet_y_8gf": Published(18, 39, 4100, "regnet_y_8gf-dc2b1b54.pth"),
        "regnet_y_16gf": Published(19, 84, 4800, "regnet_y_16gf-3e4a00f9.pth"),
        "regnet_y_32gf": Published(21, 145, 6400, "regnet_y_32gf-8db6d4b5.pth"),
        "regnet_x_400mf": Published(23, 6, 610, "regnet_x_400mf-62229a5f.pth"),
        "regnet_x_800mf": Published(17, 7, 970, "regnet_x_800mf-94a99ebd.pth"),
        "regnet_x_1_6gf": Published(19, 9, 1500, "regnet_x_1_6gf-a12f2b72.pth"),
        "regnet_x_3_2gf": Published(26, 15, 2100, "regnet_x_3_2gf-7071aa85.pth"),
        "regnet_x_8gf": Published(24, 40, 2600, "regnet_x_8gf-2b70d774.pth"),
        "regnet_x_16gf": Published(23, 54, 4800, "regnet_x_16gf-ba3796d7.pth"),
        "regnet_x_32gf": Published(24, 108, 6800, "regnet_x_32gf-6eb8fdc6.pth"),
        "regnet_y_128gf": Published(28, 645, 15000, "regnet_y_128gf_swag-c8ce3e52.pth"),
    }
    landmark = "stem.0.weight"

    @staticmethod
    def units(module: Any) -> "list[nn.Module]":
        """The stem, then each block."""
        return [module.stem, *(block for stage in module.trunk_output for block in stage)]

    @staticmethod
    def head(module: Any) -> "nn.Module":
        """Global average pooling and the linear layer."""
        from torch import nn

        return nn.Sequential(module.avgpool, nn.Flatten(1), module.fc)
