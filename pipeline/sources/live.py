"""A camera or a stream from the network: connects, reads, and connects again, for ever.

    connect --> read --> lost --> wait 0.5 to 1 s ---------> connect ...
       '---- 401, 403, 404 -----> wait 30 s, 60, .. 300 ---> connect ...

The thread that runs frames() alone touches a container once it is open; closing one under a reader
crashes the process. It reads without a pause, so that no delay builds up in the network; what is
too much is dropped behind it. FFmpeg's side of decoding is av_video.py.

A server that is just starting may take a connection and forget it. So with a camera that has
answered before, a try is left to itself after three times as long as it took then (but 1.5 s at
least), and the next begins, which has twice the time.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Generator
from concurrent.futures import Future, InvalidStateError, wait
from typing import Literal

import av
import av.container
import av.error

from common.rare_log import RareLog
from common.redaction import redact
from pipeline.gpu.nvdec import opening_on
from pipeline.sources.source import NumberedSource, SourceError, SourceSettings, decoded_where
from pipeline.sources.status import SourceState
from pipeline.sources.timeline import Pacer
from pipeline.sources.video_reader import (
    BACKEND_ERRORS,
    NETWORK_ONLY,
    NoPictureError,
    Picture,
    VideoReader,
    decodable,
    naming_lost_hosts,
    reason_of,
)
from pipeline.sources.web import Answer, ask, is_web

_logger = logging.getLogger(__name__)

_RETRY_SECONDS = (0.5, 1.0)
_REFUSED_SECONDS = (30.0, 300.0)  # cameras lock out whoever repeats a wrong password fast
_JITTER = 0.1
_QUICK_ANSWER_SECONDS = 1.5
_PATIENCE_SECONDS = 30.0  # data without a picture: longer than the longest group of pictures

# What a failure is counted under; the first that fits.
_OTHER_TRANSPORT: dict[str, Literal["tcp", "udp"]] = {"tcp": "udp", "udp": "tcp"}
_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (av.error.HTTPUnauthorizedError, "unauthorized"),
    (av.error.HTTPForbiddenError, "forbidden"),
    (av.error.HTTPNotFoundError, "not_found"),
    (av.error.HTTPClientError, "refused"),
    (NoPictureError, "no_picture"),
    (av.error.ConnectionRefusedError, "connection_refused"),
    (av.error.ExitError, "silent"),
    (TimeoutError, "silent"),
    (av.error.InvalidDataError, "invalid"),
)


class _LeftError(TimeoutError):
    """A try takes too long; it may end by itself."""


class LiveSource(NumberedSource):
    """A camera or a stream from the network. Loss of the connection is no end: it reconnects."""

    def __init__(
        self, name: str, url: str, settings: SourceSettings, *, format_name: str | None = None
    ) -> None:
        super().__init__(name, settings, live=True)
        self._url = url
        self._format_name = format_name  # FFmpeg's input device; None for the network
        self._opened_url = url  # where the server names another, as for the best HLS variant
        self._transport = settings.transport  # of RTSP
        self._read_timeout_seconds = settings.read_timeout_seconds
        self._has_duration = False  # by its container's word
        self._pacer: Pacer | None = None  # of what comes in segments
        self._quick = True  # probe as little as possible
        self._delivered = False
        self._connected = False
        self._lost_at: float | None = None
        self._problem = ""
        self._refusals = 0  # in a row
        self._left = 0  # tries left to themselves since the last picture
        self._answered_in_seconds = 0.0  # the last time
        self._size = (0, 0)
        self._rare_log = RareLog(_logger)

    def _pictures(self) -> Generator[Picture, None, None]:
        while not self._stopped.is_set():
            self._connected = False
            failure: Exception | None = None  # a server that dies is no error for FFmpeg
            try:
                container = self._connected_container()
                if container is None:
                    return
                with container:
                    yield from self._read(container)
            except BACKEND_ERRORS as error:
                failure = error
            if self._stopped.is_set() or not self._tries_again(self._describe(failure)):
                return
            if _is_an_end(failure) and self._has_ended():
                return
            self._stopped.wait(self._note_lost(failure))

    def _read(self, container: av.container.InputContainer) -> Generator[Picture, None, None]:
        reader = VideoReader(
            container, threads="NONE", device=self._settings.device,
            video_stream=self._settings.video_stream,
            deinterlace=self._settings.deinterlace == "auto",
        )  # fmt: skip
        self._has_duration = bool(container.duration)
        for picture in reader.pictures(self._stopped, patience_seconds=_PATIENCE_SECONDS):
            self._note_picture(picture, reader.fps)
            if self._pacer is not None and picture.pts_seconds is not None:
                wait_seconds = self._pacer.wait_seconds(picture.pts_seconds, now=time.monotonic())
                self._stopped.wait(wait_seconds)
            yield picture

    # --- connecting ----------------------------------------------------------------------------

    def _connected_container(self) -> av.container.InputContainer | None:
        """One try; None when stopped."""
        started = time.monotonic()
        try:
            container = _unless(
                self._stopped, self._connect, patience_seconds=self._patience_seconds()
            )
        except _LeftError:
            self._left += 1
            raise
        self._answered_in_seconds = time.monotonic() - started
        return container

    def _patience_seconds(self) -> float:
        """After which a try is left to itself; FFmpeg gives up by its own timeouts."""
        if not self._delivered:
            return math.inf
        usual = max(_QUICK_ANSWER_SECONDS, 3 * self._answered_in_seconds)
        return usual * 2.0 ** min(self._left, 10)

    def _connect(self) -> av.container.InputContainer:
        """Open the stream; where a quick look finds no video, with FFmpeg's longer one."""
        self._ask_web()
        container = self._open_any_transport()
        if not decodable(container) and self._quick:
            container.close()
            self._quick = False
            _logger.info("%s: a quick look finds no video; taking a longer one", self.name)
            container = self._open()
        if not decodable(container):
            container.close()
            raise OSError("the stream carries no video that can be decoded")
        return container

    def _ask_web(self) -> None:
        """What the URL gives now: a playlist's variant and its pace, or no video at all."""
        if not is_web(self._url):
            return
        answer = self._asked()
        if answer is None:
            return
        if answer.problem and not self._delivered:
            raise SourceError(f"{redact(self._url)}: {answer.problem}")
        self._opened_url = answer.url
        segment_seconds = answer.segment_seconds
        self._pacer = Pacer() if segment_seconds else None
        # The next segment comes when it is full, and some time late.
        longest = max(self._settings.read_timeout_seconds, 3 * segment_seconds)
        self._read_timeout_seconds = longest

    def _asked(self) -> Answer | None:
        return ask(
            self._url,
            options=self._settings.options,
            timeout_seconds=self._settings.open_timeout_seconds,
            variant=self._settings.video_stream,
        )

    def _has_ended(self) -> bool:
        """Whether a stream that ended in order will give no more: its server says so."""
        if not is_web(self._url):
            return False
        answer = self._asked()
        # A single picture has a length too; who reads one as live wants it again and again.
        is_over = answer is not None and answer.is_live is False and answer.segment_seconds > 0
        if is_over or (self._has_duration and self._pacer is None):
            _logger.info("%s: it was read to its end", self.name)
            return True
        if answer is not None and answer.is_live is None:
            self._say(
                logging.WARNING,
                "untold",
                "it ended in order, and its server does not say whether it is a file; it is read "
                "again (for a file set sources.N.live=false)",
            )
        return False

    def _open_any_transport(self) -> av.container.InputContainer:
        """RTSP: where the server does not offer this transport, by the other one."""
        try:
            return self._open()
        except BACKEND_ERRORS as error:
            if not self._is_rtsp or not _is_about_transport(error):
                raise
            other = _OTHER_TRANSPORT[self._transport]
            self._say(
                logging.WARNING,
                "transport",
                f"the server does not offer RTSP over {self._transport}; trying {other}",
            )
            self._transport = other
            return self._open()

    @property
    def _is_rtsp(self) -> bool:
        return self._url.lower().startswith("rtsp")

    def _open(self) -> av.container.InputContainer:
        options = self._options() | dict(self._settings.options)
        timeouts = (self._settings.open_timeout_seconds, self._read_timeout_seconds)
        allowed = {} if self._format_name == "v4l2" else NETWORK_ONLY
        if self._format_name == "sdp":
            allowed = {"protocol_whitelist": f"file,{NETWORK_ONLY['protocol_whitelist']}"}
        with naming_lost_hosts(self._opened_url), opening_on(self._settings.device) as hwaccel:
            return av.open(
                self._opened_url,
                format=self._format_name,
                options=options | allowed,
                timeout=timeouts,
                metadata_errors="replace",  # a camera's name need not be UTF-8
                hwaccel=hwaccel,
            )

    def _options(self) -> dict[str, str]:
        """FFmpeg's options for a quick start.

        Not fflags=nobuffer: it throws away what probing has read, with it the first key frame,
        and the latency afterwards is the same.
        """
        if self._format_name is not None:
            return {}
        if not self._is_rtsp:
            return {"analyzeduration": "1000000", "fpsprobesize": "0"} if self._quick else {}
        # The session description says what FFmpeg would otherwise read seconds of video for.
        quick = {"probesize": "32", "analyzeduration": "0"} if self._quick else {}
        return {"rtsp_transport": self._transport, **quick}

    # --- failures ------------------------------------------------------------------------------

    def _describe(self, failure: Exception | None) -> str:
        """In words: FFmpeg's own for silence is "immediate exit requested"."""
        if failure is None:
            return "the stream ended"
        if _word(failure) == "silent" and self._connected:
            return f"no data for {self._read_timeout_seconds:g} seconds"
        if _word(failure) == "silent":
            return f"no answer (a try waits up to {self._settings.open_timeout_seconds:g} seconds)"
        if _word(failure) == "invalid":
            return "no answer, or none that is a video stream"
        return reason_of(failure)

    def _tries_again(self, problem: str) -> bool:
        """Without reconnect a failure is the end; a local camera must have worked once."""
        is_local = self._format_name == "v4l2"
        may_come_back = self._settings.reconnect and (self._delivered or not is_local)
        if may_come_back:
            return True
        if not self._delivered:
            raise SourceError(f"{redact(self._url)}: cannot be read: {problem}")
        _logger.warning("%s: %s; not reconnecting", self.name, problem)
        return False

    def _note_lost(self, failure: Exception | None) -> float:
        """Change the state, say so, and return the seconds to wait before the next try."""
        self._lost_at = time.monotonic() if self._lost_at is None else self._lost_at
        self._quick = self._quick and not isinstance(failure, NoPictureError)
        problem = self._describe(failure)
        if isinstance(failure, av.error.HTTPClientError):
            state, seconds = SourceState.REFUSED, refused_seconds(self._refusals)
            self._refusals += 1
            plan = "trying again every 30 to 300 s, lest the camera lock us out"
        else:
            state = SourceState.RECONNECTING if self._delivered else SourceState.CONNECTING
            left = isinstance(failure, _LeftError)  # which has waited enough
            seconds = 0.0 if left else random.uniform(*_RETRY_SECONDS)
            plan = "trying again until it works"
        self._health.lost(state, reason=problem, word=_word(failure))
        if problem != self._problem:  # one line for an outage, however many tries it takes
            self._say(logging.WARNING, problem, f"{problem}; {plan}")
        self._problem = problem
        return seconds

    def _note_picture(self, picture: Picture, fps: float | None) -> None:
        height, width = size = picture.planes[0].shape[:2]
        if not self._connected:
            after = ""
            if self._lost_at is not None:
                after = f" again after {time.monotonic() - self._lost_at:.1f} s"
            where = decoded_where(picture, self._settings)
            self._say(logging.INFO, "connected", f"connected{after}, {width}x{height}{where}")
            if fps is not None and 1.0 <= fps <= 240.0:  # some state their clock rate instead
                self.fps = fps
        elif size != self._size:
            before = f"{self._size[1]}x{self._size[0]}"
            self._say(logging.INFO, "size", f"the picture is now {width}x{height}, not {before}")
        self._connected = self._delivered = True
        self._lost_at, self._problem, self._size = None, "", size
        self._refusals = self._left = 0

    def _say(self, level: int, kind: str, text: str) -> None:
        """Log one line, or none if there was such a line within the minute."""
        self._rare_log.log(level, f"{self.name}: {text}", kind=kind)


