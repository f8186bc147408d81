"""`mijax models`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from mijax.cli._console import output, print_table
from mijax.cli._parser import Commands, command


def add(commands: Commands) -> None:
    """Adds the command."""
    command(
        commands,
        "models",
        _call,
        summary="List the families of models, their presets, and what was verified.",
        example="  mijax models",
    )


def _call(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    from mijax import models  # noqa: PLC0415
    from mijax.models.internal import (  # noqa: PLC0415
        FAMILIES,
        IMAGE_FAMILIES,
    )

    verified = json.loads(
        (Path(models.__file__).parent / "verified.json").read_text("utf-8")
    )
    rows = []
    for family in FAMILIES:
        found = verified.get(family.name)
        shown = "" if found is None else f"{found['difference']:.0e}, {found['date']}"
        presets = ", ".join(family.presets)
        rows.append([family.name, presets, family.gguf_name or "", shown])
    columns = ["model_type", "presets", "in GGUF", "largest difference"]
    print_table("Language models: mijax.models.load", columns, rows)
    rows = [[f.name, ", ".join(f.presets)] for f in IMAGE_FAMILIES]
    columns = ["family", "presets"]
    print_table("Image models: mijax.models.load_image_model", columns, rows)
    output().print(
        "The largest difference of a logit from transformers, relative to the largest "
        "logit, over tiny random models of the family. `mijax check MODEL` compares a "
        "real model.",
        soft_wrap=True,
    )
    return 0
