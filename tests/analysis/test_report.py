import base64
import io
import json
import re
import shlex
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

from siamusic_fast import config as settings
from siamusic_fast.analysis.report import page, track_map
from siamusic_fast.analysis.report.page import report
from siamusic_fast.analysis.report.sound import clips, opus
from siamusic_fast.analysis.report.track_map import MappedTrack, TrackMap
from siamusic_fast.cli import main
from siamusic_fast.config import Architecture, PretrainConfig
from siamusic_fast.errors import ConfigError, DataError
from siamusic_fast.evaluation import evaluate, probe
from siamusic_fast.evaluation.evaluate import EvaluateResult
from siamusic_fast.evaluation.intervals import Difference
from siamusic_fast.evaluation.measures import compared
from siamusic_fast.evaluation.probe import ProbeResult
from siamusic_fast.evaluation.scores import Scores, scores
from siamusic_fast.models.run_files import new_folder, save_json
from siamusic_fast.pipelines.tracks import open_tracks
from siamusic_fast.shards.manifest import ShardSet
from siamusic_fast.shards.tables import read_tracks
from tests.analysis.browser import browser
from tests.conftest import GENRES
from tests.runs import FRONTEND, MEL, save_run

HOSTILE = '</script><img src="https://example.org/x">\N{RIGHT-TO-LEFT OVERRIDE}"\'&amp; \N{MUSICAL NOTE}'


AS_THE_PAPER = {"aug": "image", "crops": "same"}


def save_logged_run(folder: Path, data: Path, **options: Any) -> Path:
    """Write a run that has settings and a log, besides an encoder that has learnt nothing."""
    save_run(folder, **options)
    config = PretrainConfig(**{"mel": MEL, "backbone": "resnet18", **AS_THE_PAPER, **options})
    values = {**settings.dump(config), "data": str(data), "processes": 1}
    (folder / "config.json").write_text(json.dumps(values))
    lines = (
        {"step": 2 * epoch, "epoch": epoch, "lr": 1e-3, "loss": -epoch / 4, "collapse": 0.02, "waiting": 0.25}
        | {"pairs_per_second": 30.0 + epoch, "knn": 0.25 * epoch}
        for epoch in (1, 2, 3)
    )
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def some_scores(seed: int) -> Scores:
    """Scores of a classifier of `GENRES` that guesses."""
    labels, predictions = torch.randint(0, 3, (2, 40), generator=torch.Generator().manual_seed(seed))
    return scores(predictions, labels, GENRES)


