"""The model card beside an exported file: what a stranger needs to run it, as Markdown.

It says what the file is and how it was made. How good the weights are it cannot know.
"""

import platform
from pathlib import Path

import torch

from nets.checkpoints import Model
from nets.graphs import INPUT_NAME, output_strides


def model_card(
    model: Model, *, file: str, source: str, sizes: str, facts: dict[str, str], command: str
) -> str:
    """Markdown of a card.

    Args:
        file: name of the exported file.
        source: the weights that it was made from; only the end of a path is shown.
        sizes: what B, H and W may be in this file, in words.
        facts: more rows of the first table, for example the opset.
        command: what was typed.
    """
    strides = output_strides(model)
    tag_stride = strides.pop("tags")
    parts = [
        f"# Model card: {file}",
        _table(
            {
                "network": f"{model.name} (nets/named.py)",
                "weights": f"{Path(source).name}, sha256 `{model.weights_sha256}`",
                "parameters": f"{sum(p.numel() for p in model.net.parameters()):,}",
                **facts,
                "made with": f"torch {torch.__version__}, Python {platform.python_version()}",
                "command": f"`{command}`",
            }
        ),
        "## Input",
        _input(model, sizes),
        "## Outputs",
        _outputs(model, strides, tag_stride),
        "## Tags",
        _tags(model, tag_stride),
        "## Decode",
        _decode(model),
        "## Keypoints",
        f"Skeleton `{model.skeleton.name}`, in this order: "
        + ", ".join(f"{index} {name}" for index, name in enumerate(model.skeleton.keypoint_names))
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _table(rows: dict[str, str]) -> str:
    lines = [f"| {name} | {text} |" for name, text in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _input(model: Model, sizes: str) -> str:
    return (
        f"`{INPUT_NAME}`: (B, 3, H, W) float32, {sizes}. Colours are RGB: "
        f"(rgb / 255 - mean) / std with mean {model.mean} and std {model.std}.\n\n"
        f"The weights were made for a short side of {model.input_size} pixels; the picture keeps "
        f"its shape and both sides are multiples of {model.size_multiple}."
    )


def _outputs(model: Model, strides: dict[str, int], tag_stride: int) -> str:
    k = model.skeleton.num_keypoints
    rows = {
        f"`{name}`": f"(B, {k}, H/{stride}, W/{stride}) float32 | a score for each keypoint and "
        f"pixel; pixel (x, y) is network-input pixel {stride} * (x + 0.5) - 0.5, likewise y"
        for name, stride in strides.items()
    }
    t = _tag_numbers(model)
    rows["`tags`"] = (
        f"(B, {k}, H/{tag_stride}, W/{tag_stride}, {t}) float32 | alike for the keypoints of one "
        "person (associative embedding)"
    )
    lines = [f"| {name} | {text} |" for name, text in rows.items()]
    return "\n".join(["| name | shape | meaning |", "|---|---|---|", *lines]) + (
        "\n\nThe decode raises all heatmaps to the network input's size (bilinear) and averages "
        "them."
    )


def _tags(model: Model, stride: int) -> str:
    ramp = model.tag_ramp_px
    if ramp <= 0:
        return "Tags are used as they come; there is no tag ramp."
    per_pixel = f"{stride} / {ramp:g}"
    formula = (
        f"(x + 0.35 y) * {per_pixel}"
        if _tag_numbers(model) == 1
        else f"x * {per_pixel} (first number) and 0.5 y * {per_pixel} (second number)"
    )
    return (
        "**A ramp of position has to be added to the tags before people are grouped**, in "
        f"float32; it is outside the network. At pixel (x, y) of the tags: {formula}."
    )


def _tag_numbers(model: Model) -> int:
    """T, which nets without that setting have as 1."""
    return int(getattr(getattr(model.net, "settings", None), "tag_numbers", 1))


def _decode(model: Model) -> str:
    if not model.decode:
        return "As published (kernels.decode.DecodeSettings, its defaults)."
    chosen = ", ".join(f"{name} {_plain(value)}" for name, value in sorted(model.decode.items()))
    return f"Chosen for these weights: {chosen}. All else as in kernels.decode.DecodeSettings."


def _plain(value: float | str) -> str:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return f"{value:g}" if is_number else str(value).lower()
