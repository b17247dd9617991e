#!/usr/bin/env python3
"""A model and a labelled data set in, average precision out. Parses, runs, reports."""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.options import OptionParser
from common.places import DEFAULT_WEIGHTS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nets.checkpoints import Model
    from nets.engines.engine import Engine
    from nets.skeletons import Skeleton
    from pipeline.messages import Poses
    from training.evaluation import EvaluationData, Scores
    from training.labels import LabelledImage
    from training.predict import PredictSettings, SetPrediction

EXAMPLES = """\
examples:
  evaluate.py --data person_keypoints_val2017.json --output result.json
  evaluate.py --data coco/annotations/person_keypoints_val2017.json --flip \\
              --weights higher_hrnet_w32                          as the published tables
  evaluate.py --data val.json --images val.tar --set detection_threshold=0.1 --set refine=off
  evaluate.py --data val.json --results a.json                  keep all people found, then
  evaluate.py --data val.json --weights b.pth --compare a.json  is b better, and how surely?
  evaluate.py --data val.json --oracle grouping                 how good are the tags alone?

Without --flip and --scales the AP is that of the stream. docs/evaluation.md says more.

exit codes: 0 done, 1 the stream failed (--through-stream), 2 bad input (one line says what)
"""

_log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    from common.redaction import hide_arguments

    hide_arguments()  # the weights may be a URL with a password
    # Imported here so that --help answers at once.
    from training.progress import start_logging

    start_logging(quiet=options.quiet)
    try:
        _check_options(options)
        return _evaluate(options)
    except ValueError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evaluate.py: stopped", file=sys.stderr)
        return 130
    except StreamFailedError as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        prog="evaluate.py",
        description="Average precision of a model on COCO keypoints or CrowdPose.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument_group("what goes in").add_argument
    add("--data", type=Path, required=True, metavar="JSON", help="annotations")
    add("--images", type=Path, metavar="PATH", help="folder, .tar, .zip; default: beside the JSON")
    add(
        "--weights",
        default=str(DEFAULT_WEIGHTS),
        metavar="NAME|FILE",
        help="a published name (python -m nets.zoo), an https URL or a file; default: the net here",
    )
    add("--limit", type=int, metavar="N", help="only the first N images")

    add = parser.add_argument_group("how it is run").add_argument
    add("--input-size", type=int, metavar="N", help="short side in pixels; default: the weights'")
    add("--flip", action="store_true", help="average with the mirrored picture, as published")
    add("--scales", type=float, nargs="+", default=[1.0], metavar="S", help="e.g. 0.5 1 2")
    add("--engine", default="auto", help="torch, openvino, tensorrt; default: the fastest")
    add("--precision", default="auto", help="fp32, bf16, fp16; default: what the hardware has")
    add("--device", default="auto", help="cpu, cuda, cuda:N; default: a GPU if there is one")
    add("--threads", type=int, metavar="N", help="CPU threads of the engine; default: all cores")
    add(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="any decode setting (kernels/decode.py), e.g. detection_threshold=0.1, adjust=false",
    )  # fmt: skip
    add(
        "--oracle", choices=("grouping", "peaks"),
        help="true keypoints, predicted tags; or predicted peaks, true grouping",
    )  # fmt: skip
    add("--through-stream", action="store_true", help="send the images through the real stream")

    add = parser.add_argument_group("what comes out").add_argument
    add("--output", type=Path, metavar="JSON", help="metrics, intervals, settings, times")
    add("--results", type=Path, metavar="JSON", help="all people found, as COCO results")
    add("--bootstrap", type=int, default=1000, metavar="N", help="resamples; 0: no intervals")
    add(
        "--compare", type=Path, metavar="JSON", help="COCO results of another run: difference to it"
    )
    add("--plot", type=Path, metavar="PNG", help="ms a stage against people in the picture")
    add("--draw", type=Path, metavar="FOLDER", help="ground truth beside prediction, all images")
    add("--quiet", action="store_true", help="the table only; warnings and errors")
    return parser


