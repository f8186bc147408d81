"""`mijax check`."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from mijax._errors import ConfigError
from mijax.cli._console import output, print_table
from mijax.cli._model import encode, load_model
from mijax.cli._parser import Commands, command

TEXT = "The capital of France is Paris, and the capital of Italy is"


def add(commands: Commands) -> None:
    """Adds the command."""
    parser = command(
        commands,
        "check",
        _call,
        summary="Compare a model with transformers, layer by layer; exit code 1 when "
        "it differs.",
        example="  mijax check gpt2\n  mijax check ./folder --text 'A b c'",
    )
    parser.add_argument(
        "model", metavar="MODEL", help="name, folder, hub id or GGUF file"
    )
    parser.add_argument("--text", default=TEXT, help=f"the prompt (default: {TEXT!r})")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="largest difference, as a fraction of the largest value of a site, or of "
        "1 where that is smaller (default: 1e-4)",
    )


def _call(arguments: argparse.Namespace, rest: Sequence[str]) -> int:
    if not arguments.tolerance > 0:
        raise ConfigError(f"--tolerance {arguments.tolerance}: expected more than 0.")
    try:
        import torch  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
        import transformers  # noqa: PLC0415  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ConfigError(
            "mijax check compares with transformers, which is not installed: pip "
            "install transformers torch."
        ) from error
    import jax  # noqa: PLC0415

    from mijax import models, nn  # noqa: PLC0415

    loaded = load_model(arguments.model)
    if isinstance(loaded.model, nn.AbstractEncoderDecoder):
        raise ConfigError(
            f"{arguments.model}: mijax check compares decoders and encoders; this "
            "is an encoder-decoder."
        )
    kind = "AutoModelForCausalLM"
    if not loaded.model.causal:
        if loaded.spec.head != "masked":
            raise ConfigError(
                f"{arguments.model}: mijax check compares encoders with a head of "
                f"masked tokens; this one has head '{loaded.spec.head}'."
            )
        kind = "AutoModelForMaskedLM"
    tokens = encode(loaded, arguments.text)
    library = getattr(transformers, kind)
    reference = _reference(arguments.model, tokens, torch, library)
    with jax.default_matmul_precision("highest"):
        found = models.compare(loaded.model, tokens, reference)
    rows = [
        [
            d.site,
            "" if d.layer is None else str(d.layer),
            f"{d.difference:.1e}",
            f"{d.size:.3g}",
            "" if d.within(arguments.tolerance) else "differs",
        ]
        for d in found
    ]
    print_table(
        arguments.model, ["site", "layer", "difference", "largest value", ""], rows
    )
    return _verdict(found, arguments.tolerance, transformers.__version__)


def _verdict(found: list[Any], tolerance: float, version: str) -> int:
    """Print the first site that differs, or that none does."""
    apart = [d for d in found if not d.within(tolerance)]
    if apart:
        layer = "" if apart[0].layer is None else f" of layer {apart[0].layer}"
        output().print(
            f"{apart[0].site}{layer} is the first site that differs from transformers "
            f"{version}.",
            soft_wrap=True,
        )
        return 1
    output().print(
        f"All {len(found)} activations equal those of transformers {version} within "
        f"{tolerance:g}.",
        soft_wrap=True,
    )
    return 0


def _reference(name: str, tokens: list[int], torch: Any, kind: Any) -> Any:
    """Run the model in transformers."""
    source, options = _source(name)
    model = kind.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager", **options
    )
    with torch.no_grad():
        out = model(
            torch.tensor([tokens]), output_hidden_states=True, output_attentions=True
        )
    patterns = [np.asarray(p[0]) for p in out.attentions or () if p is not None]
    return SimpleNamespace(
        hidden=[np.asarray(h[0]) for h in out.hidden_states],
        patterns=patterns or None,
        logits=np.asarray(out.logits[0]),
    )


def _source(name: str) -> tuple[str, dict[str, Any]]:
    """Return the source and options for transformers."""
    from mijax import models  # noqa: PLC0415

    path = Path(name)
    if path.suffix == ".gguf":
        return str(path.parent), {"gguf_file": path.name}
    preset = models.presets().get(name)
    if preset is None or path.is_dir():
        return name, {}
    return preset.hub or name, {}
