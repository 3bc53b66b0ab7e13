"""The gallery in a real browser, from file://, where there is one: what it shows, in which order, and nothing run."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlencode

import pytest

from dive_fast.report.config import ReportConfig
from dive_fast.report.gallery import write_gallery
from tests.support.dataset import add_scores, change_records, drop, make_dataset, raw_records

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = """<img src=x onerror="document.body.dataset.evil='yes'">"""

pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium to open the gallery in")]


def page(folder: Path, **state: object) -> str:
    """The page's HTML after it has loaded with the state that stands in its address."""
    options = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-dev-shm-usage"
    profile = f"--user-data-dir={folder.parent / 'profile'}"
    address = f"{(folder / 'index.html').as_uri()}#{urlencode(state)}"
    command = [str(BROWSER), *options.split(), profile, "--virtual-time-budget=20000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


class Seen(HTMLParser):
    """What a reader of the page meets: pairs in order, images, scripts, texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        buttons = (given for tag, given in self.tags if tag == "button" and "data-pair" in given)
        self.pairs = [int(given["data-pair"] or -1) for given in buttons]
        self.images = [given for tag, given in self.tags if tag == "img"]
        self.scripts = [given.get("src") for tag, given in self.tags if tag == "script"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 pairs; infrared scores fall and rise again, each value twice, without any for pairs 5 and 70; pair 3 is dropped."""
    root = tmp_path_factory.mktemp("browser")
    dataset = make_dataset(root / "a set#1", people=6, pairs=6)
    change_records(dataset, lambda r: r["spec"].update(pid=EVIL) if r["spec"]["pid"] == "0002" else None)
    add_scores(dataset, lambda n: None if n in (5, 70) else {"ir": {"identity": abs(n - 35.5) - 20, EVIL: 1.0}})
    drop(dataset, [(raw_records(dataset)[3]["spec"]["pair_id"], [f"{EVIL} 0.1 < 0.5"])])
    write_gallery(dataset, root / "out", ReportConfig(workers=1), problems=[EVIL], progress=False)
    return root / "out"


def test_worst_first_with_a_pair_open(folder):
    text = page(folder, score="ir/identity", order="worst", pair=13)
    seen = Seen(text)
    keys = {n: abs(n - 35.5) - 20 for n in range(72) if n not in (5, 70)}
    order = [*sorted(keys, key=lambda n: (keys[n], n)), 5, 70]  # nobody said that high is bad: the lowest come first
    assert seen.pairs == order[:60]
    assert re.search(r'data-ready="yes"', text)
    assert "1\u201360 of 72" in seen.texts
    # The large view: the record with all of its seed's digits, and both files of the dataset.
    record = raw_records(folder.parent / "a set#1")[13]
    assert str(record["spec"]["seed"]) in seen.texts
    assert record["sha256"]["ir"] in seen.texts
    sources = [image["src"] for image in seen.images]
    assert {f"../a%20set%231/{record['files'][side]}" for side in ("rgb", "ir")} <= set(sources)
    # Names are text wherever they stand, every image says what it shows, and nothing came from elsewhere.
    assert "data-evil" not in text
    assert not [given for tag, given in seen.tags if "onerror" in given or given.get("src") == "x"]
    assert EVIL in seen.texts
    assert all(image.get("alt") for image in seen.images)
    assert seen.scripts == ["gallery.js"]
    assert not [src for src in sources if src is None or "://" in src or src.startswith("//")]


def test_filters_and_the_last_page(folder):
    dropped = Seen(page(folder, status=f"reason/{EVIL}"))
    assert dropped.pairs == [3]
    several = Seen(page(folder, pid=f"0001, {EVIL}", camera="cam6", score="ir/identity", **{"from": "0", "to": "9.5"}))
    wanted = [n for n in range(24) if n % 2 and n != 5 and 0 <= abs(n - 35.5) - 20 <= 9.5]
    assert several.pairs == wanted
    assert f"1\u2013{len(wanted)} of {len(wanted)} that match" in several.texts
    last = Seen(page(folder, page=99))
    assert last.pairs == list(range(60, 72))
