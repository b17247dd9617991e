"""What a caller gets of one picture: people as NumPy arrays, and the forms that others read."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nets.skeletons import SKELETONS
from pipeline import messages
from pipeline.sinks.overlay import Colors, draw_poses
from pipeline.sinks.schema import coco_results, new_session, person_boxes, pose_message
from posestream.frame import Frame, Order, checked_image, swapped

_SESSION = new_session()


@dataclass(frozen=True, eq=False, repr=False)
class Poses:
    """The people of one picture. P people, K keypoints; arrays are not copied.

    Coordinates are (x, y) in pixels of the picture, pixel centres at integers.
    """

    found: messages.Poses
    """As the stages of a stream give it."""
    order: Order = "bgr"
    """Of the channels of frame.image, and of what draw() takes and returns."""

    def __len__(self) -> int:
        """How many people."""
        return len(self.found.scores)

    def __repr__(self) -> str:
        return f"Poses({len(self)} people, {self.skeleton}, {self.frame!r})"

    @property
    def frame(self) -> Frame:
        """The picture (frame.image), and where it comes from."""
        return Frame(self.found.frame, self.order)

    @property
    def keypoints(self) -> NDArray[np.float32]:
        """(P, K, 2) float32 x, y; a keypoint that was not found is (0, 0), and its score 0."""
        return self.found.keypoints[..., :2]

    @property
    def scores(self) -> NDArray[np.float32]:
        """(P, K) float32 in [0, 1]: how sure each keypoint is; 0 where it was not found."""
        return self.found.keypoints[..., 2]

    @property
    def person_scores(self) -> NDArray[np.float32]:
        """(P,) float32: how sure each person is."""
        return self.found.scores

    @property
    def ids(self) -> NDArray[np.int64]:
        """(P,) int64: a stream's people keep theirs from frame to frame; -1: nobody known (yet),
        and always in a single picture."""
        return self.found.ids

    @property
    def filled(self) -> NDArray[np.bool_]:
        """(P, K) bool: keypoints that no peak of the heatmaps gave; refine guessed their place."""
        return self.found.filled

    @property
    def smoothed(self) -> NDArray[np.float32] | None:
        """(P, K, 2) float32: a stream's keypoints without their trembling; None in a picture."""
        return self.found.smoothed

    @cached_property
    def boxes(self) -> NDArray[np.float32]:
        """(P, 4) float32 x, y, width, height around the keypoints found; NaN where there are none.

        As `bbox` of pose/1 messages has it: filled keypoints count only where there are no others.
        """
        nowhere = np.full(4, np.nan)
        boxes = person_boxes(self.found.keypoints, self.found.filled)
        rows = [nowhere if box is None else box for box in boxes]
        return np.array(rows, np.float32).reshape(-1, 4)

    @property
    def skeleton(self) -> str:
        """Name of the set of keypoints, for example coco17."""
        return self.found.skeleton

    @property
    def keypoint_names(self) -> tuple[str, ...]:
        """K names: "nose", "left_eye", ..."""
        return SKELETONS[self.found.skeleton].keypoint_names

    def to_dict(self) -> dict[str, Any]:
        """As a message of schema pose/1 (docs/schema.md): plain values, ready for json.dumps.

        `session` tells this process from others, `seq` is the frame's index.
        """
        return pose_message(self.found, session=_SESSION, seq=self.frame.index)

    def to_coco(self, image_id: int | None = None) -> list[dict[str, Any]]:
        """COCO keypoint results, one dict for each person.

        Args:
            image_id: by default the frame's index, as in the file of `--coco`.
        """
        return coco_results(self.found, image_id=self.frame.index if image_id is None else image_id)

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat dict for each keypoint found: rows of a table, for pandas or a CSV file.

        `person` counts the people of this frame from 0. Keypoints that were not found have no row.
        """
        frame, names = self.frame, self.keypoint_names
        people, keypoints = np.nonzero(self.scores)
        return [
            {
                "source": frame.source,
                "frame": frame.index,
                "pts_seconds": frame.pts_seconds,
                "person": person,
                "id": None if self.ids[person] < 0 else int(self.ids[person]),
                "person_score": float(self.person_scores[person]),
                "keypoint": names[k],
                "x": float(self.keypoints[person, k, 0]),
                "y": float(self.keypoints[person, k, 1]),
                "score": float(self.scores[person, k]),
                "filled": bool(self.filled[person, k]),
            }
            for person, k in zip(people.tolist(), keypoints.tolist(), strict=True)
        ]

    def draw(
        self,
        image: NDArray[np.uint8] | None = None,
        *,
        min_keypoint_score: float = 0.1,
        labels: bool = True,
        boxes: bool = False,
        colors: Colors = "side",
    ) -> NDArray[np.uint8]:
        """Skeletons over a picture: a new (height, width, 3) uint8 array.

        Args:
            image: the picture to draw on, which stays as it is; by default the one in which the
                people were found. Channels as `order` says.
            min_keypoint_score: no keypoint below it is drawn, and no limb that needs one.
            labels: write id and score above each head.
            boxes: draw each person's box.
            colors: "side": left and right differ; "id": each person has a colour.
        Raises:
            ValueError: image is not such an array, or none is given and the frame has no pixels.
        """
        canvas = self._bgr(self.frame.image if image is None else checked_image(image).copy())
        draw_poses(
            canvas,
            self.found,
            SKELETONS[self.found.skeleton],
            min_keypoint_score=min_keypoint_score,
            labels=labels,
            boxes=boxes,
            colors=colors,
        )
        return self._bgr(canvas)

    def _bgr(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """From this order to OpenCV's, and back."""
        return image if self.order == "bgr" else swapped(image)
