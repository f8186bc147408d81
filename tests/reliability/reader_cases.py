"""One row per kind of file that mijax reads: how to make one, and how to load it."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from flax import serialization, traverse_util
from safetensors.numpy import load_file

import mijax
from mijax import circuits, data, io, models
from mijax import dictionaries as d
from mijax.core._journal import Journal
from mijax.experiment._config import ConfigFile, parse
from mijax.experiment._yaml import read_yaml
from mijax.io import TorchFile

GOLDEN = Path(__file__).parents[1] / "golden"
HF, DICTIONARIES = GOLDEN / "hf", GOLDEN / "dictionaries"
SPEC = models.AttentionOnlySpec(
    layers=1, embed=8, heads=2, head_dim=4, vocab=16, context=8
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A kind of file.

    Attributes:
        name: its name in the table.
        make: writes an original into an empty folder.
        load: loads a folder; returns a value to compare with `==`.
        checksums: whether the format detects every change of its bytes.
    """

    name: str
    make: Callable[[Path], Any]
    load: Callable[[Path], Any]
    checksums: bool = False


def plain(value: Any) -> Any:
    """Turn arrays into their shape, type and bytes."""
    if isinstance(value, np.ndarray | jax.Array):
        array = np.asarray(value)
        return array.shape, str(array.dtype), array.tobytes()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    return repr(value)


def leaves(tree: Any) -> Any:
    return plain(jax.tree.leaves(tree))


def copied(source: Path) -> Callable[[Path], Any]:
    """Copy a golden file or folder."""

    def make(folder: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, folder, dirs_exist_ok=True)
        else:
            shutil.copy(source, folder)

    return make


def load_model(path: Path) -> Any:
    file = next(iter(path.glob("*.gguf")), path)
    loaded = models.load(file)
    if file != path:
        same_as_reference(file)
    tokenizer = loaded.text
    text = tokenizer and (tokenizer.backend.to_str(), tokenizer.bos, tokenizer.eos)
    return leaves(loaded.model), loaded.spec, text, tokenizer and tokenizer.template


def same_as_reference(path: Path) -> None:
    """Check that llama.cpp's own reader finds the same metadata and numbers."""
    ours, reference = io.Gguf(path), gguf.GGUFReader(path)
    for name, field in reference.fields.items():
        if not name.startswith("GGUF."):
            assert repr(field.contents()) == repr(ours.fields[name]), name
    assert ours.shapes.keys() == {tensor.name for tensor in reference.tensors}
    for tensor in reference.tensors:
        value = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(ours.read(tensor.name), value, tensor.name)


def make_flax(folder: Path) -> None:
    """The golden Llama under the names of flax."""
    copied(HF / "llama")(folder)
    weights, flat = folder / "model.safetensors", {}
    for name, tensor in load_file(weights).items():
        stem, _, last = name.rpartition(".")
        if "embed" in stem:
            last = "embedding"
        elif tensor.ndim == 2:
            last = "kernel"
        turned = tensor.T if last == "kernel" else tensor
        flat[(*stem.split("."), last)] = np.ascontiguousarray(turned)
    weights.unlink()
    content = serialization.msgpack_serialize(traverse_util.unflatten_dict(flat))
    (folder / "flax_model.msgpack").write_bytes(content)


def load_torch(folder: Path) -> Any:
    file = TorchFile(folder / "views.pt")
    return {name: plain(file.read(name)) for name in file.shapes}, file.values


TEXTS = [" Mary went", " went went Mary", " Mary"]


def make_tokens(folder: Path) -> None:
    folder.rmdir()
    data.tokenize(data.Tokenizer.from_pieces([" Mary", " went"]), TEXTS, folder=folder)


def load_tokens(folder: Path) -> Any:
    tokenizer = data.Tokenizer.from_pieces([" Mary", " went"])
    found = data.tokenize(tokenizer, TEXTS, folder=folder)
    return plain(np.asarray(found.ids)), plain(np.asarray(found.ends)), found.separator


