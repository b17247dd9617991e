"""From a user's word for weights to a file and a model: names, mirrors, URLs, what is cached."""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nets import build_net
from nets.checkpoints import load_checkpoint, load_model, save_model
from nets.named import NAMED
from nets.skeletons import COCO, CROWDPOSE
from nets.zoo.command import main
from nets.zoo.download import hash_of
from nets.zoo.published import PUBLISHED, published_with
from nets.zoo.weights_files import cached_file, shown_weights, weights_file
from tests.support.file_server import FileServer, file_server
from tests.support.published_files import TINY, publish, published_bytes, small_model
from tests.support.random_model import random_model

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.timeout(120)]

WHOLE = [name for name, entry in PUBLISHED.items() if not entry.backbone_only]
BACKBONES = [name for name, entry in PUBLISHED.items() if entry.backbone_only]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache" / "posestream" / "weights"


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """Has nothing yet."""
    with file_server() as server:
        monkeypatch.setenv("POSESTREAM_WEIGHTS_URL", server.url)
        yield server


# --- the table -----------------------------------------------------------------------------------


def test_the_table_says_of_every_file_what_its_name_says() -> None:
    for name, entry in PUBLISHED.items():
        match = re.search(r"hrnet_?w?(32|48).*?-([0-9a-f]{8})(?:_20\d{6})?\.pth$", entry.file)
        assert match is not None, name
        assert f"w{match[1]}" in name
        assert entry.sha256 == match[2]
        assert ("crowdpose" in entry.file) == (entry.data == "CrowdPose")
        size = re.search(r"_(\d+)x\1-", entry.file)
        assert int(size[1] if size else 224) == entry.input_size
        assert published_with(entry.sha256 + "0" * 56) is entry
    assert len({entry.file for entry in PUBLISHED.values()}) == len(PUBLISHED)
    assert published_with("0" * 64) is None


@pytest.mark.parametrize("name", WHOLE)
def test_the_stated_size_is_that_of_the_net(name: str) -> None:
    with torch.device("meta"):
        net = build_net(re.sub("_640|_crowdpose", "", name), 17)
    num_bytes = sum(v.numel() * v.element_size() for v in net.state_dict().values())
    assert PUBLISHED[name].megabytes == round(num_bytes / 1e6)


