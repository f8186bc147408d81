"""`mijax attention`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mijax._errors import SiteError
from mijax.cli._console import output
from mijax.cli._model import encode, load_model, pieces
from mijax.cli._parser import Commands, command


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(
        commands,
        "attention",
        _call,
        summary="Write a page, for any browser, of where the heads of a layer attend.",
        example='  mijax attention smollm2-135m-instruct "The cat sat" --layer 3 '
        "--out attention.html",
    )
    parser.add_argument("model", metavar="MODEL", help="name or folder of a model")
    parser.add_argument("text", metavar="TEXT", help="the prompt")
    parser.add_argument(
        "--layer", type=int, required=True, metavar="L", help="layer, from 0"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="the page (default: attention-layer<L>.html)"
    )


def _call(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from jax import numpy as jnp  # noqa: PLC0415

    from mijax import core, io, viz  # noqa: PLC0415

    loaded = load_model(arguments.model)
    layers = loaded.model.n_layers
    if not 0 <= arguments.layer < layers:
        raise SiteError(
            f"--layer {arguments.layer}: {arguments.model} has layers 0 to "
            f"{layers - 1}."
        )
    tokens = encode(loaded, arguments.text)
    site = core.Site("pattern", layer=arguments.layer)
    pattern = core.capture(loaded.model, jnp.asarray(tokens), site)
    heads_first = np.moveaxis(np.asarray(pattern, dtype=np.float64), 1, 0)
    page = viz.attention_page(
        heads_first[None],
        tokens=pieces(loaded, tokens),
        title=f"{arguments.model}: attention in layer {arguments.layer}",
        first_layer=arguments.layer,
    )
    path = Path(arguments.out or f"attention-layer{arguments.layer}.html")

    def fill(scratch: Path) -> None:
        scratch.write_text(page, encoding="utf-8")

    io.replace_file(path, fill)
    output().print(f"Page: {path}", soft_wrap=True)
    return 0