def make_gguf(folder: Path) -> None:
    """A Llama of one layer, Q8_0 and floats, with a SentencePiece vocabulary."""
    golden = json.loads((GOLDEN / "sentencepiece.json").read_text())["plain"]
    kept = [*range(40), *range(270, 300)]
    vocab, embed, mlp = len(kept), 32, 32
    writer = gguf.GGUFWriter(folder / "a.gguf", "llama")
    writer.add_context_length(16)
    writer.add_embedding_length(embed)
    writer.add_block_count(1)
    writer.add_feed_forward_length(mlp)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([golden["pieces"][i] for i in kept])
    writer.add_token_scores([golden["scores"][i] for i in kept])
    writer.add_token_types([golden["kinds"][i] for i in kept])
    draw = np.random.default_rng(0)
    shapes = {
        "token_embd": (vocab, embed),
        "output_norm": (embed,),
        "blk.0.attn_norm": (embed,),
        "blk.0.ffn_norm": (embed,),
        "blk.0.attn_q": (embed, embed),
        "blk.0.attn_k": (embed // 2, embed),
        "blk.0.attn_v": (embed // 2, embed),
        "blk.0.attn_output": (embed, embed),
        "blk.0.ffn_gate": (mlp, embed),
        "blk.0.ffn_up": (mlp, embed),
        "blk.0.ffn_down": (embed, mlp),
    }
    for name, shape in shapes.items():
        array = draw.normal(size=shape).astype(np.float32)
        kind = None
        if "ffn" in name and len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            array = gguf.quants.quantize(array, kind)
        writer.add_tensor(f"{name}.weight", array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_safetensors(folder: Path) -> None:
    arrays = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "b": np.arange(5).astype(jnp.bfloat16),
        "c": np.array([True, False]),
        "d": np.arange(3),
    }
    io.save_safetensors(arrays, folder / "a.safetensors")


def load_safetensors(folder: Path) -> Any:
    file = io.SafeTensors(folder / "a.safetensors")
    found = {name: plain(file.read(name)) for name in file.shapes}
    # The format's own library reads the same, bit for bit.
    assert found == plain(load_file(folder / "a.safetensors"))
    return found


def tiny() -> Any:
    return models.init(SPEC, jax.random.key(0))


def make_native(folder: Path) -> None:
    text = data.Tokenizer.from_pieces([" Mary"])
    folder.rmdir()
    models.save(tiny(), SPEC, folder, tokenizer=text)


def make_model_checkpoint(folder: Path) -> None:
    model = tiny()
    folder.rmdir()
    io.save_checkpoint(model, folder, metadata=models.describe(model, SPEC))


TREE = {"a": jnp.arange(6.0).reshape(2, 3), "b": [jnp.ones(4, jnp.int32)]}


def make_checkpoint(folder: Path) -> None:
    folder.rmdir()
    io.save_checkpoint(TREE, folder, metadata={"step": 3})


def load_checkpoint(folder: Path) -> Any:
    like = jax.tree.map(jnp.zeros_like, TREE)
    return leaves(io.load_checkpoint(like, folder)), io.checkpoint_metadata(folder)


def make_dictionary(folder: Path) -> None:
    key = jax.random.key(0)
    made = d.untrained(d.BatchTopK(4), d.SAE(8), latents=24, key=key)
    folder.rmdir()
    d.save(made, folder, site=mijax.Site("resid_post", layer=3))


def load_dictionary(folder: Path) -> Any:
    inner = [p for p in folder.iterdir() if p.is_dir()]
    single = [*folder.glob("*.pt"), *folder.glob("layer_*.safetensors")]
    path = folder
    if "ae.pt" not in {p.name for p in single} and single:
        path = single[0]
    elif inner and not io.is_checkpoint(folder):
        path = inner[0]
    scale = 0.7 if "scaled" in folder.name else None
    found = d.load(path, normalised=True, scale=scale)
    said = (found.format, found.site, found.target, found.normalisation)
    return leaves(found.dictionary), repr(said), plain(dict(found.stated))


class Rows(data.AbstractSource):
    """Ten batches of three rows."""

    digest = "rows"

    def start(self) -> Any:
        return np.asarray(0, np.int32)

    def batch(self, state: Any) -> Any:
        rows = jnp.arange(12.0).reshape(3, 4) + 12 * int(state)
        return np.asarray(int(state) + 1, np.int32), data.Batch(rows)


def make_store(folder: Path) -> None:
    folder.rmdir()
    data.store(Rows(), folder, 12, dtype="float32", shard=6)


def load_store(folder: Path) -> Any:
    source = data.Stored(folder, batch=4)
    state, found = source.start(), []
    for _ in range(3):
        state, batch = source.batch(state)
        found.append(plain(batch.x))
    return found


VALUES = np.arange(8, dtype=np.float32).reshape(2, 4)


def make_resume(folder: Path) -> None:
    Journal(folder / "sweep.npz", "job").save(VALUES, 1)


def load_resume(folder: Path) -> Any:
    journal, values = Journal(folder / "sweep.npz", "job"), np.zeros_like(VALUES)
    journal.load(values)
    return plain(values), journal.done


def make_circuit(folder: Path) -> None:
    graph = circuits.Graph.decoder(2, heads=2)
    values = jnp.asarray(graph.edges, jnp.float32)
    scores = circuits.Scores(values, None, None, graph, "edge", "by hand")
    path = folder / "graph.json"
    circuits.save_json(path, scores, circuits.Circuit.full(graph), embed=8)


def load_circuit(folder: Path) -> Any:
    scores, circuit = circuits.load_json(folder / "graph.json")
    return plain(scores.values), plain(circuit.edges), repr(scores.graph)


YAML = """experiment: induction
description: Fuzzed.
size: tiny
config:
  model: induction-2l
  prompts: 8
  half: 1e-3
  names: [a, b, 3]
expected:
  score:
    value: 0.9
    tolerance: 0.1
    source: Table 1
"""


def make_yaml(folder: Path) -> None:
    (folder / "tiny.yaml").write_text(YAML)


def load_yaml(folder: Path) -> Any:
    document = read_yaml(folder / "tiny.yaml")
    return parse(ConfigFile, document.value, document=document)


def golden_dictionaries() -> list[Case]:
    """One case for each golden dictionary of another library."""
    folders = (
        *("saelens/standard", "saelens/jumprelu", "saelens/topk", "saelens/gated"),
        *("saelens/scaled", "sparsify/layers.3"),
        *("dictionary_learning/AutoEncoder", "dictionary_learning/BatchTopKSAE"),
        *("openai/topk", "openai/relu", "circuit_tracer/relu"),
        *("circuit_tracer/clt_relu",),
        "gemma_scope/gemma-scope-2b-pt-transcoders/layer_3/average_l0_9",
    )
    found = []
    for name in folders:
        path = DICTIONARIES / name
        if not path.exists():
            path = path.with_suffix(".pt")
        if path.exists():
            found.append(Case(name, copied(path), load_dictionary))
    return found


CASES = (
    Case("safetensors", make_safetensors, load_safetensors),
    Case("gpt2 folder", copied(HF / "gpt2"), load_model),
    Case("llama folder", copied(HF / "llama3_rope"), load_model),
    Case("llama shards", copied(HF / "llama_sharded"), load_model),
    Case("flax folder", make_flax, load_model),
    Case("gguf", make_gguf, load_model),
    Case("native model", make_native, load_model, checksums=True),
    Case("model checkpoint", make_model_checkpoint, load_model, checksums=True),
    Case("checkpoint", make_checkpoint, load_checkpoint, checksums=True),
    Case("native dictionary", make_dictionary, load_dictionary, checksums=True),
    *golden_dictionaries(),
    Case("torch file", copied(DICTIONARIES / "views.pt"), load_torch),
    Case("token corpus", make_tokens, load_tokens, checksums=True),
    Case("activation store", make_store, load_store, checksums=True),
    Case("resume file", make_resume, load_resume, checksums=True),
    Case("circuit JSON", make_circuit, load_circuit),
    Case("experiment YAML", make_yaml, load_yaml),
)
