"""The training job: two layers change phase, one layer does not."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from mijax import data, io, models, viz
from mijax.experiment import Run
from mijax.nn import Transformer

from ._repeats import BOS, CHARACTERS
from ._training import History, Training, fit, spec_of

NAME = "induction-2l"
# Olsson et al. saw the change between 2.5 and 5 of 10 billion tokens.
WINDOW = 0.25


def train(config: Training, run: Run, *, seed: int) -> None:
    """Trains the model with two layers and its control with one; reports both."""
    run.seed("training", seed)
    found: dict[int, History] = {}
    trained: dict[int, Transformer] = {}
    for layers in (2, 1):
        with run.progress(f"train {layers} layer{'s' * (layers > 1)}") as progress:
            trained[layers], found[layers] = fit(
                config, layers=layers, seed=seed, folder=run.scratch, progress=progress
            )
    folder = run.folder / "model"
    write_model(trained[2], config, folder)
    run.weights(NAME, io.digest([folder / "model.safetensors"]))
    if config.install:
        package = Path(models.__file__).parent
        write_model(trained[2], config, package / "embedded" / NAME)
    report(found[2], found[1], run)
    draw_losses(found, run)
    draw_heads(found, run)


def write_model(model: Transformer, config: Training, folder: Path) -> None:
    """Writes weights, sizes and tokenizer, as `mijax.models.load` reads them."""
    tokenizer = make_tokenizer()
    models.save(model, spec_of(config, 2), folder, tokenizer=tokenizer)


def make_tokenizer() -> data.Tokenizer:
    """One token per letter, digit and space; any other character reads as a space."""
    import tokenizers as tk  # noqa: PLC0415 - needed here alone

    vocab = {"<bos>": BOS} | {c: 1 + i for i, c in enumerate(CHARACTERS)}
    backend = tk.Tokenizer(tk.models.WordLevel(vocab, unk_token="<bos>"))
    backend.normalizer = tk.normalizers.Replace(tk.Regex("[^A-Za-z0-9]"), " ")
    backend.pre_tokenizer = tk.pre_tokenizers.Split(tk.Regex("."), "isolated")
    backend.decoder = tk.decoders.Fuse()
    backend.add_special_tokens(["<bos>"])
    backend.post_processor = tk.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", BOS)]
    )
    return data.Tokenizer(backend, bos=BOS)


def report(two: History, one: History, run: Run) -> None:
    """Reports the numbers that the config's claims are about."""
    gained, start, stop = steepest(two)
    run.number("prefix_matching", two.prefix_matching[-1].max(), note="best head")
    run.number("previous_token", two.previous_token[-1].max(), note="best head")
    run.number("prefix_matching_one_layer", one.prefix_matching[-1].max())
    run.number("icl", icl(two)[-1], note="nats, two layers")
    run.number("icl_one_layer", icl(one)[-1], note="nats")
    run.number("icl_above_one_layer", icl(two)[-1] - icl(one)[-1], note="nats")
    run.number("icl_in_window", gained, note=f"steps {start} to {stop}")
    columns = ("step", "copied", "fresh", "prefix matching", "previous token")
    every = max(1, len(two.step) // 10)
    rows = [
        [
            int(two.step[i]),
            float(two.copied[i]),
            float(two.fresh[i]),
            float(two.prefix_matching[i].max()),
            float(two.previous_token[i].max()),
        ]
        for i in range(every - 1, len(two.step), every)
    ]
    run.table("Two layers during training (losses in nats, best heads)", columns, rows)


def icl(history: History) -> Float[np.ndarray, " point"]:
    """Loss on fresh tokens minus loss on tokens that can be copied, in nats."""
    return history.fresh - history.copied


def steepest(history: History) -> tuple[float, int, int]:
    """The window of training in which most of the in-context learning arises.

    Returns:
        The share of the final score gained in it, and its first and last step.
    """
    score = np.concatenate([[0.0], icl(history)])
    step = np.concatenate([[0], history.step])
    width = max(1, round(WINDOW * len(history.step)))
    gain = score[width:] - score[:-width]
    start = int(gain.argmax())
    share = float(gain[start] / score[-1])
    return share, int(step[start]), int(step[start + width])


def draw_losses(found: Mapping[int, History], run: Run) -> None:
    """Draws the loss curves."""
    figure = viz.line(
        {
            "two layers, copied tokens": found[2].copied,
            "two layers, fresh tokens": found[2].fresh,
            "one layer, copied tokens": found[1].copied,
        },
        points=found[2].step,
        title="Two layers learn to copy all at once, one layer never does",
        x="Training step",
        y="Loss (nats)",
    )
    caption = "Held-out loss on tokens that can be copied from earlier, and on others."
    run.figure("losses", figure, caption=caption)


def draw_heads(found: Mapping[int, History], run: Run) -> None:
    """Draws the scores of the best heads."""
    best = lambda scores: scores.max((1, 2))  # noqa: E731
    figure = viz.line(
        {
            "prefix matching, two layers": best(found[2].prefix_matching),
            "previous token, two layers": best(found[2].previous_token),
            "prefix matching, one layer": best(found[1].prefix_matching),
        },
        points=found[2].step,
        title="Induction heads form while the loss falls",
        x="Training step",
        y="Attention of the best head",
    )
    run.figure("heads", figure, caption="Scores of the best head at every step.")
