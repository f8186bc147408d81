"""`mijax logits`."""

import argparse
import json
from collections.abc import Sequence

import numpy as np

from mijax._errors import ConfigError
from mijax.cli._console import output, print_table
from mijax.cli._model import encode, load_model, pieces
from mijax.cli._parser import Commands, command


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(
        commands,
        "logits",
        _call,
        summary="Show the tokens of a text and the most likely next ones.",
        example='  mijax logits smollm2-135m-instruct "The capital of France is" '
        "--top 5",
    )
    parser.add_argument("model", metavar="MODEL", help="name or folder of a model")
    parser.add_argument("text", metavar="TEXT", help="the prompt")
    parser.add_argument(
        "--top", type=int, default=5, metavar="N", help="how many tokens (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def _call(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    if arguments.top < 1:
        raise ConfigError(f"--top {arguments.top}: expected 1 or more.")
    from mijax import core  # noqa: PLC0415

    loaded = load_model(arguments.model)
    tokens = encode(loaded, arguments.text)
    found = core.top_tokens(loaded, tokens, k=arguments.top)
    log_sum_exp = float(found.total)
    # Without a tokenizer `encode` has refused the text.
    names, best = pieces(loaded, found.ids.tolist()), found.ids.tolist()
    top = [
        {"token": name, "id": index, "logit": logit}
        for name, index, logit in zip(names, best, found.logits.tolist(), strict=True)
    ]
    if arguments.json:
        report = {"tokens": tokens, "log_sum_exp": log_sum_exp, "top": top}
        print(json.dumps(report, ensure_ascii=False))
        return 0
    prompt = zip(tokens, pieces(loaded, tokens), strict=True)
    rows = [[str(index), repr(piece)] for index, piece in prompt]
    print_table("Tokens", ["id", "piece"], rows)
    rows = [
        [
            repr(entry["token"]),
            str(entry["id"]),
            f"{entry['logit']:.4f}",
            f"{np.exp(entry['logit'] - log_sum_exp):.4f}",
        ]
        for entry in top
    ]
    print_table("Next token", ["piece", "id", "logit", "probability"], rows)
    output().print(f"log-sum-exp of the logits: {log_sum_exp:.6f}")
    return 0
