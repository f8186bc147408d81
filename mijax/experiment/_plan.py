"""An experiment ready to run: script, resolved config, published numbers."""

import hashlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

import mijax
from mijax._errors import ConfigError, nearest
from mijax.core.internal import digest
from mijax.experiment._config import (
    Config,
    ConfigFile,
    Expected,
    check_names,
    explain,
    parse,
)
from mijax.experiment._discover import SCRIPT, find
from mijax.experiment._overrides import override
from mijax.experiment._yaml import Document, dump_yaml, shown


@dataclass(frozen=True)
class Plan:
    """An experiment with every choice made.

    Attributes:
        name: short name, as `mijax list` prints it.
        reference: the `experiment:` key that finds the folder from anywhere.
        description: one line on what it shows.
        about: docstring of the script: paper, claim, command, run time.
        config: the resolved config.
        expected: the published numbers by name.
        code: SHA-256 of the folder's Python files and of mijax's version.
        function: `run` of the script, called with the config and a `Run`.
    """

    name: str
    reference: str
    description: str
    about: str
    config: Config
    expected: Mapping[str, Expected] = field(default_factory=dict)
    code: str = field(kw_only=True)
    function: Callable[[Any, Any], object] = field(kw_only=True)

    @property
    def digest(self) -> str:
        """SHA-256 of the experiment and its config."""
        values = [self.reference, self.config.model_dump(mode="json")]
        text = json.dumps(values, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def yaml(self) -> str:
        """The complete config, as a file that runs from anywhere."""
        expected = {
            name: entry.model_dump(mode="json", exclude_none=True)
            for name, entry in self.expected.items()
        }
        return dump_yaml(
            {
                "experiment": self.reference,
                "description": self.description,
                "config": self.config.model_dump(mode="json"),
                "expected": expected,
            }
        )

    def override(self, changes: Sequence[str] | Mapping[str, object]) -> "Plan":
        """The same experiment with some values of its config changed.

        Args:
            changes: command-line words (`["--prompts", "8"]`), or values by name.

        Returns:
            A new plan.

        Raises:
            ConfigError: on an unknown name or a value of the wrong type.
        """
        if isinstance(changes, Mapping):
            return replace(self, config=_updated(self.config, changes))
        return replace(self, config=override(self.config, changes))


def load(source: str | Path) -> Plan:
    """Finds an experiment, loads its script and checks its config.

    Args:
        source: a name from `mijax list`, a YAML file, or a folder with an
            `experiment.py`.

    Returns:
        The plan.

    Raises:
        ConfigError: when the experiment does not exist or its config does not fit.
    """
    found = find(source)
    document = found.document or Document(found.folder / SCRIPT, {}, {})
    # A section without entries (`expected:` and nothing more) is an empty one.
    given = {key: value for key, value in document.value.items() if value is not None}
    values = {"experiment": found.reference} | given
    file = parse(ConfigFile, values, document=document)
    script = _script(found.folder / SCRIPT)
    model = getattr(script, "Config", None)
    if not (isinstance(model, type) and issubclass(model, Config)):
        raise ConfigError(
            f"{shown(found.folder / SCRIPT)} needs a class Config that derives from "
            "mijax.experiment.Config."
        )
    check_names(model)
    function = getattr(script, "run", None)
    if not callable(function):
        raise ConfigError(
            f"{shown(found.folder / SCRIPT)} needs a function run(config, run)."
        )
    return Plan(
        name=found.name,
        reference=found.reference,
        description=" ".join(file.description.split()),
        about=inspect.cleandoc(script.__doc__ or ""),
        config=parse(model, file.config, document=document, place=("config",)),
        expected=file.expected,
        code=_code(found.folder),
        function=function,
    )


def _code(folder: Path) -> str:
    """The digest of the files that a script can import from beside it."""
    files = {
        str(file.relative_to(folder)): file.read_bytes() for file in _files(folder)
    }
    return digest((mijax.__version__, files))


def _files(folder: Path) -> list[Path]:
    """Python files of a folder and of its folders that have some, but hidden ones."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if path.suffix == ".py" and path.is_file():
            found.append(path)
        elif path.is_dir() and any(path.glob("*.py")):
            found += _files(path)
    return found


def _script(path: Path) -> ModuleType:
    """Loads a script as a package, so that it can import files beside it."""
    suffix = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    name = f"mijax_experiment_{suffix}"
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=[str(path.parent)]
    )
    if spec is None or spec.loader is None:
        raise ConfigError(f"cannot load {shown(path)} as Python.")
    module = importlib.util.module_from_spec(spec)
    # Pydantic looks up annotations and attribute docstrings by module name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _updated(config: Config, changes: Mapping[str, object]) -> Config:
    model = type(config)
    for name in changes:
        if name not in model.model_fields:
            raise ConfigError(
                f"unknown key {name!r} of the config."
                + nearest(name, model.model_fields)
            )
    try:
        text = json.dumps(_merged(config, changes), default=str)
        return model.model_validate_json(text)
    except ValidationError as error:
        raise ConfigError(explain(model, error)) from error


def _merged(config: BaseModel, changes: Mapping[str, object]) -> dict[str, object]:
    """Values of a config after changes; of a config inside, the others stay."""
    values = config.model_dump(mode="json")
    for name, change in changes.items():
        below = getattr(config, name, None)
        if (
            isinstance(below, BaseModel)
            and isinstance(change, Mapping)
            and _is_of_one_kind(type(config), name)
        ):
            change = _merged(below, change)  # noqa: PLW2901
        values[name] = change
    return values


def _is_of_one_kind(model: type[BaseModel], name: str) -> bool:
    """True if a field holds configs of one kind only."""
    annotation = model.model_fields[name].annotation
    kinds = get_args(annotation) or (annotation,)
    return sum(isinstance(k, type) and issubclass(k, BaseModel) for k in kinds) == 1