@pytest.fixture(scope="module")
def run(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose classifier was scored and whose encoder was probed."""
    folder = save_logged_run(tmp_path_factory.mktemp("report") / "first", shard_set.folder)
    about: dict[str, Any] = {"data": "fma_medium", "pretrained_on": ("training",), "target": "class"}
    evaluated = EvaluateResult(folder=folder / "finetune/evaluate", scores=some_scores(0), **about)
    rng = np.random.default_rng(0)
    names = ("pretrained", "random", "initial", "log-mels", "MFCCs")
    measures = tuple(
        compared(name, title, {one: (rng.random(), rng.random(50)) for one in names}, ["a", "b"], 2)
        for name, title in (("knn", "kNN"), ("linear", "linear"), ("same_artist", "artist mAP"))
    )
    about |= {"folder": folder / "probe", "architecture": Architecture("resnet18"), "checkpoint": "last"}
    about |= {"scored_on": "test", "tracks": 2, "chance": 0.5, "epoch": 3}
    about |= {"scored_splits": ("test",), "init": None}
    probed = ProbeResult(**about, probes={}, measures=measures, label_curve=())
    for folder_, values in (
        (evaluated.folder, evaluate.as_json(evaluated)),
        (probed.folder, probe.as_json(probed)),
    ):
        folder_.mkdir(parents=True)
        save_json(folder_ / "results.json", values)
    return folder


@pytest.fixture(scope="module")
def reported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report([run], out=tmp_path_factory.mktemp("page") / "page.html", backend="torch").path


class _Elements(HTMLParser):
    """Collects the elements of a page, and its text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.scripts: dict[str, str] = {}
        self._inside: dict[str, str | None] | None = None
        self.feed(text)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self._inside = dict(attributes) if tag in ("script", "style") else None

    def handle_endtag(self, tag: str) -> None:
        self._inside = None

    def handle_data(self, data: str) -> None:
        if self._inside is None:
            self.words.append(data)
        elif name := self._inside.get("id") or self._inside.get("class"):
            self.scripts[name] = data


def elements(path: Path) -> _Elements:
    return _Elements(path.read_text(encoding="utf-8"))


def samples(uri: str | None) -> tuple[np.ndarray[Any, Any], int]:
    """Return the audio in a data URI, and its sample rate."""
    kind, _, content = (uri or "").partition(",")
    assert kind == "data:audio/ogg;base64"
    audio, rate = soundfile.read(io.BytesIO(base64.b64decode(content)))
    return audio, rate


def test_a_page_has_scores_with_intervals_and_says_what_its_charts_show(run: Path, reported: Path) -> None:
    text = elements(reported).text
    found = json.loads((run / "finetune/evaluate/results.json").read_text())
    low, high = found["intervals"]["accuracy"]
    assert f"Fine-tuned classifier {found['accuracy']:.1%} {low:.1%} to {high:.1%}" in text
    probes = json.loads((run / "probe/results.json").read_text())
    for one in probes["measures"]:
        (low, high), strongest = one["intervals"]["pretrained"], one["strongest"]
        difference = Difference(**one["difference"])
        assert (
            f"{one['title']} {one['values']['pretrained']:.1%} {low:.1%} to {high:.1%} {strongest} "
            f"{one['values'][strongest]:.1%} {difference.words}"
        ) in text
    for one, row in zip(found["classes"], found["confusion"], strict=True):
        assert f"{one['name']} {one['tracks']} {one['recall']:.1%}" in text
        assert f"{one['name']} {' '.join(map(str, row))}" in text
    assert "-0.25 at first, -0.75 at the end; lowest -0.75 in epoch 3, highest -0.25 in epoch 1." in text
    assert "The dashed line is chance: 33.3%." in text  # two validation tracks of each of three genres
    assert "25.0% throughout." in text
    assert "backbone resnet18 Network that encodes a spectrogram." in text
    assert "3 of 100 epochs" in text


def test_every_labelled_test_track_is_on_the_map_with_its_sound(shard_set: ShardSet, reported: Path) -> None:
    found = elements(reported)
    tracks = json.loads(found.scripts["tracks"])
    listed = [one for one in read_tracks(shard_set.folder) if one.split == "test" and one.genre]
    assert [(t["name"], t["path"], t["genre"]) for t in tracks] == [
        (one.track_id, one.path, one.genre) for one in listed
    ]
    for place, track in enumerate(tracks):
        audio, rate = samples(track["clip"])
        assert len(audio) == pytest.approx(3 * rate, abs=rate / 50)
        assert np.abs(audio).max() > 0.05
        cosines = [cosine for _, cosine in track["neighbors"]]
        assert cosines == sorted(cosines, reverse=True)
        assert place not in [number for number, _ in track["neighbors"]]
        assert len(cosines) == min(5, len(tracks) - 1)
    options = [attributes["value"] for tag, attributes in found.tags if tag == "option"]
    assert sorted(map(int, filter(None, options))) == list(range(len(tracks)))


def test_views_are_shown_and_the_crop_is_heard_once(reported: Path) -> None:
    tags = elements(reported).tags
    pictures = [a for tag, a in tags if tag == "img"]
    heard = [a for tag, a in tags if tag == "audio" and a.get("src")]
    assert len(pictures) == 3 * page.GALLERY_TRACKS
    assert all(a["alt"] and str(a["src"]).startswith("data:image/png;base64,") for a in pictures)
    assert len(heard) == page.GALLERY_TRACKS  # the recipe image changes nothing that can be heard
    audio, rate = samples(heard[0]["src"])
    assert len(audio) == pytest.approx(MEL.seconds * rate, abs=rate / 50)


def test_views_that_sound_differently_have_a_sound_each(shard_set: ShardSet, tmp_path: Path) -> None:
    run = save_logged_run(tmp_path / "audio", shard_set.folder, aug="pitch(p=1)")
    found = elements(report([run], backend="torch").path)
    assert sum(tag == "audio" and "src" in a for tag, a in found.tags) == 3 * page.GALLERY_TRACKS


def test_a_page_asks_for_nothing_outside_of_it(reported: Path) -> None:
    found = elements(reported)
    addresses = [a.get(name) or "" for _, a in found.tags for name in ("src", "href")]
    assert all(address.startswith(("data:", "#")) for address in addresses if address)
    (policy,) = (a["content"] for _, a in found.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert str(policy).startswith("default-src 'none';")


def test_what_is_missing_is_said_with_a_command_that_makes_it(shard_set: ShardSet, tmp_path: Path) -> None:
    run = save_logged_run(tmp_path / "it's new", shard_set.folder)
    result = report([run], backend="torch")
    assert result.path == run / "report.html"
    commands = [re.findall(r"run `(.*)`\.$", note)[0] for note in result.notes]
    assert [shlex.split(command)[1:] for command in commands] == [["finetune", str(run)], ["probe", str(run)]]
    assert "Nothing has been scored yet." in elements(result.path).text
    new_folder(run, force=True)  # a page does not keep a run from being replaced
    assert not result.path.exists()


@pytest.mark.parametrize("gone", ["data", "checkpoint"])
def test_without_shards_or_encoder_the_page_says_why(shard_set: ShardSet, tmp_path: Path, gone: str) -> None:
    run = save_logged_run(tmp_path / "run", tmp_path / "gone" if gone == "data" else shard_set.folder)
    if gone == "checkpoint":
        (run / "checkpoint.pt").unlink()
    result = report([run])
    why = "no shards" if gone == "data" else "checkpoint"
    assert result.tracks == 0
    assert any(why in note for note in result.notes)
    text = elements(result.path).text
    assert "There is no map on this page: the list at its top says why." in text
    assert "lowest -0.75 in epoch 3" in text
    with pytest.raises(ConfigError, match="'newest' is unknown"):
        report([run], checkpoint="newest")


def test_several_runs_are_laid_over_one_another(run: Path, shard_set: ShardSet, tmp_path: Path) -> None:
    other = save_logged_run(tmp_path / "second", shard_set.folder, lr=0.5, aug="none")
    result = report([run, other, run], out=tmp_path / "both.html")
    text = elements(result.path).text
    assert "2 runs beside one another" in text
    assert "Setting first second aug image none lr 0.001 0.5 " in text
    assert "first: -0.25 at first" in text
    assert "second: -0.25 at first" in text
    assert "first Fine-tuned classifier" in text
    assert "Map" not in text


def damage(run: Path, what: str) -> None:
    """Make something of `run` unusable."""
    if what == "not a run":
        (run / "config.json").unlink()
    elif what == "no log":
        (run / "metrics.jsonl").write_text("")
    elif what == "log":
        (run / "metrics.jsonl").write_text('{"step": 1, "epoch": "<b>"}\n')
    elif what == "classifier":
        values = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**values, "run": "runs/first"}))
    else:
        (run / "probe").mkdir()
        (run / "probe/results.json").write_text('{"measures": [{"name": "knn", "values": {}}]}')


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("not a run", r"config.json cannot be read .*: give the folder of a run"),
        ("no log", r"has logged no figures yet: .*`siamusic-fast pretrain --resume "),
        ("log", r"metrics.jsonl is damaged \(it holds more than numbers\)"),
        ("classifier", r"is the folder of a classifier: give that of its run, runs/first"),
        ("results", r"results.json is damaged .*: `siamusic-fast probe .*` writes it anew"),
    ],
)
def test_what_is_no_usable_run_is_one_error_with_a_remedy(tmp_path: Path, what: str, message: str) -> None:
    run = save_logged_run(tmp_path / "run", tmp_path)
    damage(run, what)
    with pytest.raises(DataError, match=message):
        report([run])
    assert not (run / "report.html").exists()


