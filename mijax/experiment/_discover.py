"""Where experiments and their configs lie."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import mijax
from mijax._errors import ConfigError, nearest
from mijax.experiment._yaml import Document, read_yaml, shown

SCRIPT = "experiment.py"
SIZES = ("tiny", "small", "full")


@dataclass(frozen=True)
class Entry:
    """One config that can be run.

    Attributes:
        name: what `mijax run` calls it: `induction`, or `induction/train`.
        description: one line on what it shows.
        file: its YAML file.
        size: `tiny`, `small` or `full`, where it says so.
    """

    name: str
    description: str
    file: Path
    size: str = ""


@dataclass(frozen=True)
class Found:
    """A config together with the experiment that it is for.

    Attributes:
        name: short name, as in `Entry`.
        folder: the folder with `experiment.py`.
        reference: the `experiment:` key under which the folder is found from
            anywhere: its name when mijax ships it, else its absolute path.
        document: the config, or None for a folder that has none.
    """

    name: str
    folder: Path
    reference: str
    document: Document | None


def shipped_folder() -> Path:
    """The folder of the experiments that come with mijax.

    Returns:
        `mijax/_experiments` of an installed package, `experiments` of a checkout.
    """
    package = Path(mijax.__file__).resolve().parent
    installed = package / "_experiments"
    return installed if installed.is_dir() else package.parent / "experiments"


def entries() -> list[Entry]:
    """Every config that comes with mijax, by name.

    Returns:
        One entry per YAML file; a file that cannot be read says so in its description.

    Examples:
        >>> all(entry.file.suffix == ".yaml" for entry in entries())
        True
    """
    found = []
    for script in sorted(shipped_folder().glob(f"*/{SCRIPT}")):
        for file in sorted(script.parent.glob("*.yaml")):
            size: object = ""
            try:
                values = read_yaml(file).value
                description = values.get("description") or ""
                size = values.get("size") or ""
            except ConfigError as error:
                description = f"cannot be read: {error}"
            text = " ".join(str(description).split())
            found.append(Entry(_name(script.parent, file), text, file, str(size)))
    return sorted(found, key=lambda entry: entry.name)


def find(source: str | Path) -> Found:
    """Finds an experiment by name, by the path of a config, or by its own folder.

    Args:
        source: `induction`, `induction/train`, `my/config.yaml`, the same without
            `.yaml`, or a folder with an `experiment.py`.

    Returns:
        The config and the experiment that it is for.

    Raises:
        ConfigError: when there is no such experiment or config.
    """
    names = {entry.name: entry.file for entry in entries()}
    if str(source) in names:
        return _from_file(names[str(source)])
    path = Path(source)
    if path.suffix in (".yaml", ".yml"):
        return _from_file(path.absolute())
    if (path / SCRIPT).is_file():
        return _from_folder(path.resolve())
    config = Path(f"{source}.yaml")
    if config.is_file():
        return _from_file(config.absolute())
    close = difflib.get_close_matches(str(source), [*names, *_here()])
    raise ConfigError(
        f"no experiment {str(source)!r}; expected a name from `mijax list`, a YAML "
        f"file or a folder with {SCRIPT}." + nearest(str(source), close)
    )


def _here() -> list[str]:
    """What can be run in the current folder."""
    found = []
    for script in Path().glob(f"*/{SCRIPT}"):
        folder = script.parent
        found += [folder.name, *(_name(folder, file) for file in folder.glob("*.yaml"))]
    return list(dict.fromkeys(found))


def _from_folder(folder: Path) -> Found:
    files = sorted(folder.glob("*.yaml"))
    default = folder / f"{folder.name}.yaml"
    if default in files or len(files) == 1:
        return _from_file(default if default in files else files[0])
    if files:
        choices = ", ".join(shown(file) for file in files)
        raise ConfigError(
            f"{shown(folder)} has several configs and none is called "
            f"{default.name}; run one of: {choices}."
        )
    return Found(folder.name, folder, str(folder), None)


def _from_file(file: Path) -> Found:
    document = read_yaml(file)
    wanted = document.value.get("experiment")
    if not isinstance(wanted, str):
        raise document.error(
            ("experiment",),
            "the key 'experiment' must name the experiment, "
            + (f"got {wanted!r}." if "experiment" in document.value else "add it."),
        )
    folder = _folder(wanted, document)
    name = _name(folder, file)
    if (file.parent / "record.json").is_file():
        # The config of a finished run: running it again must not replace that run.
        name = f"{file.parent.name}-again"
    shipped = folder.parent == shipped_folder().resolve()
    reference = folder.name if shipped else str(folder)
    return Found(name, folder, reference, document)


def _folder(wanted: str, document: Document) -> Path:
    """The experiment folder that a config's `experiment:` key means."""
    beside = document.path.parent.resolve()
    shipped = shipped_folder()
    candidates = [beside / wanted, shipped / wanted]
    if wanted == beside.name:
        candidates.insert(0, beside)
    for folder in candidates:
        if (folder / SCRIPT).is_file():
            return folder.resolve()
    options = {script.parent.name for script in shipped.glob(f"*/{SCRIPT}")}
    options |= {script.parent.name for script in beside.glob(f"*/{SCRIPT}")}
    if (beside / SCRIPT).is_file():
        options.add(beside.name)
    raise document.error(
        ("experiment",),
        f"no experiment {wanted!r}: neither one that mijax ships nor a folder with "
        f"{SCRIPT} beside this file." + nearest(wanted, sorted(options)),
    )


def _name(folder: Path, file: Path) -> str:
    same = file.stem == folder.name
    return folder.name if same else f"{folder.name}/{file.stem}"
