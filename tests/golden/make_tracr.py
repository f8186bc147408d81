"""Compiles the two programs that come with the library.

Environment of its own: the library with its `tracr` extra (tracr-pypi 1.0.0,
dm-haiku 0.0.17, jax 0.10). No network:

    python tests/golden/make_tracr.py

Writes `mijax/testing/compiled/{reverse,xproportion}.{safetensors,json}`.
"""

from mijax.testing._tracr import BOS, FOLDER, PAD, SHIPPED, save_compiled
from mijax.testing._tracr_compile import compile_program

for name in SHIPPED:
    FOLDER.mkdir(exist_ok=True)
    save_compiled(compile_program(name, None, 5, bos=BOS, pad=PAD))
