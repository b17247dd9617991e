"""Every network that has a name: a dict of names, and how single settings are changed.

Settings are flat to the outside (width=8, deconvs=2), whether they belong to heads or backbone.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from nets import hrnet
from nets.double_higher_net import DoubleHigherNet, DoubleHigherNetSettings
from nets.higher_hrnet import HigherHRNet, HigherHRNetSettings
from nets.mobile_fpn import MOVENET_MULTIPOSE

PoseNet = HigherHRNet | DoubleHigherNet
NetSettings = HigherHRNetSettings | DoubleHigherNetSettings

NAMED: dict[str, NetSettings] = {
    "hrnet_w32": HigherHRNetSettings(hrnet.W32, deconvs=0),
    "hrnet_w48": HigherHRNetSettings(hrnet.W48, deconvs=0),
    "higher_hrnet_w32": HigherHRNetSettings(hrnet.W32),
    "higher_hrnet_w40": HigherHRNetSettings(hrnet.W40),
    "higher_hrnet_w48": HigherHRNetSettings(hrnet.W48),
    "higher_hrnet_lite": HigherHRNetSettings(hrnet.LITE, residual_blocks=1),
    "higher_mobile": HigherHRNetSettings(
        MOVENET_MULTIPOSE,
        residual_blocks=0,
        deconv_channels=32,
        separable_head=96,
        tag_numbers=2,
        second_pyramid=True,
    ),
    "double_higher_net_w32": DoubleHigherNetSettings(hrnet.W32),
    "double_higher_net_w48": DoubleHigherNetSettings(hrnet.W48),
    "double_higher_net_lite": DoubleHigherNetSettings(hrnet.LITE),
    "double_higher_mobile": DoubleHigherNetSettings(MOVENET_MULTIPOSE),
}


def build(name: str, num_keypoints: int, changes: Mapping[str, Any]) -> PoseNet:
    """See nets.build_net."""
    check_name(name)
    settings = changed(NAMED[name], changes)
    if isinstance(settings, DoubleHigherNetSettings):
        return DoubleHigherNet(settings, num_keypoints=num_keypoints)
    return HigherHRNet(settings, num_keypoints=num_keypoints)


def check_name(name: str) -> None:
    """ValueError where no network has that name."""
    if name not in NAMED:
        raise ValueError(f"no network is called {name!r}; known: {', '.join(NAMED)}")


def changed(settings: NetSettings, changes: Mapping[str, Any]) -> NetSettings:
    """The settings with some fields replaced, those of the backbone too."""
    of_backbone = {field.name for field in fields(settings.backbone)}
    of_heads = {field.name for field in fields(settings)} - {"backbone"}
    unknown = set(changes) - of_backbone - of_heads
    if unknown:
        raise ValueError(
            f"no setting is called {', '.join(sorted(unknown))}; "
            f"known: {', '.join(sorted(of_heads | of_backbone))}"
        )
    values = {name: _tuples(value) for name, value in changes.items()}
    before = flat(settings)
    for name, value in values.items():
        if type(value) is not type(before[name]):
            raise ValueError(
                f"setting {name}: expected something like {before[name]}, got {value!r}"
            )
    backbone = replace(settings.backbone, **{k: v for k, v in values.items() if k in of_backbone})
    return replace(
        settings, backbone=backbone, **{k: v for k, v in values.items() if k in of_heads}
    )


def flat(settings: NetSettings) -> dict[str, Any]:
    """All settings by name, as build takes them; JSON can hold them."""
    values = asdict(settings)
    backbone: dict[str, Any] = values.pop("backbone")
    return values | backbone


def _tuples(value: Any) -> Any:
    """JSON knows lists only; settings are frozen and hold tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
