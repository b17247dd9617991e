"""The page in a real browser: what is on the canvas, the switches, the states, coming back."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest

from pipeline.runtime.stats import LoadSnapshot
from pipeline.sinks.overlay import SIDE_COLORS
from tests.support.page_stand import COLOR_BGR, LOST, Stand, feeding, serving
from tests.support.waiting import PATIENCE_SECONDS

CHROMIUM = "/usr/bin/chromium"
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
TOKEN = "a-token-of-twenty-four-c"
LOAD: LoadSnapshot = {
    "step": 9, "changes": 1, "input_size": 192, "refine": "off", "fps": 9.83,
    "reason": "3 sources should give 44.9 results a second and give 14.8",
    "text": "input 192, refine off, 9.83 fps each",
}  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if shutil.which(CHROMIUM) is None:
        pytest.skip("needs chromium (see .ci/system-packages)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """A tab of its own; whatever it complains about on its console fails the test."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(1e3 * PATIENCE_SECONDS)
    tab = context.new_page()
    complaints: list[str] = []
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("console", lambda line: complaints.append(line.text) if _is_bad(line) else None)
    tab.complaints = complaints
    yield tab
    context.close()
    assert complaints == []


def _is_bad(line: Any) -> bool:
    return line.type in ("error", "warning")


