"""Pages about latents: what they hold, and that they work in Chromium."""

import base64
import json
import re
import shutil
import subprocess
from urllib.parse import unquote

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models

from mijax import dictionaries as d
from mijax import viz
from mijax._errors import ConfigError, OutputError, ShapeError
from mijax.data import Tokenizer

PIECES = ["</script><script>alert(1)</script>", "<b>", " the", "\n", "  ", "é日", " x"]
WORDS = PIECES + [f" word{i}" for i in range(93)]
TOKENS, BEFORE, WINDOW, BINS = 5000, 3, 6, 8
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
    *("--virtual-time-budget=4000", "--dump-dom"),
)
# A page is opened with steps appended to it; what they report takes its place.
WATCH = """<head><script>
window.wrong = [];
addEventListener("error", event => wrong.push(event.message));
</script>"""
DRIVE = """<script>
const wait = () => new Promise(done => setTimeout(done, 50));
const rows = () => [...document.querySelectorAll("#list a")];
const look = id => document.getElementById(id);
const over = item => {
  item.dispatchEvent(new PointerEvent("pointerover", { bubbles: true }));
  return look("tip").hidden ? null : look("tip").textContent;
};
(async () => {
  const report = {};
  try { await wait(); STEPS } catch (error) { wrong.push(String(error)); }
  report.wrong = wrong;
  report.loaded = performance.getEntriesByType("resource").length;
  document.body.replaceChildren();
  const out = document.body.appendChild(document.createElement("pre"));
  out.textContent = encodeURIComponent(JSON.stringify(report));
})();
</script></body>"""


@pytest.fixture(scope="module")
def tokenizer():
    words = models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<b>")
    return Tokenizer(Backend(words))


def excerpts(rng, largest, count):
    n = len(largest)
    tokens = rng.integers(0, 100, (n, count, WINDOW))
    values = rng.random((n, count, WINDOW)) * (rng.random((n, count, WINDOW)) < 0.4)
    values[:, :, BEFORE] = np.sort(rng.random((n, count)))[:, ::-1]
    values[:, 0, BEFORE] = 1
    tokens[:, :, 0], values[:, :, 0] = -1, np.nan
    values = values * largest[:, None, None]
    row, position = rng.integers(0, 70_000, (2, n, count))
    for dead in np.flatnonzero(largest == 0):
        row[dead] = position[dead] = tokens[dead] = -1
        values[dead] = np.nan
    whole = (a.astype(np.int32) for a in (row, position, tokens))
    return d.Excerpts(*whole, values.astype(np.float32), BEFORE)


def made(n):
    """Features of which latent 1 was never active."""
    rng = np.random.default_rng(0)
    largest = np.exp(rng.normal(size=n)).astype(np.float32)
    largest[1] = 0
    active = rng.integers(20, TOKENS, n).astype(np.int32) * (largest > 0)
    counts = np.zeros((n, BINS), np.int32)
    counts[:, :3] = active[:, None] // np.array([2, 3, 6])
    up, down = (rng.integers(0, 103, (n, 4)).astype(np.int32) for _ in range(2))
    up[-1, :2] = 0, 1  # pieces that look like HTML
    near = (np.arange(n)[:, None] + np.array([1, 2])) % n
    weights = np.sort(rng.random((n, 4)).astype(np.float32))
    return d.Features(
        latents=np.arange(n, dtype=np.int32),
        tokens=TOKENS,
        active=active,
        mean=largest / 3,
        largest=largest,
        counts=counts,
        reach=np.where(largest > 0, 2 * largest, 0).astype(np.float32),
        top=excerpts(rng, largest, 4),
        sampled=excerpts(rng, largest, 5),
        promoted=d.Ranked(up, weights[:, ::-1]),
        suppressed=d.Ranked(down, -weights[:, ::-1]),
        neighbours=d.Ranked(near.astype(np.int32), weights[:, :2]),
    )


@pytest.fixture(scope="module")
def features():
    return made(4000)


def read_data(page):
    block = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert block is not None
    return json.loads(block.group(1))


def unpacked(data, place):
    """What the page's program makes of a latent's bytes."""
    raw = base64.b64decode(data["examples"][place])
    if not raw:
        return None
    size = np.frombuffer(raw, "<u2", 2)
    n, kind, at = int(size.sum()), "<u4" if data["wide"] else "<u2", 4
    found = []
    for dtype, count in (
        *(("<u4", n), ("<u4", n)),
        *((kind, n * data["window"]), ("<u2", n * data["window"])),
    ):
        found.append(np.frombuffer(raw, dtype, count, at))
        at += found[-1].nbytes
    assert at == len(raw)
    return size, *found