def _check_options(options: argparse.Namespace) -> None:
    for path in (options.data, options.compare):
        if path is not None and not path.is_file():
            raise ValueError(f"there is no file {path}; check the path")
    if options.limit is not None and options.limit < 1:
        raise ValueError(f"--limit must be at least 1, got {options.limit}")
    if options.input_size is not None and options.input_size < 32:
        raise ValueError(f"--input-size must be at least 32, got {options.input_size}")
    if options.bootstrap < 0:
        raise ValueError(f"--bootstrap must be at least 0, got {options.bootstrap}")
    if options.compare is not None and not options.bootstrap:
        raise ValueError("--compare needs the bootstrap; leave out --bootstrap 0")
    if options.through_stream:
        alone = {
            "--scales": options.scales != [1.0],
            "--oracle": options.oracle,
            "--draw": options.draw,
            "--plot": options.plot,
        }
        for name in (name for name, is_asked in alone.items() if is_asked):
            raise ValueError(f"--through-stream cannot go with {name}; leave one of them out")
    for path in (options.output, options.results, options.plot):
        if path is not None:
            _check_writable(path)
    if options.plot is not None and options.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ValueError(f"--plot must end in .png, .pdf or .svg, got {options.plot}")


def _check_writable(path: Path) -> None:
    """Before the images are run, for that may take hours."""
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise ValueError(f"{path} cannot be written: it is a folder; name a file")
    try:
        with path.open("r+b") if path.exists() else tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}; choose another") from None


# --- running -------------------------------------------------------------------------------------


def _evaluate(options: argparse.Namespace) -> int:
    from nets.checkpoints import load_model
    from training.evaluation import check, load_data, score, summary, write_json
    from training.metrics import read_results
    from training.predict import PredictSettings, evaluation_decode

    model = load_model(options.weights)
    other = None if options.compare is None else read_results(options.compare)
    settings = PredictSettings(
        input_size=model.input_size if options.input_size is None else options.input_size,
        size_multiple=model.size_multiple,
        flip=options.flip,
        scales=tuple(options.scales),
        decode=evaluation_decode(model, _decode_changes(options.set)),
    )
    data = load_data(options.data, options.images, model.skeleton, limit=options.limit)
    check(data, other or [])
    _log.info(
        "%d images; %s, short side %d, scales %s, flip test %s",
        len(data.images), model.name, settings.input_size,
        " ".join(f"{scale:g}" for scale in settings.scales), "on" if settings.flip else "off",
    )  # fmt: skip
    if options.through_stream:
        done, engine = _through_stream(options, model, settings, data), None
    else:
        engine = _engine(options, model)
        done = _run(options, engine, model, settings, data)
    if len(done.failed) == len(data.images):
        raise ValueError(f"none of the {len(data.images)} images could be read; check --images")
    if options.results is not None:
        write_json(options.results, done.results)
    scores = score(data, done.results, num_resamples=options.bootstrap, other=other)
    if options.output is not None:
        how = _how(options, model, settings, engine)
        write_json(options.output, summary(data, done, scores, how))
    _report(options, scores, done)
    return 0


def _how(
    options: argparse.Namespace, model: Model, settings: PredictSettings, engine: Engine | None
) -> dict[str, Any]:
    """How the model was run, for the result file."""
    from nets.zoo.weights_files import shown_weights

    chosen = {"engine": options.engine, "precision": options.precision, "device": options.device}
    if engine is not None:
        chosen = {key: getattr(engine, key) for key in ("precision", "device")}
        chosen["engine"] = engine.name
    return {
        "data": str(options.data),
        "weights": shown_weights(options.weights),
        "weights_sha256": model.weights_sha256,
        "network": model.name,
        **asdict(settings),
        **chosen,
        "oracle": options.oracle,
        "through_stream": options.through_stream,
    }


def _decode_changes(texts: Sequence[str]) -> dict[str, Any]:
    """`name=value` texts; values are YAML, but `off` is a word."""
    from common.settings import parse_override

    changes = dict(parse_override(text, example="detection_threshold=0.1") for text in texts)
    return {name: "off" if value is False else value for name, value in changes.items()}


def _engine(options: argparse.Namespace, model: Model) -> Engine:
    from nets.engines.load import load_engine

    return load_engine(
        model,
        engine=options.engine,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
    )


def _run(
    options: argparse.Namespace,
    engine: Engine,
    model: Model,
    settings: PredictSettings,
    data: EvaluationData,
) -> SetPrediction:
    from rich.console import Console
    from rich.progress import Progress

    from kernels import decode as decode_kernels
    from kernels import preprocess as preprocess_kernels
    from training.evaluation import oracle_stage
    from training.predict import evaluation_estimator, predict_images

    preprocess_kernels.warm_up()
    decode_kernels.warm_up()
    drawing = None if options.draw is None else _Drawing(options.draw, model.skeleton, data.labels)
    bar = Progress(console=Console(stderr=True), transient=True, disable=options.quiet)
    with bar:
        task = bar.add_task("images", total=len(data.images))

        def watch(image: Mapping[str, Any], poses: Poses | None) -> None:
            bar.advance(task)
            if drawing is not None and poses is not None:
                drawing(image, poses)

        stage = oracle_stage(options.oracle, data, settings)
        estimate = evaluation_estimator(engine, model, settings, find_poses=stage)
        return predict_images(estimate, data.store, data.images, watch=watch)


