"""Goldens of ROME, MEMIT and AlphaEdit from their published code.

Needs torch and transformers (made with torch 2.13 and transformers 5.24), and checkouts
of kmeng01/rome@0874014, kmeng01/memit@80426fd and jianghoucheng/AlphaEdit@f5248d3:

    python make_editing.py ROME_FOLDER MEMIT_FOLDER ALPHAEDIT_FOLDER

The code runs on a random GPT-2 with one word per token, in float64. It is changed as
far as that needs: no CUDA, no downloads, covariances and contexts given, and blocks
that return a tensor (as in transformers 5) in place of a tuple.
"""

import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel

HERE = Path(__file__).parent
CASE = json.loads((HERE / "case.json").read_text())


def draws():
    """Weights by their name in GPT-2's files; `test_rewrite.py` draws the same."""
    random, sizes = np.random.RandomState(0), CASE["config"]
    embed, inner = sizes["n_embd"], sizes["n_inner"]
    shapes = {
        "wte.weight": (sizes["vocab_size"], embed),
        "wpe.weight": (sizes["n_positions"], embed),
        "ln_f.weight": (embed,),
        "ln_f.bias": (embed,),
    }
    for i in range(sizes["n_layer"]):
        for name, shape in {
            "ln_1.weight": (embed,),
            "ln_1.bias": (embed,),
            "attn.c_attn.weight": (embed, 3 * embed),
            "attn.c_attn.bias": (3 * embed,),
            "attn.c_proj.weight": (embed, embed),
            "attn.c_proj.bias": (embed,),
            "ln_2.weight": (embed,),
            "ln_2.bias": (embed,),
            "mlp.c_fc.weight": (embed, inner),
            "mlp.c_fc.bias": (inner,),
            "mlp.c_proj.weight": (inner, embed),
            "mlp.c_proj.bias": (embed,),
        }.items():
            shapes[f"h.{i}.{name}"] = shape
    found = {}
    for name, shape in shapes.items():
        is_norm = name.endswith(("1.weight", "2.weight", "f.weight"))
        scale = 1.0 if name == "wte.weight" else 0.2
        found[name] = (scale * random.randn(*shape) + is_norm).astype(np.float32)
    return found


def moments():
    """Second moments of keys, one per layer; `test_rewrite.py` draws the same."""
    random, inner = np.random.RandomState(1), CASE["config"]["n_inner"]
    rows = random.randn(CASE["config"]["n_layer"], 3 * inner, inner)
    rows *= np.linspace(0.05, 1, inner)
    return np.einsum("lnk,lnj->lkj", rows, rows).astype(np.float32) / (3 * inner)


class Ids(dict):
    def to(self, device):
        return self

    def __getitem__(self, key):
        return self.rows[key] if isinstance(key, slice) else super().__getitem__(key)


class Words:
    """One word per token."""

    bos_token_id = unk_token_id = None

    def ids(self, text):
        return [CASE["words"].index(word) for word in text.split()]

    encode = ids

    def __call__(self, text, return_tensors=None, padding=False):
        rows = [self.ids(t) for t in ([text] if isinstance(text, str) else text)]
        if isinstance(text, str) and return_tensors is None:
            return {"input_ids": rows[0]}
        longest = max(map(len, rows))
        found = Ids(
            input_ids=torch.tensor([r + [0] * (longest - len(r)) for r in rows]),
            attention_mask=torch.tensor(
                [[1] * len(r) + [0] * (longest - len(r)) for r in rows]
            ),
        )
        found.rows = rows
        return found

    def decode(self, ids):
        ids = [int(i) for i in (ids if len(torch.as_tensor(ids).shape) else [ids])]
        return "".join(f" {CASE['words'][i]}" for i in ids)


CHANGES = [
    ('.to("cuda")', ""),
    (', device="cuda"', ""),
    ('device="cuda"', 'device="cpu"'),
    (".cuda()", ""),
    ("from matplotlib.style import context\n", ""),
    ("cur_out[0][i, idx, :] += delta", "cur_out[i, idx, :] += delta"),
    ("cur_out[0][0, lookup_idxs[0]]", "cur_out[0, lookup_idxs[0]]"),
    ("if len(lookup_idxs)!=len(cur_out[0]):", "if False:"),
    (".output[0]", ".output"),
    (".float()", ""),
    ("dtype=torch.float,", "dtype=torch.float64,"),
    ("torch.cuda.empty_cache()", "pass"),
]
MODULES = {
    "rome": ("compute_u", "compute_v", "rome_main"),
    "memit": ("compute_z", "compute_ks", "memit_main"),
    "AlphaEdit": ("compute_z", "compute_ks", "AlphaEdit_main"),
}


