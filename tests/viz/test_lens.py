"""Pictures and pages of lenses."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from cases import CLEAN, model

from mijax import lens, viz
from mijax._errors import ShapeError

TOKENS = ["The", " cat", " sat", " on", " <b>", "</script>", "\n"]


def reading(**options):
    given = {"top": 3, "targets": lens.next_tokens(CLEAN[0])} | options
    return lens.read(model("gpt2"), CLEAN[0], **given)


def name(token):
    return f" t{token}"


def test_picture_has_a_token_in_every_cell_and_frames_where_it_is_right():
    found = reading()
    figure = viz.lens_grid(found, tokens=TOKENS, decode=name)
    (panel, _) = figure.axes
    texts = {t.get_position(): t.get_text() for t in panel.texts}
    assert len(texts) == 3 * 7
    assert texts[(2, 1)] == f"·t{found.tokens[1, 2, 0]}"
    np.testing.assert_allclose(panel.images[0].get_array(), found.entropy, atol=1e-6)
    right = int((found.target_ranks == 0).sum())
    assert len(panel.patches) == right
    assert sum(t.get_weight() == "bold" for t in panel.texts) == right


def test_long_prompts_continue_below():
    shape = (2, 60)
    tokens = jnp.zeros((*shape, 1), jnp.int32)
    zero = jnp.zeros(shape)
    long = lens.LensReading(zero[..., None], tokens, zero, zero, tokens, batched=False)
    figure = viz.lens_grid(long, tokens=["a"] * 60, decode=str, values=zero + 1)
    *panels, _ = figure.axes
    assert [p.images[0].get_array().shape for p in panels] == [(2, 20)] * 3


def test_page_holds_what_was_read_and_nothing_from_outside():
    found = reading()
    page = viz.lens_page(found, tokens=TOKENS, decode=name, title="<lens>")
    assert "&lt;lens&gt;" in page
    assert not re.search(r"https?://|src=|@import", page)
    assert page.count("</script>") == 1
    data = json.loads(re.search(r"const data = (.*);\n", page)[1])
    assert data["tokens"][5] == "</script>"
    assert data["best"] == found.tokens.tolist()
    assert data["texts"][str(found.tokens[0, 0, 0])] == f"·t{found.tokens[0, 0, 0]}"
    np.testing.assert_allclose(data["p"], np.exp(found.log_probabilities()), atol=1e-4)
    np.testing.assert_allclose(data["entropy"], found.entropy, atol=1e-4)
    assert data["ranks"] == found.target_ranks.tolist()
    without = viz.lens_page(reading(targets=None), tokens=TOKENS, decode=name)
    assert '"ranks": null' in without


def test_refuses():
    for draw in (viz.lens_grid, viz.lens_page):
        batch = lens.read(model("gpt2"), CLEAN, top=1)
        with pytest.raises(ShapeError, match="one prompt"):
            draw(batch, tokens=TOKENS, decode=name)
        with pytest.raises(ShapeError, match="best tokens"):
            draw(reading(top=None), tokens=TOKENS, decode=name)
        with pytest.raises(ShapeError, match="6 tokens for 7"):
            draw(reading(), tokens=TOKENS[1:], decode=name)
    with pytest.raises(ShapeError, match="Values of shape"):
        viz.lens_grid(reading(), tokens=TOKENS, decode=name, values=np.zeros((2, 7)))
