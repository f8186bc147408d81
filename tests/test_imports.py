"""Packages share public names and `mijax.<package>.internal`, nothing else."""

import ast
from pathlib import Path

import pytest

MIJAX = Path(__file__).parent.parent / "mijax"


def imported(file):
    """Return the dotted names that a module imports, at any depth of its code."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.fixture(scope="module")
def imports():
    """Imports of each module, by its path below `mijax`."""
    files = (file.relative_to(MIJAX) for file in sorted(MIJAX.rglob("*.py")))
    return {f: imported(MIJAX / f) for f in files if f.parts[0] != "_experiments"}


def private_elsewhere(name, package):
    """True if a dotted name is inside an underscore module of another package."""
    root, home, *rest = [*name.split("."), ""]
    private = any(part.startswith("_") for part in rest)
    return root == "mijax" and home != package and private


def test_no_package_imports_private_modules_of_another(imports):
    found = [
        f"{file}: {name}"
        for file, names in imports.items()
        for name in names
        if private_elsewhere(name, file.parts[0])
    ]
    assert found == []


def test_internal_names_are_used_by_other_packages(imports):
    used = {name for names in imports.values() for name in names}
    shared = [
        f"mijax.{file.parts[0]}.internal.{name.rsplit('.', 1)[1]}"
        for file, names in imports.items()
        if file.name == "internal.py"
        for name in names
    ]
    assert [name for name in shared if name not in used] == []
