"""What a user calls weights -> a file on this disk: a path, a published name, or a URL.

    weights/mine.safetensors                     that file
    higher_hrnet_w32                             of published.py; downloaded once, always checked
    https://host/mine.pth#sha256=0123abcd...     downloaded once; the hash may be left out

What was downloaded lies in the user's cache folder exactly as it came. POSESTREAM_WEIGHTS_URL names
another place for published files: the address of a mirror, or a folder.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from common.redaction import plain_url
from nets.zoo.download import MissingError, download, hash_of, is_right
from nets.zoo.published import PUBLISHED, SERVER, Published

_log = logging.getLogger(__name__)

URL_VARIABLE = "POSESTREAM_WEIGHTS_URL"
LIST_COMMAND = "python -m nets.zoo"

_URL = re.compile(r"(?i)https?://")
_HERE = ("localhost", "127.0.0.1", "::1")


def weights_folder() -> Path:
    """Where downloaded files are kept: always the same place, unlike common.cache's choice.

    What lies in a read-only cache is of use, and files of this size do not go to a temporary folder
    unasked.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        cache = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise ValueError(
            "this user has no home folder to keep weights in; set XDG_CACHE_HOME to a folder"
        ) from None
    return cache / "posestream" / "weights"


def cached_file(name: str) -> Path:
    """Where the file of a published name lies once it was downloaded, or was put by hand."""
    return weights_folder() / PUBLISHED[name].file


def weights_file(weights: str | Path) -> Path:
    """The file that is meant, downloaded if need be.

    A published name means the published file, also where a file of that name lies in the current
    folder; ./name is the file.

    Raises:
        ValueError: no such file or name, or a download that failed; one line.
    """
    text = str(weights)
    if text in PUBLISHED:
        return _published_file(text)
    if _URL.match(text):
        return _linked_file(text)
    path = Path(weights)
    if not path.is_file():
        raise ValueError(_nothing_called(text))
    return path


def shown_weights(weights: str | Path) -> str:
    """What a user called the weights, without what may be secret in a URL."""
    text = str(weights)
    return plain_url(text) if _URL.match(text) else text


def _nothing_called(text: str) -> str:
    stem = Path(text).name.partition(".")[0]
    close = difflib.get_close_matches(stem, PUBLISHED, n=1, cutoff=0.75)
    hint = f"did you mean the published {close[0]}?" if close else "check the path"
    return f"there is no weights file {text}; {hint} ({LIST_COMMAND} lists published names)"


# --- published names -----------------------------------------------------------------------------


def _published_file(name: str) -> Path:
    entry, cached = PUBLISHED[name], cached_file(name)
    if is_right(cached, entry.sha256):
        return cached
    if cached.exists():
        _log.warning(
            "%s is damaged or another file (its sha256 begins with %s, expected %s); it is not "
            "used", cached, hash_of(cached)[:8], entry.sha256,
        )  # fmt: skip
    place = os.environ.get(URL_VARIABLE) or SERVER
    if not _URL.match(place):
        return _file_in(_folder(place), entry)
    if place != SERVER:
        _log.info("%s: %s is asked for published weights", URL_VARIABLE, plain_url(place))
    missing: MissingError | None = None
    for url in _addresses(place, entry):
        try:
            download(url, cached, sha256=entry.sha256)
            return cached
        except MissingError as error:
            missing = error
    assert missing is not None
    raise missing


def _addresses(place: str, entry: Published) -> Iterator[str]:
    """A mirror has the files in the publisher's folders, or all in one."""
    parts = urlsplit(place)
    for path in (entry.path,) if place == SERVER else (entry.path, entry.file):
        yield urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{path}", fragment=""))


def _folder(place: str) -> Path:
    folder = Path(unquote(urlsplit(place).path) if place.startswith("file:") else place)
    if not folder.is_dir():
        raise ValueError(
            f"{URL_VARIABLE} is {plain_url(place)}, which is no folder and no http address; "
            f"set it to where the files are, or unset it for {SERVER}"
        )
    return folder


def _file_in(folder: Path, entry: Published) -> Path:
    """Used where it lies."""
    for path in (folder / entry.path, folder / entry.file):
        if is_right(path, entry.sha256):
            return path
        if path.exists():
            raise ValueError(
                f"{path} is damaged or another file: its sha256 begins with {hash_of(path)[:8]}, "
                f"expected {entry.sha256}; put the right one there"
            )
    raise ValueError(f"{URL_VARIABLE}: there is no {entry.file} in {folder}; put it there")


# --- URLs ----------------------------------------------------------------------------------------


def _linked_file(url: str) -> Path:
    parts = urlsplit(url)
    sha256 = _hash_in(parts.fragment, url)
    if parts.scheme.lower() == "http" and len(sha256) < 64 and parts.hostname not in _HERE:
        raise ValueError(
            f"{plain_url(url)}: over http anybody on the way can change the file; take https, or "
            "add #sha256= and all 64 digits of its hash"
        )
    address = urlunsplit(parts._replace(fragment=""))
    # Files of one name from two places are two files.
    tag = hashlib.sha256(address.encode()).hexdigest()[:8]
    cached = weights_folder() / f"{tag}-{unquote(parts.path).rpartition('/')[2] or 'weights.pth'}"
    if is_right(cached, sha256):
        _log.info("weights downloaded before: %s (delete it to fetch it again)", cached)
    else:
        download(address, cached, sha256=sha256)
    return cached


def _hash_in(fragment: str, url: str) -> str:
    """The digits after #sha256=; empty where nothing follows the address."""
    match = re.fullmatch(r"(?i)sha256=([0-9a-f]{8,64})", fragment)
    if fragment and match is None:
        raise ValueError(
            f"{plain_url(url)}: after # only sha256= and 8 to 64 hex digits can stand, got "
            f"{fragment!r}"
        )
    return match[1].lower() if match else ""
