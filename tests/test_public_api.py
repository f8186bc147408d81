"""Every public name is documented, is on the API page, and its examples run."""

import ast
import doctest
import importlib
import inspect
import re
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import pytest

import mijax

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "mijax"
PACKAGES = (
    "mijax",
    *(
        f"mijax.{file.parent.name}"
        for file in sorted(SOURCE.glob("*/__init__.py"))
        if file.parent.name not in ("cli", "_experiments")
    ),
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def exported(package):
    """Names that a package's `__init__` re-exports, `from ._x import X as X`."""
    file = SOURCE.joinpath(*package.split(".")[1:], "__init__.py")
    if not file.exists():
        return []
    tree = ast.parse(file.read_text())
    return [
        alias.asname
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname is not None
    ]


PUBLIC = [(package, name) for package in PACKAGES for name in exported(package)]
FILES = sorted(f for f in SOURCE.rglob("*.py") if "_experiments" not in f.parts)


def value_of(package, name):
    return getattr(importlib.import_module(package), name)


def entries():
    page = (ROOT / "docs" / "api.md").read_text()
    return set(re.findall(r"^::: (\S+)$", page, re.MULTILINE))


def undocumented(package, name):
    """Return the paths without a docstring: the name, methods and properties."""
    value = value_of(package, name)
    if isinstance(value, ModuleType) or not (
        inspect.isclass(value) or inspect.isroutine(value)
    ):
        return []  # a constant or an alias of a type: the API page says what it is
    found = [] if own_doc(value) else [f"{package}.{name}"]
    if not inspect.isclass(value):
        return found
    fields = getattr(value, "__dataclass_fields__", ())
    for member, part in vars(value).items():
        kind = (staticmethod, classmethod, property)
        method = inspect.isroutine(part) or isinstance(part, kind)
        if member.startswith("_") or member in fields or not method:
            continue
        if not inspect.getdoc(getattr(value, member)):
            found.append(f"{package}.{name}.{member}")
    return found


def test_docstrings():
    assert [path for pair in PUBLIC for path in undocumented(*pair)] == []


def own_doc(value):
    """The docstring, if it was written and not made by `dataclass`."""
    doc = value.__doc__ or ""
    made = doc.startswith(f"{value.__name__}(") and "\n" not in doc
    return "" if made else doc


def test_entries_on_the_api_page():
    """A name that several packages export is listed under one of them."""
    homes = defaultdict(set)
    for package, name in PUBLIC:
        homes[name, id(value_of(package, name))].add(f"{package}.{name}")
    listed = entries()
    assert [sorted(paths) for paths in homes.values() if not paths & listed] == []


def test_entries_exist_once():
    page = (ROOT / "docs" / "api.md").read_text()
    listed = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    assert len(listed) == len(set(listed))
    public = {f"{package}.{name}" for package, name in PUBLIC}
    assert set(listed) <= public


@pytest.mark.parametrize("package", PACKAGES[1:])
def test_subpackages_come_with_the_root(package):
    """`import mijax` is enough to write `mijax.<package>`."""
    name = package.removeprefix("mijax.")
    assert mijax.__getattr__(name) is importlib.import_module(package)


def test_importing_mijax_is_light():
    """What `import mijax` may not import is not imported at the top of the core."""
    heavy = "torch|transformers|matplotlib|flax|penzai|orbax|tyro|pydantic|grain"
    for package in ("mijax", "mijax.core"):
        folder = SOURCE.joinpath(*package.split(".")[1:])
        for file in folder.glob("*.py"):
            found = re.search(rf"^(import|from) ({heavy})\b", file.read_text(), re.M)
            assert found is None, f"{file.name}: {found and found[0]}"


def examples(file):
    """The docstring examples of a file, whatever wraps the objects at run time."""
    module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    module = module.removesuffix(".__init__")
    parser = doctest.DocTestParser()
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef
        doc = ast.get_docstring(node) if isinstance(node, kinds) else None
        if doc and ">>>" in doc:
            name = f"{module}.{getattr(node, 'name', '')}"
            line = getattr(node, "lineno", 1)
            found.append(parser.get_doctest(doc, {}, name, str(file), line))
    return module, found


WITH_EXAMPLES = [f for f in FILES if ">>>" in f.read_text() and f.name != "__main__.py"]


@pytest.mark.parametrize(
    "file", WITH_EXAMPLES, ids=lambda f: f.relative_to(SOURCE).as_posix()
)
def test_examples(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module, found = examples(file)
    runner = doctest.DocTestRunner(optionflags=FLAGS, verbose=False)
    report = []
    for test in found:
        test.globs = dict(vars(importlib.import_module(module)))
        test.globs |= {"jax": jax, "jnp": jnp, "mijax": mijax}
        runner.run(test, out=report.append)
    assert not runner.summarize(verbose=False).failed, "".join(report)
