"""The rooms of the house: who may import whom, and how large a file and a function may get.

Every rule is a function from a module to complaints of the form ``path:line: rule: what``; one test runs it over
the package, another shows it a module that breaks it.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "elmoe"

ENGINE_SIDE = {"errors", "quant", "models", "checkpoint", "backend", "trace"}
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "quant": {"errors"},
    "models": {"errors", "quant"},
    "checkpoint": {"errors", "quant", "models"},
    "backend": {"errors", "quant", "models", "checkpoint"},
    "engine": ENGINE_SIDE,
    "server": ENGINE_SIDE | {"engine"},
    "bench": ENGINE_SIDE | {"engine"},
    "trace": {"errors", "models"},
    "sim": {"errors", "quant", "models", "trace"},
    "report": {"errors", "models", "trace", "sim"},
    "rtl": {"errors", "quant"},
}
"""Design, "Packages and who may import whom": ``errors <- quant <- checkpoint, models <- backend <- engine <- server;
trace <- engine; errors <- trace <- sim <- report; quant <- rtl; engine <- bench`` (which times what the others do, and
which only cli imports). Between checkpoint and models the arrow goes to
models (a folder is read by its program). What the simulator's side shares with the engine is ``trace/schema.py``
and ``models/shape.py``."""

IMPORT_ALL = {"cli", "__main__", "__init__"}
"""The command line, and the top ``__init__`` with the public names."""

NEVER_IMPORTED = {"torch", "transformers"}
SHAPELESS_NAMES = {"utils", "common", "helpers", "misc"}
HEAVY = {
    "amaranth", "fastapi", "llguidance", "matplotlib", "numba", "plotly", "pyarrow", "pydantic", "ray", "torch",
    "transformers",
}  # fmt: skip
MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 80


@dataclass(frozen=True)
class Module:
    """One source file; `path` is relative to the package's parent, as in ``elmoe/quant/tiles.py``."""

    path: Path
    source: str

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.source, str(self.path))

    @property
    def room(self) -> str:
        """``quant`` for elmoe/quant/tiles.py, ``errors`` for elmoe/errors.py."""
        return self.path.parts[1].removesuffix(".py")

    def says(self, line: int, rule: str, what: str) -> str:
        return f"src/{self.path}:{line}: {rule}: {what}"


def modules() -> list[Module]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [Module(file.relative_to(PACKAGE.parent), file.read_text(encoding="utf-8")) for file in files]


def imports(module: Module) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything that a module imports, wherever in it; relative names made absolute."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            package = module.path.parts[: len(module.path.parts) - node.level] if node.level else ()
            base = ".".join((*package, *([node.module] if node.module else [])))
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__", "importorskip"}:
                yield node.lineno, str(node.args[0].value)


def rooms_stay_apart(module: Module) -> Iterator[str]:
    if module.room in IMPORT_ALL:
        return
    rule = "design.md, who may import whom"
    if module.room not in MAY_IMPORT:
        yield module.says(1, rule, f"{module.room} is not in the design; give it a place there and in MAY_IMPORT")
        return
    allowed = MAY_IMPORT[module.room]
    for line, name in imports(module):
        parts = name.split(".")
        if parts[0] != "elmoe":
            continue
        target = parts[1] if len(parts) > 1 else ""
        if target not in allowed | {module.room}:
            permitted = ", ".join(sorted(allowed)) or "nothing of elmoe"
            what = f"{module.room} may import {permitted}, not {name}"
            yield module.says(line, rule, what)


def no_star_imports(module: Module) -> Iterator[str]:
    for line, name in imports(module):
        if name.endswith(".*"):
            yield module.says(line, "house style 2, no star imports", f"from {name.removesuffix('.*')} import *")


def names_say_what_is_inside(module: Module) -> Iterator[str]:
    for part in module.path.parts:
        if part.removesuffix(".py") in SHAPELESS_NAMES:
            yield module.says(1, "house style 2, no utils, common, helpers, misc", f"rename {part}")


def init_files_are_empty(module: Module) -> Iterator[str]:
    if module.path.name == "__init__.py" and len(module.path.parts) > 2 and module.source.strip():
        yield module.says(1, "house style 2, __init__ files are empty but the top one", "move its contents")


def no_torch(module: Module) -> Iterator[str]:
    for line, name in imports(module):
        if name.split(".", maxsplit=1)[0] in NEVER_IMPORTED:
            yield module.says(line, "design.md, elmoe runs without torch", f"imports {name}")


def files_fit_in_the_head(module: Module) -> Iterator[str]:
    lines = len(module.source.splitlines())
    if lines > MAX_FILE_LINES:
        yield module.says(lines, f"house style 3, files stop at {MAX_FILE_LINES} lines", f"this one has {lines}")


