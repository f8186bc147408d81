"""ACDC on compiled programs: the true edges and the published operating points.

Needs a checkout of github.com/ArthurConmy/Automatic-Circuit-Discovery (commit
bc99ace8) and the Python standard library; reads its result files and the literal
edge lists of `acdc/tracr_task/utils.py`, runs none of its code:

    python tests/golden/make_acdc.py PATH_OF_CHECKOUT

Writes `acdc/roc.json`; see acdc/README.md for what is in it.
"""

import ast
import json
import math
import re
import sys
from pathlib import Path

OUT = Path(__file__).parent / "acdc" / "roc.json"
SOURCE = "ArthurConmy/Automatic-Circuit-Discovery@bc99ace8"
PROGRAMS = {"reverse": "reverse", "xproportion": "proportion"}
EMBED = {"hook_embed": "token", "hook_pos_embed": "position"}
RATES = ("edge_fpr", "edge_tpr", "node_fpr", "node_tpr")
KEPT = ("n_edges", "n_nodes", "steps")


def main(checkout: Path) -> None:
    """Reads a checkout and writes the golden."""
    utils = ast.parse((checkout / "acdc/tracr_task/utils.py").read_text())
    golden = {
        "source": SOURCE,
        "edges": {
            ours: true_edges(utils, f"get_tracr_{theirs}_edges")
            for ours, theirs in PROGRAMS.items()
        },
        "points": {ours: points(checkout, theirs) for ours, theirs in PROGRAMS.items()},
    }
    OUT.parent.mkdir(exist_ok=True)
    text = json.dumps(golden, indent=1)
    # One list a line.
    text = re.sub(r"\[\s+([^\[\]]*?)\s+\]", lambda m: f"[{flat(m[1])}]", text)
    OUT.write_text(text + "\n")


def true_edges(utils: ast.Module, function: str) -> dict[str, list]:
    """Translates the literal list that a function returns."""
    (body,) = (
        node
        for node in utils.body
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    (call,) = (node.value for node in body.body if isinstance(node, ast.Return))
    edges: dict[str, list] = {"stream": [], "direct": []}
    for (receiver, at, sender, source), _ in map(quadruple, literal(call)):
        if (name := receiver_name(receiver, at)) is not None:
            edges["stream"].append([sender_name(sender, source), name])
        elif re.fullmatch(r"blocks\.\d+\.attn\.hook_[qkv]", receiver):
            edges["direct"].append(receiver_name(sender, source))
    return edges


def literal(call: ast.expr) -> list:
    """The argument of `OrderedDict([...])`."""
    assert isinstance(call, ast.Call)
    return ast.literal_eval(call.args[0])


def quadruple(entry: tuple) -> tuple:
    """`((receiver, index, sender, index), present)`."""
    key, present = entry
    assert len(key) == 4
    assert present is True
    return key, present


def receiver_name(hook: str, index: tuple) -> str | None:
    """Our name of a hook that reads the residual stream, or `None`."""
    if match := re.fullmatch(r"blocks\.(\d+)\.hook_([qkv])_input", hook):
        return f"a{match[1]}.h{index[2]}<{match[2]}>"
    if match := re.fullmatch(r"blocks\.(\d+)\.hook_mlp_in", hook):
        return f"m{match[1]}"
    return "logits" if hook.endswith("hook_resid_post") else None


def sender_name(hook: str, index: tuple) -> str:
    """Our name of a hook that writes to the residual stream."""
    if match := re.fullmatch(r"blocks\.(\d+)\.attn\.hook_result", hook):
        return f"a{match[1]}.h{index[2]}"
    if match := re.fullmatch(r"blocks\.(\d+)\.hook_mlp_out", hook):
        return f"m{match[1]}"
    return EMBED[hook]


def points(checkout: Path, task: str) -> dict[str, list]:
    """The points of the only committed run of compiled weights: random ablation."""
    name = f"experiments/results/plots_data/acdc-tracr-{task}-l2-False-0.json"
    found = json.loads((checkout / name).read_text())
    run = found["trained"]["random_ablation"][f"tracr-{task}"]["l2"]["ACDC"]
    ran = [i for i, score in enumerate(run["score"]) if math.isfinite(score)]
    columns = {"threshold": "score", **{key: key for key in (*RATES, *KEPT)}}
    return {ours: [run[key][i] for i in ran] for ours, key in columns.items()}


def flat(text: str) -> str:
    """Joins lines."""
    return " ".join(text.split())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