def test_a_file_is_replaced_only_if_that_is_asked_for(tmp_path: Path) -> None:
    run, out = save_logged_run(tmp_path / "run", tmp_path), tmp_path / "mine.html"
    out.write_text("mine")
    words = ["report", str(run), "--out", str(out), "--device", "cpu"]
    answer = CliRunner().invoke(main, words)
    assert answer.exit_code == 1
    assert answer.stderr.startswith(f"error: {out} exists: choose another file")
    assert out.read_text() == "mine"
    answer = CliRunner().invoke(main, [*words, "--force", "--json"])
    assert json.loads(answer.stdout)["page"] == str(out)
    assert out.read_text().startswith("<!DOCTYPE html>")
    answer = CliRunner().invoke(main, [*words, "--force"])
    assert out.resolve().as_uri() in answer.stdout
    assert CliRunner().invoke(main, ["report", str(tmp_path / "none")]).stderr.startswith("error: no run ")


def test_the_map_is_the_same_each_time_and_takes_features_that_are_all_equal() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((30, 16)).astype(np.float32)
    features[15:] += 8
    first, method = track_map._in_two_dimensions(features)
    assert method == "t-SNE"
    np.testing.assert_array_equal(first, track_map._in_two_dimensions(features)[0])
    gap = np.linalg.norm(first[:15].mean(axis=0) - first[15:].mean(axis=0))
    assert gap > 2 * first[:15].std()
    for equal in (np.ones((30, 4), np.float32), np.ones((1, 4), np.float32)):
        assert np.isfinite(track_map._in_two_dimensions(equal)[0]).all()