def refused_seconds(refusals: int) -> float:
    """How long to wait after so many refusals in a row: 30 s, 60, 120, 240, 300, give or take."""
    shortest, longest = _REFUSED_SECONDS
    seconds = min(shortest * 2.0 ** min(refusals, 10), longest)
    return min(max(seconds * random.uniform(1 - _JITTER, 1 + _JITTER), shortest), longest)


def _is_an_end(failure: Exception | None) -> bool:
    """Of a stream over HTTP without a length FFmpeg says that its end is an I/O error."""
    return failure is None or getattr(failure, "errno", None) == errno.EIO


def _is_about_transport(error: Exception) -> bool:
    """461 Unsupported Transport, or FFmpeg's own word once it has tried all that it may."""
    return getattr(error, "errno", None) == errno.EPROTONOSUPPORT or isinstance(
        error, av.error.HTTPOtherClientError
    )


def _word(failure: Exception | None) -> str:
    if failure is None:
        return "ended"
    return next((word for kind, word in _WORDS if isinstance(failure, kind)), "failed")


def _unless(
    stopped: threading.Event,
    connect: Callable[[], av.container.InputContainer],
    *,
    patience_seconds: float,
) -> av.container.InputContainer | None:
    """connect() in a thread of its own, so that stop() need not wait for a camera's answer.

    None when stopped meanwhile, _LeftError when it takes too long; a container that comes after
    all is closed by the thread that opened it, before anybody else has seen it.
    """
    opening: Future[av.container.InputContainer] = Future()

    def work() -> None:
        try:
            container = connect()
        except Exception as error:
            with contextlib.suppress(InvalidStateError):  # nobody wants to know any more
                opening.set_exception(error)
            return
        try:
            opening.set_result(container)
        except InvalidStateError:
            container.close()

    threading.Thread(target=work, name="connect", daemon=True).start()
    deadline = time.monotonic() + patience_seconds
    while not wait([opening], timeout=0.05).done:
        if stopped.is_set() and opening.cancel():
            return None
        if time.monotonic() > deadline and opening.cancel():
            raise _LeftError("no answer yet")
    return opening.result()
