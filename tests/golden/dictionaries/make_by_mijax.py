"""Writes `by_mijax/`: dictionaries that mijax saved for other libraries to read.

Run it first, then the other scripts, which read these folders with the real libraries
and keep what they compute as `by_mijax/<name>.npz`.

Needs mijax.
"""

import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import mijax
from mijax import dictionaries as d

FOLDER = Path(__file__).parent / "by_mijax"
IN, OUT, LATENTS, K, LAYERS = 8, 6, 24, 4, 3
SITE = mijax.Site("resid_post", layer=3)
MATRYOSHKA = d.Matryoshka((0.25, 0.25, 0.5), K)


def drawn(architecture, wiring, seed, *, latents=LATENTS, scale=1.0):
    """Draws a dictionary none of whose arrays is zero."""
    new = d.untrained(
        architecture,
        wiring,
        latents=latents,
        key=jax.random.key(seed),
        tied=False,
        scale=scale,
    )
    random = np.random.default_rng(seed)

    def redrawn(array):
        # By NumPy alone, so that another machine draws the same bits.
        return jnp.asarray(0.5 * random.normal(size=array.shape), jnp.float32)

    weights, extra, running = jax.tree.map(
        redrawn, (new.weights, new.extra, new.running)
    )
    if isinstance(architecture, d.JumpReLU):
        # Rounded as its logarithm, by which these files were made.
        cut = np.float32(np.log(0.3 + np.abs(np.asarray(extra, np.float64))))
        extra = jnp.asarray(np.exp(np.float64(cut)), jnp.float32)
    if running is not None:
        running = jnp.float32(0.8)
    return d.Dictionary(
        new.architecture, new.wiring, weights, extra, running, new.scale
    )


CASES = {
    "saelens_standard": (d.ReLU(), d.SAE(IN), {}),
    "saelens_scaled": (d.ReLU(), d.SAE(IN), {"scale": 0.6}),
    "saelens_gated": (d.Gated(), d.SAE(IN), {}),
    "saelens_topk": (d.TopK(K), d.SAE(IN), {}),
    "saelens_jumprelu": (d.JumpReLU(), d.SAE(IN), {}),
    "saelens_batchtopk": (d.BatchTopK(K), d.SAE(IN), {}),
    "saelens_matryoshka": (MATRYOSHKA, d.SAE(IN), {}),
    "saelens_transcoder": (d.ReLU(), d.Transcoder(IN, OUT), {}),
    "saelens_skip": (d.ReLU(), d.Transcoder(IN, OUT, skip=True), {}),
    "saelens_jumprelu_transcoder": (d.JumpReLU(), d.Transcoder(IN, OUT), {}),
    "saelens_jumprelu_skip": (d.JumpReLU(), d.Transcoder(IN, skip=True), {}),
    "gemma_scope_sae": (d.JumpReLU(), d.SAE(IN), {}),
    "gemma_scope_transcoder": (d.JumpReLU(), d.Transcoder(IN), {}),
    "gemma_scope_batchtopk": (d.BatchTopK(K), d.SAE(IN), {}),
    "dictionary_learning_relu": (d.ReLU(), d.SAE(IN), {}),
    "dictionary_learning_gated": (d.Gated(), d.SAE(IN), {}),
    "dictionary_learning_jumprelu": (d.JumpReLU(), d.SAE(IN), {}),
    "dictionary_learning_topk": (d.TopK(K), d.SAE(IN), {}),
    "dictionary_learning_batchtopk": (d.BatchTopK(K), d.SAE(IN), {}),
    "dictionary_learning_matryoshka": (MATRYOSHKA, d.SAE(IN), {}),
    "sparsify_sae": (d.TopK(K), d.SAE(IN), {}),
    "sparsify_transcoder": (d.TopK(K), d.Transcoder(IN), {}),
    "sparsify_skip": (d.TopK(K), d.Transcoder(IN, skip=True), {}),
    "openai_relu": (d.ReLU(), d.SAE(IN), {}),
    "openai_topk": (d.TopK(K), d.SAE(IN), {"normalisation": "layer_norm"}),
    "circuit_tracer_relu": (d.ReLU(), d.Transcoder(IN), {}),
    "circuit_tracer_skip": (d.ReLU(), d.Transcoder(IN, skip=True), {}),
    "circuit_tracer_across": (d.ReLU(), d.CrossLayer(LAYERS, IN), {"latents": 30}),
    "circuit_tracer_across_jumprelu": (
        *(d.JumpReLU(), d.CrossLayer(LAYERS, IN)),
        {"latents": 30},
    ),
}
FORMATS = ("saelens", "gemma_scope", "dictionary_learning", "sparsify", "openai")


def of(name):
    """Returns the dictionary of a case, its format and the options of saving it."""
    architecture, wiring, options = CASES[name]
    seed = list(CASES).index(name)
    drawing = {k: v for k, v in options.items() if k != "normalisation"}
    saving = {k: v for k, v in options.items() if k == "normalisation"}
    format = next((f for f in FORMATS if name.startswith(f)), "circuit_tracer")
    return drawn(architecture, wiring, seed, **drawing), format, saving


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name in CASES:
        dictionary, format, options = of(name)
        d.save(dictionary, FOLDER / name, format=format, site=SITE, **options)


if __name__ == "__main__":
    main()