def test_numbers_survive(features, tokenizer):
    data = read_data(viz.feature_pages(features, tokenizer=tokenizer))
    assert data["latents"] == list(range(4000))
    assert data["active"] == features.active.tolist()
    assert data["counts"][0] == features.counts[0, :3].tolist()
    assert data["counts"][1] == []
    assert unpacked(data, 1) is None
    ids = np.array([*data["ids"], -1])
    for place in (0, 2, 3999):
        found = unpacked(data, place)
        assert found is not None
        size, row, position, tokens, values = found
        assert size.tolist() == [4, 5]
        kinds = (features.top, features.sampled)
        both = [
            np.concatenate([getattr(kind, name)[place] for kind in kinds])
            for name in ("row", "position", "tokens", "values")
        ]
        np.testing.assert_array_equal(row, both[0])
        np.testing.assert_array_equal(position, both[1])
        local = np.where(tokens == 65535, -1, tokens.astype(int))
        np.testing.assert_array_equal(ids[local], both[2].ravel())
        largest = features.largest[place]
        shares = np.where(values == 65535, np.nan, values / 65534)
        np.testing.assert_allclose(
            shares * largest, both[3].ravel(), atol=largest / 1e5
        )
    # Ids that the tokenizer lacks have a name all the same.
    assert data["pieces"][data["ids"].index(102)] == "⟨102⟩"


def test_a_latent_takes_little_room(features, tokenizer):
    few = viz.feature_pages(jax.tree.map(lambda leaf: leaf[:2000], features))
    many = viz.feature_pages(features, tokenizer=tokenizer)
    examples = 9 * (8 + 4 * WINDOW) * 4 / 3
    assert (len(many) - len(few)) / 2000 < examples + 350


def test_many_pieces_are_numbered_in_four_bytes():
    some = made(3)
    wide = 70_000
    tokens = np.arange(3 * 4 * wide, dtype=np.int32).reshape(3, 4, wide)
    values = np.ones((3, 4, wide), np.float32)
    top = d.Excerpts(some.top.row, some.top.position, tokens, values, BEFORE)
    none = jax.tree.map(lambda leaf: leaf[:, :0], some.top)
    none = d.Excerpts(none.row, none.position, tokens[:, :0], values[:, :0], BEFORE)
    parts = {name: getattr(some, name) for name in some.__dataclass_fields__}
    some = d.Features(**(parts | {"top": top, "sampled": none, "promoted": None}))
    data = read_data(viz.feature_page(some, 0))
    found = unpacked(data, 0)
    assert data["wide"]
    assert found is not None
    np.testing.assert_array_equal(found[3], tokens[0].ravel())


@pytest.mark.parametrize("one", [False, True])
def test_pages_are_offline_and_escaped(features, tokenizer, one):
    title = "<i>&{{data}}"
    if one:
        page = viz.feature_page(features, 3999, tokenizer=tokenizer, title=title)
    else:
        page = viz.feature_pages(features, tokenizer=tokenizer, title=title)
    for outside in ("http", "src=", "url(", "@import", "<link", "fetch(", "import("):
        assert outside not in page
    assert page.count("</script>") == 2
    assert "<i>" not in page
    assert "<b>" in read_data(page)["pieces"]


def test_a_latent_that_was_not_gathered_is_refused(features):
    with pytest.raises(ShapeError, match="not gathered"):
        viz.feature_page(features, 4000)


def test_pages_are_saved_whole(tmp_path):
    path = viz.save_page("<!doctype html>é", tmp_path / "new" / "index.html")
    assert path.read_text("utf-8") == "<!doctype html>é"
    assert [file.name for file in path.parent.iterdir()] == ["index.html"]
    with pytest.raises(OutputError):
        viz.save_page("", path / "below")