def test_neighbors_are_those_with_the_highest_cosine() -> None:
    directions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    first, second, third = track_map._neighbors(directions)
    assert [number for number, _ in first] == [2, 1]
    assert [number for number, _ in second] == [2, 0]
    np.testing.assert_allclose([cosine for _, cosine in third], [0.8, 0.6], atol=1e-6)


def test_a_large_split_is_thinned_out_and_the_page_says_so(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(track_map, "MAX_TRACKS", 2)
    result = report([run], out=tmp_path / "page.html", backend="torch")
    assert result.tracks == 2
    assert re.search(r"Shown are 2 of \d tracks, evenly chosen\.", elements(result.path).text)


def test_a_clip_is_the_middle_of_its_track(shard_set: ShardSet) -> None:
    tracks = open_tracks(shard_set, ["test"], target="class")
    name, length = tracks.names[1], int(tracks.samples[1])
    (whole,) = clips(shard_set, "test", [name], FRONTEND, 60.0)
    (middle,) = clips(shard_set, "test", [name], FRONTEND, 1.0)
    assert len(whole) == length
    start = (length - 22_050) // 2
    np.testing.assert_array_equal(middle, whole[start : start + 22_050])


def test_opus_keeps_pitch_and_length() -> None:
    tone = (8_000 * np.sin(2 * np.pi * 440 * np.arange(44_100) / 22_050)).astype(np.int16)
    audio, rate = samples(opus(tone, 22_050))
    assert len(audio) == pytest.approx(2 * rate, abs=rate / 50)
    assert np.abs(np.fft.rfft(audio[:rate])).argmax() == 440


def synthetic_map(count: int, seed: int = 0) -> TrackMap:
    """A map of noise with names that try to break out of the page."""
    rng = np.random.default_rng(seed)
    noise = (4_000 * rng.standard_normal((8, 66_150))).clip(-32_768, 32_767).astype(np.int16)
    tracks = (
        MappedTrack(
            name=f"{HOSTILE} {place}",
            path=f"folder/{HOSTILE}.mp3",
            genre=("Electronic", "Folk", "Rock")[place % 3],
            x=float(np.cos(place)),
            y=float(np.sin(place)),
            neighbors=tuple((other, 0.5) for other in range(5) if other != place),
            clip=opus(np.roll(noise[place % 8], place), 22_050),
        )
        for place in range(count)
    )
    return TrackMap(tracks=tuple(tracks), of=count, method="t-SNE")


@pytest.fixture(scope="module")
def hostile(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose names of run and tracks try to break out of it."""
    folder = tmp_path_factory.mktemp("hostile")
    run = save_logged_run(folder / HOSTILE.replace("/", "_"), shard_set.folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "track_map", lambda *_, **__: synthetic_map(12))
        return report([run], out=folder / "page.html").path


def test_names_from_files_are_text_and_nothing_else(hostile: Path) -> None:
    found = elements(hostile)
    assert not any("example.org" in str(a.get("src")) for _, a in found.tags)
    assert json.loads(found.scripts["tracks"])[0]["name"] == f"{HOSTILE} 0"
    assert HOSTILE.replace("/", "_") in found.text
    assert not found.text.count("&amp;amp;")


@pytest.mark.slow
def test_a_page_of_800_tracks_takes_at_most_10_megabytes(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(page, "track_map", lambda *_, **__: synthetic_map(track_map.MAX_TRACKS))
    assert report([save_logged_run(tmp_path / "run", shard_set.folder)]).size < 10_000_000


def wait_for(condition: Any, seconds: float = 10.0) -> Any:
    """Return what `condition` returns as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def requests(chrome: Any) -> Iterator[str]:
    """Yield the addresses that a browser asked for."""
    for entry in chrome.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            yield message["params"]["request"]["url"]


_PLACES = """
const view = [...Bokeh.index].find(view => view.model?.renderers?.some(one => one.name === "tracks"))
view.el.scrollIntoView({block: "center"})
const box = view.el.getBoundingClientRect(), {x, y} = view.model.renderers[0].data_source.data
const place = [view.frame.x_scale.compute(x[arguments[0]]), view.frame.y_scale.compute(y[arguments[0]])]
return [box.left + place[0], box.top + place[1]]
"""
"""Returns the place of a point of the map in the window, in pixels."""
_PLAYED = "return document.getElementById('player').currentTime"
_TOOLTIPS = """
const found = []
const search = root => root.querySelectorAll("*").forEach(one => {
  if (one.shadowRoot) search(one.shadowRoot)
  if (one.classList.contains("bk-tooltip-row-value")) found.push(one.textContent)
})
search(document)
return found
"""


def open_page(chrome: Any, path: Path) -> None:
    chrome.get(path.resolve().as_uri())
    wait_for(lambda: chrome.execute_script("return document.documentElement.dataset.ready"), 20)


def test_the_map_answers_hover_and_click_and_nothing_leaves_the_page(hostile: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile") as chrome:
        from selenium.webdriver.common.action_chains import ActionChains

        open_page(chrome, hostile)
        x, y = map(round, chrome.execute_script(_PLACES, 7))
        mouse = ActionChains(chrome, duration=50)
        mouse.w3c_actions.pointer_action.move_to_location(x, y)  # type: ignore[no-untyped-call]
        mouse.perform()
        told = wait_for(lambda: chrome.execute_script(_TOOLTIPS))
        assert [words.strip() for words in told] == [f"{HOSTILE} 7", "Folk"]
        mouse.click().perform()
        wait_for(lambda: chrome.execute_script("return document.getElementById('track').value") == "7")
        assert wait_for(lambda: chrome.execute_script(_PLAYED)) <= 3.1
        neighbors = chrome.execute_script("return document.getElementById('neighbors').innerText")
        assert f"{HOSTILE} 0" in neighbors
        assert [line for line in chrome.get_log("browser") if line["level"] != "INFO"] == []
        schemes = {address.partition(":")[0] for address in requests(chrome)}
        assert "file" in schemes <= {"chrome", "file", "data", "blob"}


def test_on_a_phone_nothing_is_cut_off_and_keys_choose_a_track(hostile: Path, tmp_path: Path) -> None:
    with browser(tmp_path / "profile", width=375) as chrome:
        from selenium.webdriver.common.keys import Keys

        media = [{"name": "prefers-color-scheme", "value": "dark"}]
        chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        open_page(chrome, hostile)
        assert chrome.execute_script("return document.documentElement.scrollWidth") == 375
        chrome.find_element("id", "track").send_keys(Keys.DOWN)
        wait_for(lambda: chrome.execute_script("return document.getElementById('track').value") != "0")
        assert wait_for(lambda: chrome.execute_script(_PLAYED))
        button = chrome.find_element("css selector", "#neighbors button")
        assert HOSTILE in button.text
        button.send_keys(Keys.ENTER)
        wait_for(lambda: chrome.execute_script("return !document.getElementById('player').paused"))
        assert [line for line in chrome.get_log("browser") if line["level"] != "INFO"] == []
