"""Every row of the table, in order."""

from pathlib import Path

from covering import timm_rule, tiny_diffusers, tiny_transformers
from covering.made import Row

_TORCHVISION = (
    "resnet18 resnet50 resnet101 resnext50_32x4d wide_resnet50_2 regnet_y_400mf mobilenet_v2 mobilenet_v3_small "
    "efficientnet_b0 efficientnet_v2_s convnext_tiny mnasnet1_0 vit_b_16 swin_t swin_v2_t maxvit_t fcn_resnet50 "
    "deeplabv3_resnet50 lraspp_mobilenet_v3_large fasterrcnn_resnet50_fpn retinanet_resnet50_fpn fcos_resnet50_fpn "
    "ssdlite320_mobilenet_v3_large maskrcnn_resnet50_fpn"
).split()


def rows_of(source: str, work: Path) -> list[Row]:
    """The rows of one source; `work` keeps what timm's rule counted."""
    if source == "torchvision":
        return [Row(source, name) for name in _TORCHVISION]
    if source == "diffusers":
        return [Row(source, name) for name in tiny_diffusers.names()]
    if source == "timm":
        return [Row(source, name) for name in timm_rule.chosen(work / "timm-sizes.json")]
    return [
        Row(source, name, inside)
        for name in tiny_transformers.names()
        for inside in tiny_transformers.TWO.get(name, ("",))
    ]
