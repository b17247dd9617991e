"""What a network said against what it should have said: heatmap, push and pull loss.

    heatmaps, one a Plan --- heatmap_loss --- (B,) each --.
                                                          +-- weighted sum, mean over the batch
    tags (+ ramp) ---------- tag_loss --- push, pull -----'

HigherHRNet sec. 3; the tags are the associative embedding of Newell et al. (2017). The definitions,
down to their factors, are those of the published HigherHRNet code. All is computed in float32 or
better, inside autocast too: push and pull live on small differences between large tags.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nets.aggregation import Maps, add_tag_ramp
from nets.double_higher_net import DoubleHigherNetOutput
from nets.higher_hrnet import HigherHRNetOutput
from training.config import LossConfig
from training.targets import TAG_STRIDE

PoseOutput = HigherHRNetOutput | DoubleHigherNetOutput


class Targets(Protocol):
    """What total_loss reads of a batch."""

    @property
    def heatmaps(self) -> Sequence[Tensor]:
        """(B, K, h, w) each, in the order of heatmaps_of."""

    @property
    def masks(self) -> Sequence[Tensor]:
        """(B, K or 1, h, w) each, 1 where the heatmap is supervised."""

    @property
    def tag_index(self) -> Tensor:
        """(B, N, K, 2) integers, as targets.tag_index makes them."""


class Losses(NamedTuple):
    """Means over a batch. Only total has a gradient; the parts are unweighted, to be looked at."""

    total: Tensor
    """What is minimised: all parts, weighted and summed."""
    heatmap: tuple[Tensor, ...]
    """One number for each stack of heatmaps, in the order of heatmaps_of."""
    push: Tensor
    """Summed over the stages that predict tags; pull too."""
    pull: Tensor


def total_loss(
    output: PoseOutput,
    batch: Targets,
    settings: LossConfig,
    *,
    num_keypoints: int,
    tag_ramp_px: float = 0.0,
) -> Losses:
    """All losses of a network's output, weighted as settings say.

    DoubleHigherNet: each of the four stacks of heatmaps counts as one of HigherHRNet's, and the
    tags of both stages are trained alike, though only the fine ones are decoded.

    Args:
        num_keypoints: K.
        tag_ramp_px: the model's; the ramp is added to the tags before they are compared.
    """
    heatmaps = torch.stack(
        [
            heatmap_loss(
                predicted,
                target,
                mask,
                foreground=settings.foreground,
                adaptive=settings.adaptive,
            ).mean()
            for predicted, target, mask in zip(
                heatmaps_of(output), batch.heatmaps, batch.masks, strict=True
            )
        ]
    )
    of_tags = [
        tag_loss(
            add_ramp(tags, tag_ramp_px, num_keypoints),
            batch.tag_index,
            num_keypoints=num_keypoints,
            kind=settings.push_kind,
        )
        for tags in tags_of(output)
    ]
    push = torch.stack([push for push, _ in of_tags]).sum(dim=0).mean()
    pull = torch.stack([pull for _, pull in of_tags]).sum(dim=0).mean()
    total = settings.heatmap * heatmaps.sum() + settings.push * push + settings.pull * pull
    return Losses(total, heatmaps.detach().unbind(), push.detach(), pull.detach())


def heatmaps_of(output: PoseOutput) -> tuple[Tensor, ...]:
    """Every stack of heatmaps (B, K, h, w) that is trained, in the order of targets.target_plan."""
    if isinstance(output, DoubleHigherNetOutput):
        return (*output.coarse_heatmaps, *output.fine_heatmaps)
    return output.heatmaps


def tags_of(output: PoseOutput) -> tuple[Tensor, ...]:
    """Every (B, T * K, h, w) of tags that is trained."""
    if isinstance(output, DoubleHigherNetOutput):
        return (output.coarse_tags, output.fine_tags)
    return (output.tags,)


def heatmap_loss(
    predicted: Tensor,
    target: Tensor,
    mask: Tensor,
    *,
    foreground: float = 0.0,
    adaptive: float | None = None,
) -> Tensor:
    """Mean squared error of each image, (B,) float32.

    The mean of (predicted - target)^2 * mask * (1 + foreground * target) over all K * h * w: what
    is masked adds nothing, but counts in the mean, as published.

    Args:
        predicted, target: (B, K, h, w).
        mask: (B, K, h, w) or (B, 1, h, w), 1 or True where there is supervision.
        foreground: how much more a keypoint's middle weighs than the background; 0 as published.
        adaptive: gamma of SWAHR's weights (sec. 3.3): a pixel counts
            t^gamma |1 - p| + (1 - t^gamma) |p| times, so what is nearly right counts little. They
            count as given: no gradient flows through them.
    """
    assert predicted.shape == target.shape, (predicted.shape, target.shape)
    assert mask.ndim == 4, mask.shape  # (B, h, w) would broadcast over the wrong axes
    with torch.autocast(predicted.device.type, enabled=False):
        loss: Tensor = _WeightedSquare.apply(  # type: ignore[no-untyped-call]
            predicted, target, mask, _Weights(foreground, adaptive)
        )
    return loss


class _Weights(NamedTuple):
    """See heatmap_loss."""

    foreground: float
    adaptive: float | None


class _WeightedSquare(torch.autograd.Function):
    """The formula of heatmap_loss, with its gradient.

    Heatmaps at 1/2 are by far the largest arrays of a step, and plain operations would keep four or
    five of them for the backward pass: twice the time of this (measured), which keeps one.
    """

    @staticmethod
    def forward(
        ctx: Any, predicted: Tensor, target: Tensor, mask: Tensor, weights: "_Weights"
    ) -> Tensor:
        dtype = torch.promote_types(predicted.dtype, torch.float32)
        # Networks give channels_last; arithmetic between the two layouts would be slow.
        difference = predicted.to(dtype, memory_format=torch.contiguous_format, copy=True)
        difference.sub_(target)
        weighted = difference * mask.to(dtype)
        if weights.foreground:
            weighted.addcmul_(weighted, target, value=weights.foreground)
        if weights.adaptive is not None:
            said, near = predicted.to(dtype), target.pow(weights.adaptive)
            weighted.mul_(near * (1 - said).abs() + (1 - near) * said.abs())
        ctx.save_for_backward(weighted)
        ctx.dtype = predicted.dtype
        return difference.mul_(weighted).mean(dim=(1, 2, 3))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor) -> tuple[Tensor, None, None, None]:
        (weighted,) = ctx.saved_tensors
        factor = of_loss * (2 / weighted[0].numel())
        return (weighted * factor[:, None, None, None]).to(ctx.dtype), None, None, None


def tag_loss(
    tags: Tensor, index: Tensor, *, num_keypoints: int, kind: Literal["exp", "max"] = "exp"
) -> tuple[Tensor, Tensor]:
    """Push and pull of each image, (B,) float32 each.

    With t_n the mean tag of person n over its keypoints and N the people who have any:

        pull = 1/N sum_n mean_k |tag_nk - t_n|^2
        push = 1/2 1/(N (N - 1)) sum_{n != m} exp(-|t_n - t_m|^2)         kind "exp", as published
               1/2 1/(N (N - 1)) sum_{n != m} max(0, 1 - |t_n - t_m|)     kind "max"

    Without people both are 0, with one push is. Tags of T numbers are vectors of that length.

    Args:
        tags: (B, T * K, h, w), the first numbers of all K tags first.
        index: (B, N, K, 2) integers: (k * h * w + y * w + x, 1) or (0, 0), as targets.tag_index.
        num_keypoints: K.
    """
    if kind not in ("exp", "max"):
        raise ValueError(f"kind must be exp or max, got {kind!r}")
    with torch.autocast(tags.device.type, enabled=False):
        found, used = _tags_at(tags, index, num_keypoints)  # (B, T, N, K), (B, 1, N, K)
        count = used.sum(dim=-1, keepdim=True)  # (B, 1, N, 1)
        mean = found.sum(dim=-1, keepdim=True) / count.clamp(min=1)  # (B, T, N, 1)
        apart = torch.where(used, found - mean, 0).square().sum(dim=1)  # (B, N, K)
        person = count[:, 0, :, 0] > 0  # (B, N)
        people = person.sum(dim=1)  # (B,)
        pull = (apart.sum(dim=-1) / count[:, 0, :, 0].clamp(min=1)).sum(dim=1) / people.clamp(min=1)
        pairs = (people * (people - 1)).clamp(min=1)
        push = _closeness(mean[..., 0], person, kind).sum(dim=(1, 2)) / pairs / 2
    return push, pull


def add_ramp(tags: Tensor, ramp_px: float, num_keypoints: int) -> Tensor:
    """Tags (B, T * K, h, w) with nets.aggregation's ramp, float32; as they are where it is 0."""
    if ramp_px <= 0:
        return tags
    batch, _, height, width = tags.shape
    of_numbers = tags.reshape(batch, -1, num_keypoints, height, width)
    of_numbers = of_numbers.permute(0, 2, 3, 4, 1)  # (B, K, h, w, T)
    ramped = add_tag_ramp(Maps((), of_numbers), ramp_px, TAG_STRIDE).tags
    return ramped.permute(0, 4, 1, 2, 3).flatten(1, 2)


