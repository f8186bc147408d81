"""Files of dictionaries for tests: the goldens, read and damaged."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from mijax import dictionaries as d
from mijax.io import TorchFile, save_torch

GOLDEN = Path(__file__).parent / "golden" / "dictionaries"
SPEC = importlib.util.spec_from_file_location("by_mijax", GOLDEN / "make_by_mijax.py")
make_by_mijax = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(make_by_mijax)
SCALES = {"saelens/scaled": 0.7}
NORMALISED = {
    *("saelens/layer_norm", "saelens/constant_norm", "openai/topk"),
    *("openai/topk_twice", "by_mijax/openai_topk"),
}


def fixtures(folder):
    """Names of all goldens in a folder, without their ending."""
    found = sorted((GOLDEN / folder).rglob("*.npz"))
    return [
        f.relative_to(GOLDEN).as_posix()[: -len(".npz")]
        for f in found
        if f.name != "params.npz"
    ]


def arrays_of(path):
    """Reads an `.npz` file and closes it."""
    with np.load(path) as arrays:
        return dict(arrays)


def path_of(name):
    """The folder or file of a golden."""
    for ending in ("", ".pt"):
        if (path := GOLDEN / f"{name}{ending}").exists():
            break
    file = path / "layer_3.safetensors"
    return file if file.exists() else path


def load(name, **options):
    if name in SCALES:
        options["scale"] = SCALES[name]
    return d.load(path_of(name), normalised=name in NORMALISED, **options)


def copied(name, tmp_path):
    path = path_of(name)
    source = path if path.is_dir() else path.parent
    return Path(shutil.copytree(source, tmp_path / source.name))


def edit_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_tensors(path, change):
    tensors = dict(load_file(path))
    change(tensors)
    save_file(tensors, path)


def edit_torch(path, change):
    file = TorchFile(path)
    content = {name: file.read(name) for name in file.shapes} | file.values
    change(content)
    save_torch({k: np.asarray(v) for k, v in content.items()}, path)


def edit_npz(path, change):
    arrays = arrays_of(path)
    change(arrays)
    np.savez(path, **arrays)


def one_line(caught, *words):
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert str(word) in text, text
