"""Every code block of the docs runs, and shows what it says.

Python blocks of a page share a namespace and run in order. A line `expression  # value`
must give that value, and a block followed by a `text` block must print that text. A
block with a `title` is a file: it is written into the page's folder and not run. A
comment `<!-- needs: NAME -->` before a block says that it runs only where the model or
package NAME is there. Lines of `bash` blocks that begin with `mijax` must parse.
"""

import ast
import contextlib
import doctest
import functools
import importlib.util
import io
import linecache
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

import mijax
from mijax.cli import _main as commands

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(
    r"(?:^<!-- needs: (?P<needs>\S+) -->\n+)?"
    r"^```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<code>.*?)^```$"
    r"(?P<output>\n+```text\n(?P<text>.*?)^```$)?",
    re.MULTILINE | re.DOTALL,
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class Fence(NamedTuple):
    needs: str | None
    language: str
    title: str | None
    code: str
    text: str | None
    line: int


def fences(page):
    source = page.read_text()
    found = []
    for match in FENCE.finditer(source):
        title = re.search(r'title="([^"]+)"', match["options"])
        start = source.count("\n", 0, match.start("code"))
        found.append(
            Fence(
                match["needs"],
                match["language"],
                title and title[1],
                match["code"],
                match["text"],
                start,
            )
        )
    return found


@functools.cache
def there(name):
    if name.isidentifier() and importlib.util.find_spec(name):
        return True
    try:
        mijax.models.load(name)
    except (mijax.MijaxError, AttributeError):
        return False
    return True


def name_of(page):
    return page.relative_to(DOCS).as_posix()


def run_block(fence, page, namespace):
    name = f"<{name_of(page)}>"
    # Pages are read by inspect, for instance where a block defines a module.
    source = "\n" * fence.line + fence.code
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    tree = ast.parse(source, name)
    lines = source.splitlines()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for node in tree.body:
            comment = trailing_comment(lines[node.end_lineno - 1])
            if isinstance(node, ast.Expr) and comment is not None:
                value = eval(
                    compile(ast.Expression(node.value), name, "eval"), namespace
                )
                where = f"{name}:{node.lineno}"
                assert repr(value) == comment, f"{where}: {value!r}, docs say {comment}"
            else:
                exec(compile(ast.Module([node], []), name, "exec"), namespace)
    if fence.text is not None:
        checker = doctest.OutputChecker()
        same = checker.check_output(fence.text, printed.getvalue(), FLAGS)
        assert same, f"{name}:{fence.line} prints:\n{printed.getvalue()}"


def trailing_comment(line):
    """The comment at the end of a line, if it is a Python literal."""
    if "  # " not in line:
        return None
    comment = line.rsplit("  # ", 1)[1].strip()
    try:
        ast.literal_eval(comment)
    except (SyntaxError, ValueError):
        return None
    return comment


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    monkeypatch.setitem(sys.modules, "page", type(sys)("page"))
    for fence in fences(page):
        if fence.title is not None:
            path = tmp_path / fence.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fence.code)
        elif fence.language == "python" and (fence.needs is None or there(fence.needs)):
            run_block(fence, page, namespace)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda p: p.name)
def test_commands_parse(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parsed = []
    for module in commands._COMMANDS:
        monkeypatch.setattr(
            module,
            "_call",
            lambda arguments, rest: parsed.append((arguments, rest)) or 0,
        )
    for fence in fences(page):
        if fence.title is not None:
            path = tmp_path / fence.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(fence.code)
        if fence.language != "bash":
            continue
        for words in mijax_commands(fence.code):
            with contextlib.redirect_stdout(io.StringIO()):
                assert commands.main(["--debug", *words]) == 0, words
    for arguments, rest in parsed:
        name = getattr(arguments, "name", None)
        names = {entry.name for entry in mijax.experiment.entries()}
        if arguments.takes_overrides and (name in names or Path(str(name)).exists()):
            mijax.experiment.load(name).override(list(rest))


def mijax_commands(code):
    """The words after `mijax` of every such command."""
    for line in code.replace("\\\n", " ").splitlines():
        for command in line.split(" && "):
            words = shlex.split(command, comments=True)
            if words[:1] == ["mijax"]:
                yield words[1:]


def test_fences_are_all_seen():
    """A fence that the expression misses would not run."""
    for page in PAGES:
        source = page.read_text()
        opened = len(re.findall(r"^```\w+", source, re.MULTILINE))
        seen = fences(page)
        assert opened == len(seen) + sum(f.text is not None for f in seen), page


def test_every_page_is_in_the_navigation():
    def targets(node):
        if isinstance(node, str):
            return {node}
        nodes = node.values() if isinstance(node, dict) else node
        return {target for child in nodes for target in targets(child)}

    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    assert targets(config["nav"]) == {name_of(page) for page in PAGES}


def test_every_error_is_explained():
    page = (DOCS / "errors.md").read_text()
    for error in mijax.MijaxError.__subclasses__():
        assert f"## {error.__name__}" in page
