"""Writes `circuit_tracer/` and `gemma_scope/`, and what circuit-tracer computes.

Gemma Scope's own files are `np.savez` of five arrays; circuit-tracer reads them. Reads
what mijax wrote (`by_mijax/{circuit_tracer,gemma_scope}_*`), too.

Needs torch 2.13.0 (CPU) and circuit-tracer 0.5.0.
"""

import shutil

import numpy as np
import torch
from circuit_tracer.transcoder.cross_layer_transcoder import (
    CrossLayerTranscoder,
    load_clt,
)
from circuit_tracer.transcoder.single_layer_transcoder import (
    SingleLayerTranscoder,
    load_gemma_scope_transcoder,
    load_relu_transcoder,
)
from common import BY_MIJAX, HERE, IN, LATENTS, inputs, keep, randomise
from safetensors.torch import save_file

FOLDER, SCOPE = HERE / "circuit_tracer", HERE / "gemma_scope"
LAYERS = 3
CPU = {"device": torch.device("cpu"), "dtype": torch.float32}
WHOLE = {**CPU, "lazy_encoder": False, "lazy_decoder": False}


def record(path, transcoder, *shape):
    """Keeps what a transcoder computes."""
    x = inputs(*shape)
    with torch.no_grad():
        latents = transcoder.encode(x)
        keep(path, x=x, latents=latents, output=transcoder(x).detach())


def one_layer(name, seed, skip):
    """Saves the transcoder of one layer."""
    relu = torch.nn.functional.relu
    new = SingleLayerTranscoder(IN, LATENTS, relu, 3, skip_connection=skip, **CPU)
    path = FOLDER / name / "layer_3.safetensors"
    path.parent.mkdir(parents=True)
    save_file(randomise(new, seed).state_dict(), path)
    (path.parent / "config.yaml").write_text(
        "model_name: tiny\nmodel_kind: transcoder_set\n"
        "feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    )
    record(path.parent, load_relu_transcoder(str(path), 3, **WHOLE))


def across(name, seed, kind):
    """Saves a transcoder across layers."""
    new = CrossLayerTranscoder(LAYERS, 10, IN, kind, lazy_decoder=False, **CPU)
    randomise(new, seed).to_safetensors(str(FOLDER / name))
    record(FOLDER / name, load_clt(str(FOLDER / name), **WHOLE), LAYERS, 5, IN)


def scope(path, seed):
    """Saves the five arrays of Gemma Scope."""
    random = np.random.default_rng(seed)
    draw = lambda *shape: random.normal(0, 0.5, shape).astype(np.float32)  # noqa: E731
    path.mkdir(parents=True)
    np.savez(
        path / "params.npz",
        W_enc=draw(IN, LATENTS),
        W_dec=draw(LATENTS, IN),
        b_enc=draw(LATENTS),
        b_dec=draw(IN),
        threshold=0.3 + np.abs(draw(LATENTS)),
    )
    file = str(path / "params.npz")
    record(path, load_gemma_scope_transcoder(file, 3, **CPU))


def main():
    shutil.rmtree(FOLDER, ignore_errors=True)
    shutil.rmtree(SCOPE, ignore_errors=True)
    one_layer("relu", 0, False)
    one_layer("skip", 1, True)
    across("clt_relu", 2, "relu")
    across("clt_jumprelu", 3, "jump_relu")
    scope(SCOPE / "gemma-scope-2b-pt-res" / "layer_20" / "average_l0_71", 4)
    scope(SCOPE / "gemma-scope-2b-pt-transcoders" / "layer_3" / "average_l0_9", 5)
    for path in sorted(p for p in BY_MIJAX.glob("*") if p.is_dir()):
        if path.name.startswith("gemma_scope"):
            file = str(path / "params.npz")
            record(path, load_gemma_scope_transcoder(file, 3, **CPU))
        elif path.name.startswith("circuit_tracer_across"):
            record(path, load_clt(str(path), **WHOLE), LAYERS, 5, IN)
        elif path.name.startswith("circuit_tracer"):
            file = str(path / "layer_3.safetensors")
            record(path, load_relu_transcoder(file, 3, **WHOLE))


if __name__ == "__main__":
    main()