# --- through the real stream ---------------------------------------------------------------------


class StreamFailedError(RuntimeError):
    """A stage of the stream failed; its log says why."""


def _through_stream(
    options: argparse.Namespace, model: Model, settings: PredictSettings, data: EvaluationData
) -> SetPrediction:
    """Every image through queues, preprocess, inference and poses, as in any stream."""
    from pipeline.config import load_config
    from pipeline.stream import Stream
    from training.predict import SetPrediction, StoredImages

    images = StoredImages(data.store, data.images)
    done = SetPrediction([], [], {}, images.failed)
    config = load_config(
        sources=[images.name],
        settings={
            "preprocess.input_size": settings.input_size,
            "preprocess.prefilter": False,
            "preprocess.max_long_side": sys.maxsize,  # the published evaluation has no limit
            "inference.engine": options.engine,
            "inference.device": options.device,
            "inference.precision": options.precision,
            "inference.threads": options.threads,
            "inference.flip_test": settings.flip,
            "tracker.enabled": False,  # pictures of a set are no moments of one scene
            "smooth.enabled": False,
        },
    )
    stream = Stream(
        config,
        # All decode settings of the evaluation: the stream takes a model's where it is told none.
        model=replace(model, decode=asdict(settings.decode)),
        sources={images.name: images},
        sinks={"evaluation": lambda poses: done.add(int(poses.frame.image_name), poses)},
    )
    if stream.run(quiet=options.quiet) != 0:
        raise StreamFailedError("the stream failed; the lines above say why")
    return done


def _report(options: argparse.Namespace, scores: Scores, done: SetPrediction) -> None:
    from rich.console import Console

    from training.report import metrics_table, plot_stages, stages_table

    console = Console()
    console.print(metrics_table(scores.metrics, scores.intervals, scores.differences))
    if done.stage_ms:
        console.print(stages_table(done.stage_ms, done.num_people))
    if done.failed:
        console.print(f"{len(done.failed)} images could not be read: {', '.join(done.failed)}")
    if options.plot is not None:
        plot_stages(options.plot, done.stage_ms, done.num_people)


# --- drawings ------------------------------------------------------------------------------------


class _Drawing:
    """Writes ground truth beside prediction, one .jpg an image."""

    def __init__(
        self, folder: Path, skeleton: Skeleton, labels: Mapping[int, LabelledImage]
    ) -> None:
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise ValueError(f"folder {folder} cannot be made: {error.strerror}") from None
        self._folder, self._skeleton, self._labels = folder, skeleton, labels

    def __call__(self, image: Mapping[str, Any], poses: Poses) -> None:
        import cv2

        from training.report import side_by_side

        truth = self._labelled(image["id"], poses)
        captions = f"ground truth: {len(truth.scores)}", f"found: {len(poses.scores)}"
        pictures = self._drawn(truth, labels=False), self._drawn(poses, labels=True)
        path = self._folder / f"{image['id']}.jpg"
        if not cv2.imwrite(str(path), side_by_side(*pictures, captions)):
            raise ValueError(f"{path} cannot be written")

    def _labelled(self, image_id: int, found: Poses) -> Poses:
        """The labelled people of the picture in which others were found."""
        import numpy as np

        keypoints = self._labels[image_id].keypoints.copy()
        keypoints[..., 2] = keypoints[..., 2] > 0
        return replace(
            found,
            keypoints=keypoints,
            scores=np.ones(len(keypoints)),
            filled=np.zeros(keypoints.shape[:2], np.bool_),
            ids=np.full(len(keypoints), -1),
        )

    def _drawn(self, poses: Poses, *, labels: bool) -> NDArray[np.uint8]:
        """The picture with people as the stream draws them; labels say their scores."""
        from pipeline.sinks.overlay import draw_poses

        return draw_poses(poses.frame.to_host(), poses, self._skeleton, labels=labels)


if __name__ == "__main__":
    sys.exit(main())