def canvas_of(tab: Any, camera: str) -> np.ndarray:
    """(h, w, 3) BGR pixels of a camera's canvas."""
    png = tab.locator(f'article[data-name="{camera}"] canvas').evaluate(
        """async (canvas) => {
            const blob = await new Promise((done) => canvas.toBlob(done));
            return [...new Uint8Array(await blob.arrayBuffer())];
        }"""
    )
    picture = cv2.imdecode(np.frombuffer(bytes(png), np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(picture).astype(int)


def wait_for_frame(tab: Any, camera: str) -> None:
    tab.locator(f'article[data-name="{camera}"] canvas').evaluate(
        """(canvas, ms) => new Promise((done, fail) => {
            canvas.addEventListener('drawn', done, { once: true });
            setTimeout(() => fail(new Error('nothing was drawn')), ms);
        })""",
        1e3 * PATIENCE_SECONDS,
    )


def num_of(picture: np.ndarray, color: tuple[int, int, int], *, within: int = 12) -> int:
    return int((np.abs(picture - color).max(axis=-1) < within).sum())


def test_pictures_and_people_are_on_the_canvas_and_switches_change_them(tab: Any) -> None:
    stand = Stand()
    with serving(stand) as page, feeding(page, stand, "cam1", "door"):
        tab.goto(page.url)
        for camera in ("cam1", "door"):
            wait_for_frame(tab, camera)
            picture = canvas_of(tab, camera)
            assert picture.shape == (360, 640, 3)
            assert num_of(picture, COLOR_BGR) > 150_000, "the picture is not there"
            for side in ("left", "right"):
                assert num_of(picture, SIDE_COLORS[side]) > 80, f"no {side} limbs"

        before = num_of(canvas_of(tab, "cam1"), (255, 255, 255), within=3)
        tab.get_by_label("Ids").click()
        wait_for_frame(tab, "cam1")
        assert num_of(canvas_of(tab, "cam1"), (255, 255, 255), within=3) < before
        tab.get_by_label("On black").click()
        wait_for_frame(tab, "cam1")
        wait_for_frame(tab, "cam1")
        picture = canvas_of(tab, "cam1")
        assert num_of(picture, COLOR_BGR) == 0
        assert num_of(picture, (0, 0, 0)) > 150_000
        tab.get_by_label("Skeleton").click()
        wait_for_frame(tab, "cam1")
        assert canvas_of(tab, "cam1").max() == 0
        tab.reload()
        wait_for_frame(tab, "cam1")
        assert tab.get_by_label("On black").is_checked(), "switches are remembered"
        assert not tab.get_by_label("Skeleton").is_checked()


def test_smoothed_and_raw_keypoints_are_in_their_places(tab: Any) -> None:
    """A lone picture, so that both drawings are of the same people: smoothed lies 1 px lower."""
    stand = Stand()
    with serving(stand) as page:
        tab.goto(page.url)
        tab.get_by_label("Ids").click()
        tab.get_by_label("On black").click()
        tab.wait_for_selector('article[data-name="cam1"]')
        with feeding(page, stand, "cam1"):
            wait_for_frame(tab, "cam1")
        tab.wait_for_timeout(300)
        rows = []
        for _ in range(2):
            picture = canvas_of(tab, "cam1")
            left = np.abs(picture - SIDE_COLORS["left"]).max(axis=-1) < 60
            rows.append(np.flatnonzero(left.any(axis=1)))
            tab.get_by_label("Smoothed").click()
        assert rows[0][-1] - rows[1][-1] == 1
        # The ankle of the taller one: 0.1 + 0.95 * 0.8 of the height.
        assert rows[1][-1] == pytest.approx(0.86 * len(picture), abs=4)


def test_states_are_told_and_a_camera_that_is_lost_is_veiled(tab: Any) -> None:
    stand = Stand()
    with serving(stand) as page, feeding(page, stand, "cam1", "door"):
        tab.goto(page.url)
        wait_for_frame(tab, "door")
        veil = tab.locator('article[data-name="door"] .veil')
        assert not veil.is_visible()
        stand.statuses["door"] = LOST
        veil.wait_for(state="visible")
        assert "reconnecting for" in veil.inner_text()
        assert "Connection refused" in veil.inner_text()
        stand.statuses["door"] = replace(LOST, state="ended", reason="")
        veil.locator("text=/^ended .* ago$/").wait_for()
        assert tab.locator("#summary").inner_text() == "2 cameras, 1 live"
        assert tab.locator('article[data-name="cam1"] .latency').inner_text() == "31 / 44 / 61"
        assert tab.locator('article[data-name="cam1"] .dropped').inner_text() == "3"
        del stand.statuses["door"]
        tab.wait_for_selector('article[data-name="door"]', state="detached")
        stand.statuses['<img src="x">'] = LOST
        tab.locator("h2").nth(1).wait_for()
        assert tab.locator("h2").nth(1).inner_text() == '<img src="x">'


def test_what_is_given_up_under_load_stands_in_the_header_while_it_is(tab: Any) -> None:
    stand, told = Stand(), [LOAD]
    stand.stats.watch_load(lambda: told[0])
    with serving(stand) as page:
        tab.goto(page.url)
        load = tab.locator("#load")
        load.wait_for(state="visible")
        assert load.inner_text() == f"reduced: {LOAD['text']}"
        assert load.get_attribute("title") == LOAD["reason"]
        tab.set_viewport_size({"width": 390, "height": 844})
        assert load.bounding_box()["height"] < 30, "one line, also on a phone"
        pills = [pill.bounding_box()["y"] for pill in tab.locator("#switches label").all()]
        assert max(pills) == min(pills), "one row"
        told[0] = {**LOAD, "step": 0, "reason": ""}
        load.wait_for(state="hidden")


def test_it_comes_back_by_itself_when_the_server_does(tab: Any) -> None:
    stand = Stand()
    with serving(stand) as page, feeding(page, stand, "cam1"):
        tab.goto(page.url)
        wait_for_frame(tab, "cam1")
        address = page.url.removeprefix("http://").rstrip("/")
    tab.wait_for_selector("body.offline")
    assert "trying again" in tab.locator("#summary").inner_text()
    with serving(stand, serve=address) as page, feeding(page, stand, "cam1"):
        tab.wait_for_selector("body:not(.offline)")
        wait_for_frame(tab, "cam1")
    tab.complaints[:] = [line for line in tab.complaints if "ERR_CONNECTION" not in line]


def test_the_token_in_the_link_opens_the_page_and_is_gone_from_it(tab: Any) -> None:
    stand = Stand()
    with serving(stand, token=TOKEN) as page, feeding(page, stand, "cam1"):
        tab.goto(page.url)
        tab.wait_for_selector("article")
        wait_for_frame(tab, "cam1")
        assert TOKEN not in tab.url
        assert tab.evaluate("document.cookie") == "", "scripts cannot read the cookie"
        tab.context.clear_cookies()
        tab.reload()
        tab.get_by_label("Token").fill("wrong")
        tab.keyboard.press("Enter")
        tab.get_by_text("That is not the token.").wait_for()
        tab.get_by_label("Token").fill(TOKEN)
        tab.keyboard.press("Enter")
        tab.wait_for_selector("article")
        wait_for_frame(tab, "cam1")
    tab.complaints[:] = [line for line in tab.complaints if "401" not in line]


def test_in_privacy_there_is_no_picture_to_switch_on(tab: Any) -> None:
    stand = Stand()
    with serving(stand, privacy=True) as page, feeding(page, stand, "cam1"):
        tab.goto(page.url)
        wait_for_frame(tab, "cam1")
        assert not tab.get_by_label("On black").is_visible()
        picture = canvas_of(tab, "cam1")
        assert num_of(picture, COLOR_BGR) == 0
        assert num_of(picture, SIDE_COLORS["left"]) > 80


def test_a_phone_has_one_column_and_the_keyboard_reaches_every_switch(browser: Any) -> None:
    stand = Stand()
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, device_scale_factor=2, is_mobile=True
    )
    with serving(stand) as page, feeding(page, stand, "cam1", "door"):
        tab = context.new_page()
        tab.goto(page.url)
        tab.wait_for_selector('article[data-name="door"]')
        boxes = [gpu.bounding_box() for gpu in tab.locator("article").all()]
        assert boxes[0]["x"] == boxes[1]["x"]
        assert boxes[1]["y"] >= boxes[0]["y"] + boxes[0]["height"]
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
        names = []
        for _ in range(5):
            tab.keyboard.press("Tab")
            names.append(tab.evaluate("document.activeElement.name"))
        assert names == ["skeleton", "boxes", "ids", "smoothed", "black"]
        assert not tab.get_by_label("On black").is_checked()
        tab.keyboard.press("Space")
        assert tab.get_by_label("On black").is_checked()
    context.close()
