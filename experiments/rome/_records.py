"""Facts to rewrite, from CounterFact's file or from relations of the LRE data set."""

import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mijax._errors import ConfigError
from mijax.editing import Fact, Queries
from mijax.io import digest
from mijax.models import Loaded

# Prompts about other subjects that are kept per fact, as in CounterFact.
NEIGHBORS, RELATED = 10, 6

Record = tuple[Fact, tuple[Fact, ...]]


def records(
    data: str,
    relations: Sequence[str],
    loaded: Loaded,
    *,
    facts: int,
    considered: int,
    seed: int,
) -> tuple[list[Record], str]:
    """Return facts with other facts of their relation, and the digest of the data.

    Args:
        data: `counterfact.json`, or a folder or tar file with files of relations.
        relations: names of files of relations, without ending.
        loaded: the model; of relations, it has to know an answer.
        facts: number of facts.
        considered: subjects of a relation that the model is asked about.
        seed: of the choice.

    Raises:
        ConfigError: data that are not there, or too few known answers.
    """
    path = Path(data)
    if not path.exists():
        raise ConfigError(
            f"--data {data} does not exist: see the experiment's docstring."
        )
    if path.suffix == ".json":
        found = counterfact(json.loads(path.read_text()), facts)
        return found, digest([path])
    files = read(path, relations)
    found = []
    each = -(-facts // len(relations))
    for name in relations:
        made = of_relation(files[name], loaded, each, considered, seed)
        found += made
    if len(found) < facts:
        raise ConfigError(
            f"The model knows {len(found)} facts of these relations, {facts} are asked "
            "for: give more relations, or consider more subjects."
        )
    parts = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    return found[:facts], digest(parts)


def counterfact(content: Sequence[dict[str, Any]], facts: int) -> list[Record]:
    """Return the first facts of CounterFact's file."""
    found = []
    for one in content[:facts]:
        request = one["requested_rewrite"]
        fact = Fact(
            request["prompt"],
            request["subject"],
            request["target_new"]["str"],
            request["target_true"]["str"],
            paraphrases=tuple(one["paraphrase_prompts"]),
            neighbors=tuple(one["neighborhood_prompts"]),
        )
        found.append((fact, ()))
    return found


def read(path: Path, relations: Sequence[str]) -> dict[str, Any]:
    """Read files of relations from a folder or a tar file."""
    found: dict[str, Any] = {}
    if path.is_dir():
        for file in path.rglob("*.json"):
            if file.stem in relations:
                found[file.stem] = json.loads(file.read_text())
    else:
        with tarfile.open(path) as archive:
            for member in archive.getmembers():
                name = Path(member.name).stem
                stream = archive.extractfile(member) if name in relations else None
                if stream is not None:
                    found[name] = json.loads(stream.read())
    missing = sorted(set(relations) - set(found))
    if missing:
        raise ConfigError(f"{path} has no relation {missing[0]!r}.")
    return found


def of_relation(
    relation: dict[str, Any], loaded: Loaded, facts: int, considered: int, seed: int
) -> list[Record]:
    """Make records of the subjects whose answer the model knows."""
    random = np.random.default_rng(seed)
    templates = [*relation["prompt_templates_zs"], *relation["prompt_templates"]]
    templates = list(dict.fromkeys(templates))
    samples = relation["samples"]
    order = random.permutation(len(samples))[:considered]
    samples = [samples[i] for i in order]
    pairs = [
        (templates[0].replace("{}", s["subject"]), f" {s['object']}") for s in samples
    ]
    right = Queries.of(loaded.tokenizer, pairs).score(loaded.model, 32)[1]
    known = [s for s, fine in zip(samples, right, strict=True) if fine]
    answers = sorted({s["object"] for s in known})
    found = []
    for sample in known if len(answers) > 1 else []:
        subject, true = sample["subject"], sample["object"]
        others = [s for s in known if s is not sample]
        same = [s["subject"] for s in others if s["object"] == true][:NEIGHBORS]
        apart = [s for s in others if s["object"] != true][:RELATED]
        new = str(random.choice([answer for answer in answers if answer != true]))
        fact = Fact(
            templates[0],
            subject,
            new,
            true,
            paraphrases=tuple(t.replace("{}", subject) for t in templates[1:3]),
            neighbors=tuple(templates[0].replace("{}", name) for name in same),
        )
        rest = tuple(Fact(templates[0], s["subject"], s["object"]) for s in apart)
        # Facts with neighbors first: what happens to them is half of the question.
        found.append((fact, rest))
    return sorted(found, key=lambda record: -bool(record[0].neighbors))[:facts]