def load(folder, package):
    """Import a package of a checkout with the changes above; return its main module."""
    names = ["util", "util.globals", "util.generate", "rome", "rome.layer_stats"]
    for name in [*names, package, *(f"{p}.{p}_hparams" for p in MODULES)]:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = []
    sys.modules["util.globals"].STATS_DIR = "."
    sys.modules["util.generate"].generate_fast = None
    sys.modules["rome.layer_stats"].layer_stats = None
    kind = {"rome": "ROME", "memit": "MEMIT", "AlphaEdit": "AlphaEdit"}[package]
    setattr(sys.modules[f"{package}.{package}_hparams"], f"{kind}HyperParams", object)
    mine = (f"{package}.{name}" for name in MODULES[package])
    for name in ("util.nethook", "rome.repr_tools", *mine):
        text = (Path(folder) / f"{name.replace('.', '/')}.py").read_text()
        for old, new in CHANGES:
            text = text.replace(old, new)
        module = types.ModuleType(name)
        module.__package__, child = name.split(".")
        sys.modules[name] = module
        setattr(sys.modules[module.__package__], child, module)
        exec(compile(text, name, "exec"), vars(module))
    return module


def gpt2():
    model = GPT2LMHeadModel(GPT2Config(**CASE["config"]))
    state = {f"transformer.{k}": torch.tensor(v) for k, v in draws().items()}
    missing = model.load_state_dict(state, strict=False).missing_keys
    assert set(missing) <= {"lm_head.weight"}, missing
    model.tie_weights()
    return model.double().eval()


def settings(method):
    given = {
        "fact_token": "subject_last",
        "v_loss_layer": CASE["config"]["n_layer"] - 1,
        "mom2_adjustment": True,
        "mom2_dataset": "",
        "mom2_n_samples": 0,
        "mom2_dtype": "float32",
        "context_template_length_params": [],
        "rewrite_module_tmp": "transformer.h.{}.mlp.c_proj",
        "layer_module_tmp": "transformer.h.{}",
        "mlp_module_tmp": "transformer.h.{}.mlp",
        "ln_f_module": "transformer.ln_f",
        "lm_head_module": "transformer.wte",
    }
    return types.SimpleNamespace(**given, **CASE[method])


def requests():
    return [
        {
            "prompt": fact["prompt"],
            "subject": fact["subject"],
            "target_new": {"str": fact["target"]},
            "case_id": 0,
        }
        for fact in CASE["facts"]
    ]


def rome(folder):
    module = load(folder, "rome")
    module.CONTEXT_TEMPLATES_CACHE = CASE["contexts"]
    model, tok, given = gpt2(), Words(), settings("rome")
    inverses = sys.modules["rome.compute_u"].inv_mom2_cache
    for layer, value in enumerate(moments()):
        name = f"transformer.h.{layer}.mlp.c_proj"
        inverses[("", name)] = torch.inverse(torch.tensor(value).double())
    found = {}
    for i, request in enumerate(requests()):
        deltas = module.execute_rome(model, tok, request, given)
        ((name, (u, right)),) = deltas.items()
        with torch.no_grad():
            model.get_parameter(name)[...] += u[:, None] @ right[None]
        found |= {f"rome.u{i}": u.numpy(), f"rome.right{i}": right.numpy()}
    return found


def memit(folder):
    module = load(folder, "memit")
    module.CONTEXT_TEMPLATES_CACHE = CASE["groups"]
    for layer, value in enumerate(moments()):
        name = f"transformer.h.{layer}.mlp.c_proj"
        module.COV_CACHE[("", name)] = torch.tensor(value).double()
    deltas = module.execute_memit(gpt2(), Words(), requests(), settings("memit"))
    return {
        f"memit.delta{i}": (key @ value.T).numpy()
        for i, (key, value) in enumerate(deltas.values())
    }


def alphaedit(folder):
    """Two rounds: two facts, then the third."""
    module = load(folder, "AlphaEdit")
    module.CONTEXT_TEMPLATES_CACHE = CASE["groups"]
    model, given = gpt2(), settings("alphaedit")
    chosen, free = [torch.tensor(moments()[i]).double() for i in given.layers], []
    for moment in chosen:
        # As experiments/evaluate.py does, whose function cannot be imported alone.
        vectors, values, _ = torch.linalg.svd(moment, full_matrices=False)
        small = vectors[:, values < given.nullspace_threshold]
        free.append(small @ small.T)
    past, found = torch.zeros_like(torch.stack(free)), {}
    names = [f"transformer.h.{i}.mlp.c_proj.weight" for i in given.layers]
    for turn, few in enumerate((requests()[:2], requests()[2:])):
        before = [model.get_parameter(name).detach().clone() for name in names]
        model, past = module.apply_AlphaEdit_to_model(
            model, Words(), few, given, cache_c=past, P=torch.stack(free)
        )
        for i, name in enumerate(names):
            delta = model.get_parameter(name).detach() - before[i]
            found[f"alphaedit.delta{turn}{i}"] = delta.numpy()
    return found


if __name__ == "__main__":
    found = rome(sys.argv[1]) | memit(sys.argv[2]) | alphaedit(sys.argv[3])
    found = {name: value.astype(np.float32) for name, value in found.items()}
    np.savez_compressed(HERE / "editing.npz", **found)
    for name, value in found.items():
        print(name, value.shape, float(np.linalg.norm(value)))
