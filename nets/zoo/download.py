"""A file from the network, whole and checked, or not at all. Knows nothing of weights.

    URL --> <file>.part --(cut off? go on from there)--> its hash is right? --> <file>

One process downloads, the others wait for it (<file>.lock). A killed download goes on where it
was, unless there is no hash that would tell whether the two parts fit.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from common.redaction import plain_url
from nets.zoo.http_answer import (
    Answer,
    BrokenError,
    NoConnectionError,
    NotThereError,
    Patience,
    RefusedError,
    answer,
)

_log = logging.getLogger(__name__)

_PROGRESS_BYTES = 1 << 20
_LOG_EVERY_S = 10.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DownloadError(ValueError):
    """Why there is no file and what to do, in one line."""


class MissingError(DownloadError):
    """The server answers, but has no such file."""


def download(url: str, target: Path, *, sha256: str = "", patience: Patience | None = None) -> None:
    """Fetch a file, unless another process has just done so.

    Args:
        url: http or https; may hold a user and a password.
        target: replaced when the whole file is there and right, and not touched otherwise.
        sha256: hex digits that the file's hash begins with; empty: not known.
    Raises:
        MissingError: the server has no such file.
        DownloadError: no network, no room, a wrong hash, ...
    """
    patience = patience or Patience()
    with _alone(target):
        if is_right(target, sha256):
            return
        part = _part_of(target)
        with _on_disk(target):
            if not sha256:
                part.unlink(missing_ok=True)
            continued = part.exists()
        _fetch(url, target, patience, has_hash=bool(sha256))
        if continued and not is_right(part, sha256):
            _log.warning(
                "%s: what was here before does not fit; fetching all of it", plain_url(url)
            )
            part.unlink()
            _fetch(url, target, patience, has_hash=True)
        _check_hash(url, target, sha256)
        with _on_disk(target):
            os.replace(part, target)


def is_right(path: Path, sha256: str) -> bool:
    """Whether there is a file, and its SHA-256 begins with those hex digits."""
    return path.is_file() and (not sha256 or hash_of(path).startswith(sha256.lower()))


def hash_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_hash(url: str, target: Path, sha256: str) -> None:
    part = _part_of(target)
    if is_right(part, sha256):
        return
    found = hash_of(part)
    with part.open("rb") as file:
        is_page = file.read(256).lstrip().startswith(b"<")
    part.unlink()
    what = " (it is a web page, perhaps the login of this network)" if is_page else ""
    _refuse(
        url,
        target,
        f"another file came than the one that is meant, and is not used{what}: its sha256 begins "
        f"with {found[: max(8, len(sha256))]}, expected {sha256.lower()}",
    )


def _refuse(url: str, target: Path, reason: str) -> NoReturn:
    raise DownloadError(_line(url, target, reason))


def _line(url: str, target: Path, reason: object) -> str:
    return f"{plain_url(url)}: {reason}; get the file in another way and put it at {target}"


# --- over the network ----------------------------------------------------------------------------


def _fetch(url: str, target: Path, patience: Patience, *, has_hash: bool) -> None:
    """Fill the part, with as many tries as it takes."""
    part, version, failures, answered = _part_of(target), "", 0, False
    _log.info("downloading %s to %s", plain_url(url), target)
    while True:
        before = _size(part)
        try:
            # Parts of two answers make one file if a hash or the server says that they fit.
            start = before if has_hash or version else 0
            with answer(url, start=start, version=version, patience=patience) as found:
                answered, version = True, found.version
                _copy(found, target)
            return
        except NotThereError as error:
            raise MissingError(_line(url, target, error)) from None
        except RefusedError as error:
            _refuse(url, target, str(error))
        except BrokenError as error:
            failures = 0 if _size(part) - before >= _PROGRESS_BYTES else failures + 1
            unreachable = isinstance(error, NoConnectionError) and not answered
            if unreachable or failures >= patience.tries:
                _refuse(url, target, str(error))
            pause_s = patience.pause_s * 2 ** max(failures - 1, 0)
            _log.warning("%s: %s; trying again in %g s", plain_url(url), error, pause_s)
            time.sleep(pause_s)


def _copy(found: Answer, target: Path) -> None:
    """An answer's bytes into the part, from where the answer begins."""
    part, total = _part_of(target), found.total
    with _on_disk(target), part.open("r+b" if found.start else "wb") as file:
        file.seek(found.start)
        file.truncate()
        if total is not None:
            _check_room(target, total - found.start)
        with _meter(target.name, found.start, total) as advance:
            for chunk in found.chunks():
                file.write(chunk)
                advance(len(chunk))
        file.flush()
        os.fsync(file.fileno())  # a file without a known hash is never looked at again
    if total is not None and _size(part) < total:
        raise BrokenError(f"the connection broke off after {_mb(_size(part))} of {_mb(total)}")


@contextmanager
def _meter(name: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar, or where nobody watches a terminal, a line in the log now and then."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _log_meter(name, start, total)
        return
    columns = TextColumn(name), BarColumn(None), DownloadColumn(), TransferSpeedColumn()
    bar = Progress(
        *columns, TimeRemainingColumn(), console=console, transient=True,
        disable=not _log.isEnabledFor(logging.INFO),
    )  # fmt: skip
    with bar:
        task = bar.add_task(name, total=total, completed=start)
        yield lambda num_bytes: bar.advance(task, num_bytes)


def _log_meter(name: str, start: int, total: int | None) -> Callable[[int], None]:
    so_far, said_at = start, time.monotonic()

    def advance(num_bytes: int) -> None:
        nonlocal so_far, said_at
        so_far += num_bytes
        if time.monotonic() - said_at >= _LOG_EVERY_S:
            said_at = time.monotonic()
            _log.info("%s: %s%s", name, _mb(so_far), "" if total is None else f" of {_mb(total)}")

    return advance


# --- on the disk ---------------------------------------------------------------------------------


def _part_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.part")


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold a file's lock; whoever comes second waits. It is free when its holder is gone."""
    with _on_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = target.with_name(f"{target.name}.lock").open("a", encoding="utf-8")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("another process is downloading %s; waiting for it", target.name)
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:  # some network drives; what two mix up would fail its hash
            _log.warning("%s cannot be locked (%s); going on without", target, error.strerror)
        yield


@contextmanager
def _on_disk(target: Path) -> Iterator[None]:
    """Around what writes: says what is wrong with the disk."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            _part_of(target).unlink(missing_ok=True)  # others need the room, too
            raise _no_room(target, str(error.strerror)) from None
        raise DownloadError(
            f"{target} cannot be written: {error.strerror}; set XDG_CACHE_HOME to a folder that "
            "can be written"
        ) from None


def _check_room(target: Path, num_bytes: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if num_bytes > free:
        raise _no_room(target, f"{_mb(num_bytes)} are needed, {_mb(free)} are free")


def _no_room(target: Path, reason: str) -> DownloadError:
    return DownloadError(
        f"no room for {target.name} in {target.parent}: {reason}; make room, or set XDG_CACHE_HOME "
        "to a folder on another disk"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"