# --- names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_a_name_is_a_model(
    name: str, mirror: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    mirror.files |= publish(monkeypatch, name)
    model, expected = load_model(name), small_model(name)
    entry = PUBLISHED[name]
    assert model.skeleton is (CROWDPOSE if entry.data == "CrowdPose" else COCO)
    assert model.input_size == entry.input_size
    assert model.decode == dict(entry.decode)
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        got, wanted = model.net(images), expected.net(images)
    assert all(map(torch.equal, got.heatmaps, wanted.heatmaps))
    assert torch.equal(got.tags, wanted.tags)
    assert (cache / entry.file).read_bytes() == published_bytes(name), "kept as it came"
    # By path, whatever it is called, the same file is the same model.
    (cache / "mine.pth").write_bytes(published_bytes(name))
    by_path = load_model(cache / "mine.pth")
    assert replace(by_path, net=model.net) == model


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_starts_a_training_and_finds_nobody(
    name: str, mirror: FileServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mirror.files |= publish(monkeypatch, name)
    said = rf"{name} is a backbone without heads .* init_part: matching\), .* higher_hrnet_w32,"
    with pytest.raises(ValueError, match=said):
        load_model(name)
    assert mirror.requests == [], "nobody waits for a download that is of no use"
    net, expected = build_net("higher_hrnet_w32", **TINY), small_model(name).net
    caplog.set_level(logging.INFO)
    load_checkpoint(net, name, only_matching=True)
    backbone = expected.get_submodule("backbone").state_dict()
    for key, value in net.get_submodule("backbone").state_dict().items():
        assert torch.equal(value, backbone[key]), key
    assert "left over: incre_modules" in caplog.text
    with pytest.raises(ValueError, match="is a backbone without heads"):
        load_model(cached_file(name))


def test_plain_hrnets_of_both_widths_have_names() -> None:
    assert {"hrnet_w32", "hrnet_w48"} <= NAMED.keys()


def test_crowdpose_by_name_is_matched_by_index_and_a_user_may_choose(
    mirror: FileServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    mirror.files |= publish(monkeypatch, "higher_hrnet_w32_crowdpose")
    model = load_model("higher_hrnet_w32_crowdpose")
    assert model.decode == {"one_step": True, "matching_order": "index"}
    save_model(tmp_path / "ours.safetensors", model)  # and its own file remembers
    assert load_model(tmp_path / "ours.safetensors").decode == model.decode


def test_what_is_cached_needs_no_network_and_no_writing(
    mirror: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    mirror.files |= publish(monkeypatch, "hrnet_w32")
    first = weights_file("hrnet_w32")
    monkeypatch.setenv("POSESTREAM_WEIGHTS_URL", "https://weights.invalid")
    lock = first.with_name(f"{first.name}.lock")
    lock.unlink()
    lock.mkdir()  # whoever tried to lock would fail, root too
    assert weights_file("hrnet_w32") == first == cached_file("hrnet_w32")
    assert len(mirror.requests) == 1


def test_a_file_put_there_by_hand_is_taken_and_checked(
    monkeypatch: pytest.MonkeyPatch, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("POSESTREAM_WEIGHTS_URL", "https://weights.invalid")
    (content,) = publish(monkeypatch, "hrnet_w32").values()
    with pytest.raises(ValueError, match=r"no connection to weights\.invalid .* put it at") as said:
        weights_file("hrnet_w32")
    place = Path(str(said.value).rpartition("put it at ")[2])
    assert place.parent == cache
    place.write_bytes(content[:-1])
    with pytest.raises(ValueError, match="put it at"):
        load_model("hrnet_w32")
    assert f"is damaged or another file (its sha256 begins with {hash_of(place)[:8]}" in caplog.text
    assert place.read_bytes() == content[:-1], "nobody's file is deleted"
    place.write_bytes(content)
    assert load_model("hrnet_w32").skeleton is COCO


def test_a_damaged_file_is_downloaded_again(
    mirror: FileServer, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    mirror.files |= publish(monkeypatch, "hrnet_w32")
    file = weights_file("hrnet_w32")
    damaged = bytearray(file.read_bytes())
    damaged[1000] ^= 1
    file.write_bytes(damaged)
    assert weights_file("hrnet_w32").read_bytes() == published_bytes("hrnet_w32")


def test_a_mirror_may_have_all_files_in_one_folder(
    mirror: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = publish(monkeypatch, "hrnet_w32", "hrnet_w48")
    mirror.files |= {f"models/{path.rpartition('/')[2]}": data for path, data in files.items()}
    monkeypatch.setenv("POSESTREAM_WEIGHTS_URL", f"{mirror.url}/models/?key=secret")
    assert weights_file("hrnet_w32").is_file()
    assert [request.path.partition("?") for request in mirror.requests] == [
        (f"/models/{PUBLISHED['hrnet_w32'].path}", "?", "key=secret"),
        (f"/models/{PUBLISHED['hrnet_w32'].file}", "?", "key=secret"),
    ]
    mirror.files.clear()
    with pytest.raises(ValueError, match=r"there is no such file \(404 .* put it at") as caught:
        weights_file("hrnet_w48")
    assert "secret" not in str(caught.value)


def test_the_publisher_is_asked_at_its_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a proxy of the test: whatever is asked for is served as the small file."""
    monkeypatch.delenv("POSESTREAM_WEIGHTS_URL", raising=False)
    monkeypatch.setattr("nets.zoo.weights_files.SERVER", "http://download.openmmlab.invalid/")
    (item,) = publish(monkeypatch, "higher_hrnet_w32").items()
    with file_server() as proxy:
        proxy.files[item[0]] = item[1]
        monkeypatch.setenv("http_proxy", proxy.url)
        weights_file("higher_hrnet_w32")
    assert [request.path for request in proxy.requests] == [
        "http://download.openmmlab.invalid/mmpose/bottom_up/"
        "higher_hrnet32_coco_512x512-8ae85183_20200713.pth"
    ]


@pytest.mark.parametrize("form", [str, Path.as_uri])
def test_a_folder_takes_the_place_of_the_server(
    form: Callable[[Path], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path
) -> None:
    ((path, content),) = publish(monkeypatch, "hrnet_w32").items()
    folder = tmp_path / "our weights"
    folder.mkdir()
    monkeypatch.setenv("POSESTREAM_WEIGHTS_URL", form(folder))
    with pytest.raises(ValueError, match=r"there is no hrnet_w32_coco.*\.pth in .*; put it there"):
        weights_file("hrnet_w32")
    flat, deep = folder / Path(path).name, folder / path
    flat.write_bytes(content)
    assert weights_file("hrnet_w32") == flat
    deep.parent.mkdir(parents=True)
    deep.write_bytes(b"another")
    with pytest.raises(ValueError, match="is damaged or another file: its sha256 begins with"):
        weights_file("hrnet_w32")
    assert not cache.exists(), "used where they lie"


def test_a_place_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSESTREAM_WEIGHTS_URL", "ftp://host/folder")
    with pytest.raises(
        ValueError, match=r"POSESTREAM_WEIGHTS_URL is ftp://host/folder, which is no"
    ):
        weights_file("hrnet_w32")


# --- words that are no name ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("higher_hrnet_w23", "did you mean the published higher_hrnet_w32?"),
        ("higher-hrnet-w48", "did you mean the published higher_hrnet_w48?"),
        ("imagenet_hrnet_w32.pth", "did you mean the published imagenet_hrnet_w32?"),
        ("runs/mine/best.safetensors", "check the path"),
    ],
)
def test_the_nearest_name_is_suggested(word: str, meant: str) -> None:
    with pytest.raises(ValueError, match=r"there is no weights file") as caught:
        load_model(word)
    assert f"{word}; {meant} (python -m nets.zoo lists" in str(caught.value)


def test_a_path_is_a_file_and_a_published_name_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: FileServer
) -> None:
    mirror.files |= publish(monkeypatch, "hrnet_w32")
    monkeypatch.chdir(tmp_path)
    Path("hrnet_w32").write_bytes(b"a file of that name")
    assert weights_file("hrnet_w32") == cached_file("hrnet_w32")
    assert weights_file("./hrnet_w32") == Path("hrnet_w32")


# --- URLs ----------------------------------------------------------------------------------------


def test_a_url_is_weights_too(
    mirror: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = random_model("higher_hrnet_w32", seed=1, **TINY)
    save_model(tmp_path / "mine.safetensors", made)
    mirror.files["a/mine.safetensors"] = (tmp_path / "mine.safetensors").read_bytes()
    url = f"{mirror.url}/a/mine.safetensors"
    caplog.set_level(logging.INFO)
    for _ in range(2):
        assert load_model(url).name == "higher_hrnet_w32"
    assert len(mirror.requests) == 1
    assert "weights downloaded before" in caplog.text
    sha256 = hash_of(tmp_path / "mine.safetensors")
    assert weights_file(f"{url}#sha256={sha256}") == weights_file(f"{url}#SHA256={sha256[:8]}")
    with pytest.raises(ValueError, match="expected 0123456789"):
        weights_file(f"{url}#sha256=0123456789")
    assert weights_file(url).read_bytes() == mirror.files["a/mine.safetensors"]
    # The same name elsewhere is another file.
    mirror.files["b/mine.safetensors"] = b"other"
    assert weights_file(f"{mirror.url}/b/mine.safetensors").read_bytes() == b"other"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://host/a.pth#main", r"after # only sha256= and 8 to 64 hex .* got 'main'"),
        ("https://host/a.pth#sha256=123", r"got 'sha256=123'"),
        ("http://host/a.pth", r"anybody on the way can change the file; take https"),
        ("http://host/a.pth#sha256=01234567", r"all 64 digits"),
    ],
)
def test_urls_that_are_not_taken(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        weights_file(url)


def test_secrets_of_a_url_are_not_shown() -> None:
    assert shown_weights("https://me:pw@host/a.pth?t=1") == "https://host/a.pth?..."
    assert shown_weights(Path("a/b.pth")) == "a/b.pth"


# --- the command ---------------------------------------------------------------------------------


def test_the_list_can_be_read(
    mirror: FileServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror.files |= publish(monkeypatch)
    assert main(["get", "higher_hrnet_w32", f"{mirror.url}/{PUBLISHED['hrnet_w32'].path}"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert Path(first) == cached_file("higher_hrnet_w32")
    cached_file("hrnet_w48").write_bytes(b"damaged")
    cached_file("hrnet_w32").with_name(f"{PUBLISHED['hrnet_w32'].file}.part").write_bytes(b"begun")
    for arguments in ([], ["list"]):
        assert main(arguments) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines[: 1 + len(PUBLISHED)])) <= 80
        rows = {line.split()[0]: line.split() for line in lines[1 : 1 + len(PUBLISHED)]}
        assert list(rows) == list(PUBLISHED)
        assert rows["higher_hrnet_w32"][1:] == [
            "COCO", "512", ".677", "(.706)", "115", "Apache-2.0", "yes"
        ]  # fmt: skip
        assert rows["higher_hrnet_w32_crowdpose"][1:5] == ["CrowdPose", "512", ".655", "(.661)"]
        assert [rows[name][-1] for name in ("hrnet_w48", "hrnet_w32")] == ["bad", "part"]
        assert rows["imagenet_hrnet_w48"][-1] == "no"
        text = "\n".join(lines)
        assert f"from:    {mirror.url}" in text
        assert f"{Path(second).name} is here, too" in text


def test_get_fails_in_one_line(
    mirror: FileServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for word, said in (("higher_hrnet_32", "did you mean"), ("hrnet_w32", "404")):
        assert main(["get", word]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("weights: ")
        assert said in err
        assert len(err.splitlines()) == 1
