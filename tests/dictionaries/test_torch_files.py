"""Weight files of torch: read as torch wrote them, and nothing in them is run."""

import os
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from dictionary_files import (
    GOLDEN,
    arrays_of,
    copied,
    one_line,
)

from mijax import dictionaries as d
from mijax._errors import LoadError
from mijax.io import TorchFile, save_torch


class Evil:
    """Runs a command when a pickle of it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def as_torch(path, content):
    """Writes a zip as torch does, with a pickle of anything."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
        archive.writestr("archive/version", "3\n")


def test_pickles_run_nothing(tmp_path):
    mark, file = tmp_path / "ran", tmp_path / "a.pt"
    for content in (Evil(mark), {"pre_bias": Evil(mark)}, {"x": [Evil(mark)]}):
        as_torch(file, content)
        with pytest.raises(LoadError) as caught:
            d.load(file, format="openai")
        one_line(caught, f"{os.system.__module__}.system", "Nothing was run", file)
    folder = copied("dictionary_learning/AutoEncoder", tmp_path)
    as_torch(folder / "ae.pt", {"bias": Evil(mark)})
    with pytest.raises(LoadError, match=r"system"):
        d.load(folder)
    scope = tmp_path / "params.npz"
    np.savez(scope, W_enc=np.array([Evil(mark)], object))
    with pytest.raises(LoadError, match="'W_enc' is of Python objects"):
        d.load(scope)
    assert not mark.exists()


def test_torch_files_that_are_refused(tmp_path):
    file = tmp_path / "a.pt"
    file.write_bytes(pickle.dumps({"a": 1}))
    refused(file, "as since 1.6")
    as_torch(file, [1, 2])
    refused(file, "holds a list")
    as_torch(file, {"a": [[1], 2]})
    refused(file, "'a' is a list")
    as_torch(file, {"a": {1, 2}})
    refused(file, "set")
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x", "y")
    refused(file, "0 pickles")
    save_torch({"a": np.ones((2, 3), np.float32)}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])
    refused(file, "as since 1.6")
    file.write_bytes(whole)
    with zipfile.ZipFile(file) as archive:
        text, data = archive.read("archive/data.pkl"), archive.read("archive/data/0")
    three, many = b"\x8a\x08\x03", b"\x8a\x08\x63"
    for edited, numbers in ((text.replace(three, many), data), (text, data[:-4])):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", edited)
            archive.writestr("archive/data/0", numbers)
        with pytest.raises(LoadError, match="does not lie in its storage"):
            TorchFile(file).read("a")
    with pytest.raises(LoadError, match="does not exist"):
        TorchFile(tmp_path / "none.pt")


def rewritten(source, file, change):
    """Copies a zip of weights with another pickle."""
    with zipfile.ZipFile(source) as archive:
        items = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in items.items():
            archive.writestr(name, change(data) if name.endswith(".pkl") else data)
    return file


def test_broken_pickles_meet_our_errors(tmp_path):
    source, file = GOLDEN / "views.pt", tmp_path / "a.pt"
    random = np.random.default_rng(0)

    def damage(data):
        at, size = random.integers(len(data)), random.integers(1, 4)
        return data[:at] + random.bytes(size) + data[at + random.integers(0, 4) :]

    outcomes = []
    for _ in range(200):
        rewritten(source, file, damage)
        try:
            found = TorchFile(file)
            outcomes.append(all(found.read(n) is not None for n in found.shapes))
        except LoadError as error:
            outcomes.append(str(error))
    told = [text for text in outcomes if text is not True]
    assert len(told) > 100
    assert not any("\n" in text for text in told)
    # A dict in itself, a place of memory for billions, a class with a state.
    endless, many = (
        b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.",
        b"\x80\x02}r\xff\xff\xff\x7f.",
    )
    for text, word in (
        (endless, "without an end"),
        (many, "remembers more"),
        (b"(cos\nsystem\nX\x02\x00\x00\x00lso.", "instruction OBJ"),
    ):
        refused(rewritten(source, file, lambda _, text=text: text), word)


def refused(file, word):
    with pytest.raises(LoadError) as caught:
        TorchFile(file)
    one_line(caught, word, file)


@pytest.mark.parametrize("dtype", ["float64", "float16", jnp.bfloat16, "int64", "bool"])
def test_torch_files_keep_dtypes(dtype, tmp_path):
    array = np.array([[0, 1, 2], [3, 0, 5]]).astype(dtype)
    content = {"a": array, "b": {"k": 7, "name": "é"}, "c": array[0, 1]}
    save_torch(content, tmp_path / "a.pt")
    file = TorchFile(tmp_path / "a.pt")
    np.testing.assert_array_equal(file.read("a"), array)
    assert file.read("a").dtype == array.dtype
    assert file.read("c").shape == ()
    assert file.values == {"b.k": 7, "b.name": "é"}


def test_strides_and_views_that_torch_wrote():
    file = TorchFile(GOLDEN / "views.pt")
    expected = arrays_of(GOLDEN / "views.pt.npz")
    assert sorted(file.shapes) == sorted(expected)
    for name in expected:
        found = file.read(name)
        np.testing.assert_array_equal(found.astype(np.float64), expected[name])
    assert file.read("half").dtype == jnp.bfloat16
    old = TorchFile(GOLDEN / "legacy.pt")
    np.testing.assert_array_equal(old.read("a"), np.ones(3, np.float32))
    with pytest.raises(LoadError, match="does not lie in its storage"):
        TorchFile(GOLDEN / "expanded.pt").read("a")


def test_files_of_torch_before_1_6_that_are_refused(tmp_path):
    whole, file = (GOLDEN / "legacy.pt").read_bytes(), tmp_path / "a.pt"
    file.write_bytes(whole[:-4])
    with pytest.raises(LoadError, match="goes beyond its end"):
        TorchFile(file).read("a")
    magic, machine = whole[:15], pickle.dumps({"little_endian": True}, protocol=2)
    version = b"\x80\x02M\xe9\x03."
    call = b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R."
    file.write_bytes(magic + version + machine + call)
    refused(file, "asks for 'os.system'")
    file.write_bytes(magic + version[:-2] + b"\x04." + machine)
    refused(file, "is not a whole file of weights")
    random, outcomes = np.random.default_rng(1), []
    for _ in range(200):
        at = random.integers(15, len(whole))
        file.write_bytes(whole[:at] + random.bytes(2) + whole[at + 2 :])
        try:
            found = TorchFile(file)
            outcomes.append(all(found.read(n) is not None for n in found.shapes))
        except LoadError as error:
            outcomes.append(str(error))
    told = [text for text in outcomes if text is not True]
    assert len(told) > 50
    assert not any("\n" in text for text in told)