def functions_fit_on_a_screen(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                rule = f"house style 3, functions stop at {MAX_FUNCTION_LINES} lines"
                yield module.says(node.lineno, rule, f"{node.name} has {lines}")


Rule = Callable[[Module], Iterator[str]]
RULES: list[Rule] = [
    rooms_stay_apart,
    no_star_imports,
    names_say_what_is_inside,
    init_files_are_empty,
    no_torch,
    files_fit_in_the_head,
    functions_fit_on_a_screen,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_package_keeps_the_rule(rule: Rule) -> None:
    complaints = [complaint for module in modules() for complaint in rule(module)]
    assert not complaints, "\n" + "\n".join(complaints)


def test_all_of_the_package_is_looked_at() -> None:
    found = {module.path.as_posix() for module in modules()}
    assert {"elmoe/__init__.py", "elmoe/errors.py", "elmoe/quant/tiles.py", "elmoe/models/shape.py"} <= found


def test_the_table_has_no_cycles() -> None:
    """Every room may be built after those that it imports."""
    built: set[str] = set()
    while len(built) < len(MAY_IMPORT):
        ready = {room for room, needs in MAY_IMPORT.items() if needs <= built} - built
        assert ready, f"cycle among {sorted(set(MAY_IMPORT) - built)}"
        built |= ready


def test_the_table_keeps_engine_and_simulator_apart() -> None:
    for room in ("sim", "trace", "report", "rtl"):
        assert not MAY_IMPORT[room] & {"engine", "backend", "server"}
    assert not MAY_IMPORT["engine"] & {"sim", "report", "rtl"}


def test_only_the_command_line_imports_the_benchmark() -> None:
    assert not [room for room, needs in MAY_IMPORT.items() if "bench" in needs]


IMPORT_RULE = "design.md, who may import whom"


@pytest.mark.parametrize(
    ("path", "source", "complaint"),
    [
        ("quant/a.py", "from elmoe.models.shape import ModelShape", "1: {}: quant may import errors, not elmoe.models"),
        ("errors.py", "\nimport elmoe.quant.tiles", "2: {}: errors may import nothing of elmoe, not elmoe.quant.tiles"),
        ("sim/a.py", "def f():\n    from elmoe.engine import engine", "2: {}: sim may import "),
        ("engine/a.py", "from elmoe import sim", "1: {}: engine may import "),
        ("engine/a.py", "from elmoe import Engine", "1: {}: engine may import "),
        ("engine/a.py", "import elmoe", "1: {}: engine may import "),
        ("rtl/a.py", "from ..backend.protocol import Rows", "1: {}: rtl may import errors, quant, not elmoe.backend"),
        ("report/a.py", "importlib.import_module('elmoe.engine')", "1: {}: report may import "),
        (
            "models/a.py",
            "from elmoe.checkpoint.folder import Checkpoint",
            "1: {}: models may import errors, quant, not",
        ),
        ("cache/a.py", "x = 1", "1: {}: cache is not in the design"),
    ],
)
def test_a_wrong_import_is_named(path: str, source: str, complaint: str) -> None:
    complaints = list(rooms_stay_apart(Module(Path("elmoe") / path, source)))
    assert len(complaints) == 1
    assert complaints[0].startswith(f"src/elmoe/{path}:{complaint.format(IMPORT_RULE)}")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("checkpoint/a.py", "from elmoe.models.program import Program\nfrom elmoe.errors import StorageError"),
        ("quant/a.py", "from . import tiles\nfrom .bitnested import GROUP\nfrom elmoe.quant import mxfp4"),
        ("cli.py", "from elmoe.engine import engine\nfrom elmoe.sim import run"),
        ("__init__.py", "from elmoe.engine.engine import Engine"),
        (
            "sim/a.py",
            "import numpy as np\nfrom elmoe.trace.schema import Step\nfrom elmoe.models.shape import ModelShape",
        ),
    ],
)
def test_a_right_import_passes(path: str, source: str) -> None:
    assert not list(rooms_stay_apart(Module(Path("elmoe") / path, source)))


@pytest.mark.parametrize(
    ("rule", "path", "source", "complaint"),
    [
        (
            no_star_imports,
            "sim/a.py",
            "\nfrom numpy import *",
            "2: house style 2, no star imports: from numpy import *",
        ),
        (
            names_say_what_is_inside,
            "sim/utils.py",
            "",
            "1: house style 2, no utils, common, helpers, misc: rename utils.py",
        ),
        (
            names_say_what_is_inside,
            "common/a.py",
            "",
            "1: house style 2, no utils, common, helpers, misc: rename common",
        ),
        (
            init_files_are_empty,
            "sim/__init__.py",
            "x = 1",
            "1: house style 2, __init__ files are empty but the top one: ",
        ),
        (
            no_torch,
            "sim/a.py",
            "def f():\n    import torch.nn",
            "2: design.md, elmoe runs without torch: imports torch.nn",
        ),
        (no_torch, "sim/a.py", "from transformers import AutoModel", "1: design.md, elmoe runs without torch: imports"),
        (
            files_fit_in_the_head,
            "sim/a.py",
            "x = 1\n" * 501,
            "501: house style 3, files stop at 500 lines: this one has",
        ),
        (
            functions_fit_on_a_screen,
            "sim/a.py",
            "x = 1\nclass A:\n    async def f():\n" + "        pass\n" * 80,
            "3: house style 3, functions stop at 80 lines: f has 81",
        ),
    ],
)
def test_a_broken_rule_is_named_with_its_line(rule: Rule, path: str, source: str, complaint: str) -> None:
    complaints = list(rule(Module(Path("elmoe") / path, source)))
    assert len(complaints) == 1
    assert complaints[0].startswith(f"src/elmoe/{path}:{complaint}")


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (init_files_are_empty, "__init__.py", "x = 1"),
        (init_files_are_empty, "sim/__init__.py", "\n"),
        (files_fit_in_the_head, "sim/a.py", "x = 1\n" * 500),
        (functions_fit_on_a_screen, "sim/a.py", "def f():\n" + "    pass\n" * 79),
        (names_say_what_is_inside, "sim/link.py", ""),
        (no_torch, "sim/a.py", "import torchless"),
    ],
)
def test_a_kept_rule_passes(rule: Rule, path: str, source: str) -> None:
    assert not list(rule(Module(Path("elmoe") / path, source)))


def test_importing_elmoe_is_light() -> None:
    """In a fresh interpreter: nothing heavy or optional is loaded before someone asks for it."""
    code = "import sys, elmoe; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "elmoe" in loaded
    assert not loaded & HEAVY, f"house style 2, heavy imports sit in leaf modules: import elmoe loads {loaded & HEAVY}"