def browse(page, steps, folder, at=""):
    """Opens a page in Chromium and returns what the steps report."""
    drive = DRIVE.replace("STEPS", steps)
    page = page.replace("<head>", WATCH, 1).replace("</body>", drive, 1)
    file = viz.save_page(page, folder / "page.html")
    profile = f"--user-data-dir={folder / 'profile'}"
    done = subprocess.run(
        [str(CHROMIUM), *FLAGS, profile, f"{file.as_uri()}{at}"],
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    out = re.search(r"<pre>(.*)</pre>", done.stdout)
    assert out is not None, done.stdout[:2000]
    report = json.loads(unquote(out[1]))
    assert (report.pop("wrong"), report.pop("loaded")) == ([], 0)
    return report


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed.")
def test_thousands_of_latents_in_chromium(features, tokenizer, tmp_path):
    steps = """
      report.first = document.querySelector("#nav h2").textContent;
      location.hash = "";
      await wait();
      report.rows = rows().length;
      report.count = look("found").textContent;
      const type = async text => {
        look("search").value = text;
        look("search").dispatchEvent(new Event("input"));
        await wait();
        return [look("found").textContent, rows()[0].getAttribute("href")];
      };
      report.number = await type("123");
      report.word = await type(" WORD42");
      await type("");
      document.querySelectorAll("#head button")[1].click();
      report.dense = rows()[0].getAttribute("href");
      look("list").scrollTop = 1e9;
      look("list").dispatchEvent(new Event("scroll"));
      await wait();
      report.last = rows().at(-1).getAttribute("href");
      report.more = rows().length;
      report.whole = look("list").scrollHeight;
      await type("123");
      rows()[0].click();
      await wait();
      report.head = document.querySelector("#nav h2").textContent;
      report.hash = location.hash;
      report.listed = !look("all").hidden;
      const tokens = [...document.querySelectorAll(".token")];
      report.tokens = tokens.length;
      const peak = tokens.find(token => token.classList.contains("peak"));
      report.peak = [peak.textContent, over(peak), peak.style.background !== ""];
      report.bar = over(document.querySelector("rect.hit"));
      report.bars = document.querySelectorAll("rect.bar").length;
      report.near = [...document.querySelectorAll("#facts a")]
        .map(a => a.getAttribute("href"));
      document.querySelector("#facts a").click();
      await wait();
      report.next = document.querySelector("#nav h2").textContent;
      location.hash = "#latent=1";
      await wait();
      report.dead = look("facts").textContent.includes("never, of 5,000 tokens");
      location.hash = "";
      await wait();
      report.back = !look("all").hidden && rows().length > 0;
    """
    page = viz.feature_pages(features, tokenizer=tokenizer)
    report = browse(page, steps, tmp_path, "#latent=5")
    assert report["first"] == "Latent 5"
    assert report["count"] == "4,000 of 4,000"
    assert 10 < report["rows"] < 100  # only what is on the screen
    assert 10 < report["more"] < 100
    assert report["whole"] == 4000 * 34
    assert report["number"][1] == "#latent=123"
    assert report["word"][0] == f"{with_word(features, 49):,} of 4,000"
    densest = np.lexsort((np.arange(4000), -features.active))
    assert report["dense"] == f"#latent={densest[0]}"
    assert report["last"] == f"#latent={densest[-1]}"
    assert (report["head"], report["hash"]) == ("Latent 123", "#latent=123")
    assert not report["listed"]
    assert report["tokens"] == 9 * (WINDOW - 1)
    index = int(features.top.tokens[123, 0, BEFORE])
    name = tokenizer.pieces([index])[0]
    text, tip, coloured = report["peak"]
    assert coloured
    assert text.strip() in (name.strip(), "·" * len(name))
    value = float(f"{features.largest[123]:.3g}")
    assert tip.split("\n")[1:] == [f"id {index}", f"activation {value:g}"]
    assert report["bar"].endswith(f"{features.counts[123, 0]:,} tokens")
    assert report["bars"] == 3
    assert report["near"] == ["#latent=124", "#latent=125"]
    assert report["next"] == "Latent 124"
    assert report["dead"]
    assert report["back"]


def with_word(features, index):
    """How many latents are strongest at a token, promote or suppress it."""
    kinds = (features.top, features.sampled)
    peaks = [kind.tokens[:, :, BEFORE] for kind in kinds]
    words = [*peaks, features.promoted.ids, features.suppressed.ids]
    return int((np.concatenate(words, 1) == index).any(1).sum())


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed.")
def test_one_latent_in_chromium(features, tokenizer, tmp_path):
    steps = """
      report.all = !look("all").hidden;
      report.title = document.querySelector("h1").textContent;
      report.texts = [...document.querySelectorAll(".token")].map(t => t.textContent);
      const links = [...document.querySelectorAll("a")];
      report.links = links.map(a => a.getAttribute("href"));
      report.scripts = document.querySelectorAll("#latent script, #latent b").length;
      report.tip = over(document.querySelector("#facts .word"));
    """
    page = viz.feature_page(features, 7, tokenizer=tokenizer, index="all.html")
    report = browse(page, steps, tmp_path)
    assert report["title"] == "Latent 7"
    assert not report["all"]
    assert report["links"] == ["all.html#latent=8", "all.html#latent=9"]
    assert report["scripts"] == 0
    shown = [
        tokenizer.pieces([index])[0]
        for kind in (features.top, features.sampled)
        for index in kind.tokens[7][:, 1:].ravel().tolist()
    ]
    texts = [text.strip(" ·") for text in report["texts"]]
    assert texts == [text.strip() for text in shown]
    assert "id " in report["tip"]


@pytest.mark.parametrize(
    "index",
    ["javascript:alert(1)", "https://a.b/c", "//a.b/c", "/etc/passwd", "a\nb", ""],
)
def test_addresses_outside_the_folder_are_refused(features, index):
    with pytest.raises(ConfigError, match="not a relative path"):
        viz.feature_page(features, 7, index=index)
