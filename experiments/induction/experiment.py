"""Induction heads: found, proven and grown from scratch.

Paper: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits";
Olsson et al. 2022, "In-context Learning and Induction Heads", arXiv:2209.11895.

Claim: an attention-only transformer of two layers copies repeated text with induction
heads, whose keys are made by previous-token heads of the layer below (K-composition).
It learns this in one abrupt change, and a model of one layer never does.

What one layer lacks is a key that knows the token before. A model of one layer whose
keys are smeared, k_t mixed with k_{t-1}, does form induction heads, abruptly.

Commands: `mijax run induction` analyses the shipped model `induction-2l`;
`mijax run induction/train` trains that model and its control of one layer
(`--training.install` replaces the shipped model); `mijax run induction/smeared` trains
models of one layer with and without smeared keys, several seeds of each. Training is
recorded in `results/`.

Seeds differ in how layer 0 shares the work. The shipped model has one previous-token
head; with seed 0 and an earlier mix of data, the best such head carried 40 % of the
induction attention through the keys and the other three together as much.

Runtime on two CPU cores: half a minute for the analysis, most of it compilation;
three to four minutes for the training, which goes on where it was killed.
"""

from typing import Annotated, Literal

import jax
from pydantic import Field

from mijax import experiment, models
from mijax._errors import ConfigError
from mijax.core import Site, capture
from mijax.nn import AttentionBlock

from ._ablation import ablate_heads
from ._composition import compose_heads
from ._expansion import expand_paths
from ._heads import loss_by_position, score_heads, show_attention
from ._patching import patch_copies
from ._paths import ablate_paths
from ._phase import train
from ._repeats import draw, short_repeat
from ._smeared import smear
from ._training import Training

Positive = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
SITES = ("resid_pre", "resid_post", "pattern", "q", "k", "v", "z", "logits")


class Config(experiment.Config):
    """What to do, on how many prompts."""

    task: Literal["analyse", "train", "smear"] = "analyse"
    "Analyse a trained model, train one, or train one layer with smeared keys."
    model: str = "induction-2l"
    "Name or folder of the model to analyse, attention-only and of two layers."
    seed: Seed = 0
    "Of the prompts; of weights, data and measurements in training."
    prompts: Positive = 64
    "Random prompts to analyse."
    length: Annotated[int, Field(ge=2)] = 20
    "Tokens of the segment that comes twice."
    seeds: Positive = 3
    "Models of each kind with and without smeared keys; the first has `seed`."
    training: Training = Training()
    "How to train, when training."


def run(config: Config, run: experiment.Run) -> None:
    """Runs the analysis or one of the trainings."""
    if config.task == "train":
        train(config.training, run, seed=config.seed)
    elif config.task == "smear":
        smear(config.training, run, seed=config.seed, seeds=config.seeds)
    else:
        analyse(config, run)


def analyse(config: Config, run: experiment.Run) -> None:
    """Finds the heads, then proves by intervention what they do."""
    loaded = models.load(config.model)
    model = loaded.model
    if model.n_layers != 2 or not isinstance(model.blocks, AttentionBlock):
        raise ConfigError(
            f"{config.model!r} is not an attention-only transformer of two layers. "
            "Give 'induction-2l' or a model that `mijax run induction/train` trained."
        )
    seq = model.context or 64
    if 1 + 2 * config.length > seq:
        raise ConfigError(
            f"--length {config.length}: twice that and the first token do not fit the "
            f"{seq} tokens of a prompt. Give at most {(seq - 1) // 2}."
        )
    run.weights(config.model, loaded.digest)
    run.seed("prompts", config.seed)
    key = jax.random.key(config.seed)
    size = {"shortest": config.length, "longest": config.length, "distinct": True}
    prompts = draw(key, config.prompts, seq=seq, **size)
    with run.progress("run the model") as progress:
        acts = capture(model, prompts.tokens, {name: Site(name) for name in SITES})
        progress(1, 1)
    roles = score_heads(model, prompts, acts, run=run)
    loss_by_position(prompts, acts["logits"], run=run)
    show_attention(model, loaded.tokenizer, short_repeat(prompts), roles=roles, run=run)
    ablate_heads(model, prompts, acts, roles=roles, run=run)
    patch_copies(model, prompts, acts, run=run)
    ablate_paths(model, prompts, acts, roles=roles, run=run)
    compose_heads(model, roles=roles, run=run, seed=config.seed)
    expand_paths(model, prompts, roles=roles, run=run)
