"""Documents are plain: short lines, short sentences, the field's standard words, no dead links."""

import re
from pathlib import Path

import pytest

from tests.support.places import ROOT

MAX_LINE = 120
MAX_WORDS = 25
DOCUMENTS = sorted(
    [ROOT / "README.md", ROOT / "weights" / "README.md", *(ROOT / "docs").glob("*.md")]
)
NOT_OUR_WORDS = {
    r"\b(graphics|NVIDIA) cards?\b": "GPU",
    r"\breckon(s|ed|ing)?\b": "compute",
    r"\banew\b": "again",
    r"\blearnt out\b": "saturated",
    r"\berrands?\b": "task",
    r"\bwhoever\b": "a subscriber, a viewer: say who",
}


def _prose(text: str) -> list[str]:
    """Paragraphs, list items and table cells, without code, links' targets and quotes of output."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    text = re.sub(r"^(?: {4}|\t).*$", "", text, flags=re.M)
    text = re.sub(r"`[^`]*`", "0", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(
        r"^(#+ .*|\|.*\||\s*[-*] |\d+\. )",
        lambda m: "\n\n" + m[0].replace("|", "\n\n"),
        text,
        flags=re.M,
    )
    return [" ".join(block.split()) for block in re.split(r"\n\s*\n", text) if block.strip()]


def _sentences(text: str) -> list[str]:
    return [s for block in _prose(text) for s in re.split(r"(?<=[.:;?!])\s+", block) if s]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_lines_are_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    long = [n for n, line in enumerate(lines, 1) if len(line) > MAX_LINE and line[:1] != "|"]
    assert not long, f"lines of more than {MAX_LINE} characters: {long}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_sentences_are_short(path: Path) -> None:
    sentences = _sentences(path.read_text(encoding="utf-8"))
    long = [s for s in sentences if len(re.findall(r"[A-Za-z]\w*", s)) > MAX_WORDS]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_words_are_those_of_the_field(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = {word: say for word, say in NOT_OUR_WORDS.items() if re.search(word, text, re.I)}
    assert not found, f"{path.name}: write instead {found}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8"))
    dead = [t for t in targets if "://" not in t and not (path.parent / t).exists()]
    assert not dead
