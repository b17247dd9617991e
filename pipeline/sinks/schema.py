"""What subscribers see: the messages `pose/1` and `status/1`, as dicts and as bytes.

The publisher sends them, the JSON-lines recorder writes them; docs/schema.md explains every field
and docs/pose-1.schema.json is the same for machines. This file knows neither sockets nor files.
"""

from __future__ import annotations

import json
import secrets
from typing import Any, cast

import msgpack
import numpy as np

from common.redaction import redact
from pipeline.messages import Frame, Poses
from pipeline.runtime.status import StreamStatus

POSE_SCHEMA = "pose/1"
STATUS_SCHEMA = "status/1"

JsonObject = dict[str, Any]


def new_session() -> str:
    """A word that tells one run of a stream from the next, for `seq` starts again at 0 with it."""
    return secrets.token_hex(4)


def topic(kind: str, stream: str) -> bytes:
    """`pose/<stream>/` or `status/<stream>/`; the last slash keeps cam1 apart from cam10."""
    if "/" in stream or "\0" in stream or not stream:
        raise ValueError(f"a stream's name must be a word without / or NUL, got {stream!r}")
    return f"{kind}/{stream}/".encode()


def pose_message(poses: Poses, *, session: str, seq: int) -> JsonObject:
    """The people of one frame as a `pose/1` message.

    Args:
        poses: the people, in pixels of the upright picture.
        session: see new_session.
        seq: number of this message among those of its stream.
    Raises:
        ValueError: a coordinate or score is NaN or infinite, which JSON cannot say.
    """
    numbers = (poses.keypoints, poses.scores, *_smoothed_arrays(poses))
    if not all(np.isfinite(array).all() for array in numbers):
        raise ValueError(f"{poses!r} holds a coordinate or score that is not finite")
    frame = poses.frame
    return {
        "schema": POSE_SCHEMA,
        "stream": frame.source,
        "session": session,
        "seq": seq,
        "frame": frame.index,
        "pts_seconds": None if frame.pts_seconds is None else round(frame.pts_seconds, 6),
        "captured_unix_s": round(frame.captured_unix_s, 3),
        "clock": "arrival",
        "size": list(frame.size),
        **_rarely_said(frame),
        "tainted": frame.tainted,
        "skeleton": poses.skeleton,
        "latency_ms": round(poses.latency_ms, 1),
        "people": _people(poses),
    }


def _rarely_said(frame: Frame) -> JsonObject:
    """What only some frames have: pixels that are not square, a file of their own."""
    aspect = {} if frame.pixel_aspect == 1.0 else {"pixel_aspect": round(frame.pixel_aspect, 6)}
    return {**aspect, **({"file": frame.image_name} if frame.image_name else {})}


def _people(poses: Poses) -> list[JsonObject]:
    keypoints = rounded_keypoints(poses.keypoints, pixel_digits=1)
    people = zip(
        poses.ids.tolist(),
        _rounded(poses.scores, 4),
        person_boxes(poses.keypoints, poses.filled),
        keypoints,
        _smoothed(poses),
        poses.filled.astype(int).tolist(),
        strict=True,
    )
    return [
        {
            "id": None if identity < 0 else identity,
            "score": score,
            "bbox": None if box is None else _rounded(box, 1),
            "keypoints": person,
            "smoothed": smoothed,
            "filled": filled,
        }
        for identity, score, box, person, smoothed, filled in people
    ]


def _smoothed(poses: Poses) -> list[Any]:
    """Of every person: [x, y] of every keypoint, to 0.1 pixel; None where nothing is smoothed."""
    for array in _smoothed_arrays(poses):
        return cast(list[Any], (np.round(array.astype(np.float64), 1) + 0.0).tolist())
    return [None] * len(poses.scores)


def _smoothed_arrays(poses: Poses) -> tuple[np.ndarray, ...]:
    return () if poses.smoothed is None else (poses.smoothed,)


