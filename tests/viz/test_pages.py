import base64
import io
import json
import re
from importlib import resources

import numpy as np
import pytest
from rich.console import Console

from mijax import viz


def printed(values, width=80, color=None, **labels):
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        color_system=color,
        force_terminal=color is not None,
        legacy_windows=False,
    )
    console.print(viz.terminal_heatmap(np.asarray(values, float), **labels))
    return file.getvalue()


def test_terminal_without_colour_is_plain_numbers():
    text = printed(
        [[1, -0.001], [np.nan, 12345]], row_labels=["[b]", "long label"], title="t"
    )
    assert text == (
        "t\n"
        "               0       1\n"
        "       [b]  1.00    0.00\n"
        "long label   nan 1.2e+04\n"
    )


@pytest.mark.parametrize("columns", [3, 30])
def test_terminal_fits_its_width(columns):
    text = printed(
        np.ones((12, columns)), col_labels=[" token日本日本"] * columns, width=80
    )
    assert max(len(line) for line in text.splitlines()) <= 80
    assert text.count("1.00") == 12 * columns


def test_terminal_sets_ink_and_paper():
    text = printed([[2.0, -2.0, 0.0]], color="truecolor")
    cells = re.findall(r"\x1b\[38;2;([\d;]+);48;2;([\d;]+)m", text)
    assert cells == [
        ("255;255;255", "178;24;43"),
        ("255;255;255", "33;102;172"),
        ("0;0;0", "247;247;247"),
    ]


def read_data(page):
    block = re.search(r'id="data">(.*?)</script>', page, re.S)
    assert block is not None
    return json.loads(block.group(1))


def test_attention_page_keeps_its_numbers():
    rng = np.random.default_rng(0)
    patterns = rng.dirichlet(np.ones(4), size=(2, 3, 4))
    page = viz.attention_page(patterns, tokens=list("abcd"), first_layer=5)
    data = read_data(page)
    assert (data["layers"], data["first"], data["heads"]) == (2, 5, 3)
    values = np.frombuffer(base64.b64decode(data["values"]), "<u2") / 65535
    np.testing.assert_allclose(values.reshape(patterns.shape), patterns, atol=1e-5)


def test_attention_page_is_offline_and_escaped():
    tokens = ["</script><script>alert(1)</script>", "<b>"]
    page = viz.attention_page(np.eye(2)[None], tokens=tokens, title="<i>&{{data}}")
    for outside in ("http://", "https://", "src=", "href=", "url(", "@import", "<link"):
        assert outside not in page
    assert page.count("</script>") == 2
    assert "<i>" not in page
    assert read_data(page)["tokens"][1] == "<b>"


def test_attention_page_of_twenty_heads_is_small():
    page = viz.attention_page(np.ones((20, 64, 64)) / 64, tokens=["a"] * 64)
    assert len(page) < 400_000


@pytest.mark.parametrize("name", ["attention", "circuit", "features"])
def test_styles_apply_only_inside_the_page(name):
    page = resources.files("mijax.viz").joinpath(f"_{name}.html").read_text("utf-8")
    assert f'<body>\n<div class="mijax-{name}">' in page
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    heads = [" ".join(head.split()) for head in re.findall(r"([^{};]+)\{", style)]
    assert len(heads) > 10
    for head in heads:
        for one in () if head.startswith("@media") else head.split(","):
            assert f".mijax-{name}" in one, one