def _tags_at(tags: Tensor, index: Tensor, num_keypoints: int) -> tuple[Tensor, Tensor]:
    """The tags (B, T, N, K) at the index, 0 in unused slots, and which are used (B, 1, N, K)."""
    if tags.shape[1] % num_keypoints:
        raise ValueError(
            f"tags must have T * K channels with K = {num_keypoints}, got shape "
            f"{tuple(tags.shape)}; the data has another skeleton than the net"
        )
    batch, numbers = len(tags), tags.shape[1] // num_keypoints
    flat = _at_least_float32(tags).reshape(batch, numbers, -1)  # (B, T, K * h * w)
    place = index[..., 0].long().flatten(1)[:, None].expand(-1, numbers, -1)
    found = flat.gather(2, place).reshape(batch, numbers, *index.shape[1:3])
    used = (index[..., 1] > 0)[:, None]
    # Not a product: an unused slot must not pass on even a NaN.
    return torch.where(used, found, 0), used


def _closeness(means: Tensor, person: Tensor, kind: Literal["exp", "max"]) -> Tensor:
    """(B, N, N): how much each pair of people's mean tags (B, T, N) is too close; 0 if no pair."""
    size = person.shape[1]
    pair = person[:, :, None] & person[:, None, :]
    pair = pair & ~torch.eye(size, dtype=torch.bool, device=person.device)
    gap = means[..., :, None] - means[..., None, :]  # (B, T, N, N)
    if kind == "exp":
        close = torch.exp(-gap.square().sum(dim=1))
    else:
        close = (1 - torch.linalg.vector_norm(gap, dim=1)).clamp(min=0)  # its gradient at 0 is 0
    return torch.where(pair, close, 0)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