def person_boxes(keypoints: np.ndarray, filled: np.ndarray) -> list[np.ndarray | None]:
    """Each person's box [x, y, w, h]: the extent of the keypoints.

    Filled keypoints may lie far from the body, so they count only for a person that has no others.

    Args:
        keypoints: (P, K, 3) x, y, score; score 0 where missing.
        filled: (P, K) bool.
    Returns:
        P boxes, each (4,) float64; None for a person without a single keypoint.
    """
    seen = keypoints[..., 2] > 0
    found = seen & ~filled
    boxes: list[np.ndarray | None] = []
    for person, seen_here, found_here in zip(keypoints, seen, found, strict=True):
        chosen = found_here if found_here.any() else seen_here
        if not chosen.any():
            boxes.append(None)
            continue
        xy = person[chosen, :2].astype(np.float64)
        low, high = xy.min(axis=0), xy.max(axis=0)
        boxes.append(np.concatenate([low, high - low]))
    return boxes


def rounded_keypoints(keypoints: np.ndarray, *, pixel_digits: int) -> list[list[list[float]]]:
    """(P, K, 3) as nested lists: pixels to so many digits, scores to four."""
    numbers = np.empty(keypoints.shape)
    # Adding 0.0 turns -0.0 into 0.0, which readers need not wonder about.
    numbers[..., :2] = np.round(keypoints[..., :2].astype(np.float64), pixel_digits) + 0.0
    numbers[..., 2] = np.round(keypoints[..., 2].astype(np.float64), 4) + 0.0
    return cast(list[list[list[float]]], numbers.tolist())


def coco_results(poses: Poses, *, image_id: int, rounded: bool = False) -> list[dict[str, Any]]:
    """People as COCO keypoint results: one dict each.

    Args:
        rounded: to 0.01 pixel, keypoint scores to four digits and person scores to six.
    """
    keypoints, scores = poses.keypoints.tolist(), poses.scores.tolist()
    if rounded:
        keypoints = rounded_keypoints(poses.keypoints, pixel_digits=2)
        scores = _rounded(poses.scores, 6)
    return [
        {
            "image_id": image_id,
            "category_id": 1,
            "keypoints": [number for keypoint in person for number in keypoint],
            "score": score,
        }
        for person, score in zip(keypoints, scores, strict=True)
    ]


def _rounded(values: np.ndarray, digits: int) -> list[float]:
    return cast(list[float], (np.round(values.astype(np.float64), digits) + 0.0).tolist())


def status_message(
    stream: str, status: StreamStatus, *, session: str, seq: int, unix_s: float, overflows: int
) -> JsonObject:
    """How a stream is doing, as a `status/1` message.

    Args:
        stream: its name.
        status: what its statistics say.
        session: see new_session.
        seq: number of this message among the status messages of its stream.
        unix_s: wall clock of now.
        overflows: messages of this stream that some subscriber could not take.
    """
    return {
        "schema": STATUS_SCHEMA,
        "stream": stream,
        "session": session,
        "seq": seq,
        "unix_s": round(unix_s, 3),
        "state": status.state,
        "reason": redact(status.reason),
        "since_unix_s": None if status.since_unix_s is None else round(status.since_unix_s, 3),
        "retries": dict(status.retries),
        "tainted": status.tainted,
        "fps": round(status.fps, 2),
        "dropped": dict(status.dropped),
        "latency_ms": {name: round(ms, 1) for name, ms in status.latency_ms.items()},
        "overflows": overflows,
        "degraded": None if status.degraded is None else dict(status.degraded),
    }


def encode_json(message: Any) -> bytes:
    """Compact UTF-8 JSON on one line; ValueError for NaN, which JSON does not have."""
    text = json.dumps(message, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def encode_msgpack(message: JsonObject) -> bytes:
    """The same map as msgpack; what `people` holds is float32, to half the size.

    The rest stays float64: a float32 holds today's date to a minute.
    """
    packer = msgpack.Packer()
    parts = [packer.pack_map_header(len(message))]
    for key, value in message.items():
        parts += packer.pack(key), msgpack.packb(value, use_single_float=key == "people")
    return b"".join(parts)
