"""Files that took long to make, kept in the user's cache folder: found again, or made again.

    file = first line | header line (JSON: key, size, sha256) | payload
    name = <label>-<hash of the key>.model

An entry is never trusted: its whole key and the hash of its payload are compared on every load,
and what does not fit is deleted and made again. Files appear whole or not at all, so several
processes may share a folder. A folder that cannot be written is no failure: that is logged once,
and the caller goes on without.
"""

import hashlib
import json
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path

from common.cache import cache_folder, log_problems
from common.files import write_atomically

logger = logging.getLogger(__name__)

_FIRST_LINE = b"posestream model cache 1\n"
_SUFFIX = ".model"
_UNFINISHED_SUFFIX = ".part"
"""Of write_atomically."""
_MAX_HEADER_BYTES = 1 << 16
_ABANDONED_SECONDS = 3600.0


class ModelCache:
    """A folder of payloads, each found by what it was made from."""

    def __init__(self, folder: Path | None = None, *, max_bytes: int = 2 << 30) -> None:
        """
        Args:
            folder: made when first needed; None takes `engines` in the user's cache folder, and
                keeps nothing where there is none.
            max_bytes: beyond it the entries unused for longest are deleted; the newest stays.
        """
        self.folder = cache_folder("engines") if folder is None else folder
        if folder is None:
            log_problems()
        self.max_bytes = max_bytes
        self._complained = False

    def path(self, key: Mapping[str, str]) -> Path:
        """Where the payload of that key lies or would lie. key["name"] leads the file's name."""
        digest = hashlib.sha256(_canonical(key)).hexdigest()
        assert self.folder is not None, "nothing is kept"
        return self.folder / f"{key['name']}-{digest[:24]}{_SUFFIX}"

    def load(self, key: Mapping[str, str]) -> bytes | None:
        """The payload stored under that key, or None where there is none that is whole."""
        if self.folder is None:
            return None
        path = self.path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            self._complain(error)
            return None
        try:
            payload = _checked_payload(content, key)
        except ValueError as error:
            logger.warning("cached model %s is made again: %s", path, error)
            self.discard(key)
            return None
        self._mark_used(path)
        return payload

    def store(self, key: Mapping[str, str], payload: bytes) -> None:
        """Keep the payload under that key, in place of what was there."""
        if self.folder is None:
            return
        header = {"key": dict(key), "size": len(payload), "sha256": _sha256(payload)}
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            start = _FIRST_LINE + json.dumps(header).encode() + b"\n"
            # Not durable: a file torn by a power cut fails its hash and is made again.
            write_atomically(
                self.path(key), lambda file: file.writelines((start, payload)), mode=0o600
            )
            self._prune(self.folder, keep=self.path(key))
        except OSError as error:
            self._complain(error)

    def discard(self, key: Mapping[str, str]) -> None:
        """Delete the entry of that key; another process may have done so already."""
        if self.folder is None:
            return
        try:
            self.path(key).unlink(missing_ok=True)
        except OSError as error:
            self._complain(error)

    def _mark_used(self, path: Path) -> None:
        """The modification time says when an entry was last used; pruning goes by it."""
        try:
            os.utime(path)
        except FileNotFoundError:
            pass  # another process pruned it after we had read it
        except OSError as error:
            self._complain(error)

    def _prune(self, folder: Path, *, keep: Path) -> None:
        abandoned = time.time() - _ABANDONED_SECONDS
        entries: list[tuple[float, int, Path]] = []
        for path in folder.iterdir():
            try:
                status = path.stat()
                if path.suffix == _UNFINISHED_SUFFIX and status.st_mtime < abandoned:
                    path.unlink()  # its writer was killed
                elif path.suffix == _SUFFIX:
                    entries.append((status.st_mtime, status.st_size, path))
            except FileNotFoundError:
                continue  # another process pruned it first
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.max_bytes:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                total -= size

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            logger.warning(
                "the model cache %s does not work (%s); going on without it, so models are "
                "prepared again at every start; set XDG_CACHE_HOME to a folder that can be written",
                self.folder,
                error,
            )
        self._complained = True


def _canonical(key: Mapping[str, str]) -> bytes:
    return json.dumps(dict(key), sort_keys=True).encode()


def _sha256(payload: bytes) -> str:
    return hashlib.sha256(payload).hexdigest()


def _checked_payload(content: bytes, key: Mapping[str, str]) -> bytes:
    """The payload of a cache file; ValueError says what is wrong with the file."""
    if not content.startswith(_FIRST_LINE):
        raise ValueError("it does not begin as a cache file does")
    start = len(_FIRST_LINE)
    end = content.find(b"\n", start, start + _MAX_HEADER_BYTES)
    if end < 0:
        raise ValueError("its header has no end")
    header = json.loads(content[start:end])  # its JSONDecodeError is a ValueError
    if not isinstance(header, dict) or header.get("key") != dict(key):
        raise ValueError("it was made from something else")
    payload = content[end + 1 :]
    if len(payload) != header.get("size"):
        raise ValueError(f"it holds {len(payload)} bytes, its header says {header.get('size')}")
    if _sha256(payload) != header.get("sha256"):
        raise ValueError("its bytes have changed since it was written")
    return payload
