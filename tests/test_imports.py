"""Imports run one way between the rooms of the package."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "finetune"
SOURCES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): path
    for path in PACKAGE.rglob("*.py")
}
"""Files by name within the package: `sweep.spec`; the package itself is the empty name."""


def names(node: ast.stmt) -> set[str]:
    """What one import statement imports: `torch`, `finetune.sweep.spec`."""
    if isinstance(node, ast.Import):
        return {alias.name for alias in node.names}
    if not isinstance(node, ast.ImportFrom):
        return set()

    assert node.level == 0, f"line {node.lineno}: imports are absolute here"
    module = node.module or ""
    inner = {f"{module}.{alias.name}" for alias in node.names}
    modules = {name for name in inner if name.removeprefix("finetune.") in SOURCES}
    return modules or {module}


def statements(node: ast.AST, everywhere: bool) -> Iterator[ast.stmt]:
    """The statements below `node`; unless `everywhere`, only those that run when the module is imported."""
    for child in ast.iter_child_nodes(node):
        later = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
        if everywhere or not (later or typing):
            if isinstance(child, ast.stmt):
                yield child
            yield from statements(child, everywhere)


def imports(everywhere: bool) -> dict[str, set[str]]:
    trees = {module: ast.parse(path.read_text()) for module, path in SOURCES.items()}
    return {m: {n for s in statements(tree, everywhere) for n in names(s)} for m, tree in trees.items()}


ALL = imports(everywhere=True)
AT_START = imports(everywhere=False)


def ours(names: set[str]) -> set[str]:
    return {name.removeprefix("finetune.") for name in names if name.startswith("finetune.")}


def room(module: str) -> str:
    """The folder that a module lies in; a module at the root is a room of its own."""
    return module.partition(".")[0]


MAY_USE = {
    "errors": (),
    "plugin": ("errors",),
    "version": (),
    "config": (),
    "visible_gpus": (),
    "gpu": ("errors", "config", "visible_gpus"),
    "console": ("storage",),
    "compose": ("errors", "config"),
    "storage": ("errors",),
    "records": ("version", "errors", "config", "compose", "storage"),
    "data": ("errors", "config", "storage", "gpu"),
    "network": ("errors", "config", "plugin", "storage", "gpu"),
    "sharing": ("errors", "config", "storage", "gpu", "data", "network"),
    "trial": ("errors", "config", "compose", "console", "storage", "gpu", "records", "data", "network", "sharing"),
    "export": ("errors", "config", "storage", "records", "data", "network"),
    "train": ("errors", "plugin", "config", "visible_gpus", "compose", "storage", "records", "sharing", "trial"),
    "report": ("errors", "config", "storage", "records"),
    "sweep": ("errors", "config", "visible_gpus", "gpu", "compose", "storage", "records", "report", "train"),
}
"""The rooms from the ground up, and whom each may know besides itself; `commands`, `cli` and `api` may know all."""


def test_the_walk_sees_imports_at_the_top_in_functions_and_for_types() -> None:
    assert {"finetune.errors", "typer"} <= AT_START["cli"]
    assert "finetune.sweep.run" in ALL["commands.sweep"] - AT_START["commands.sweep"]
    assert {"finetune.train", "torch"} <= ALL["sweep.launch"] - AT_START["sweep.launch"]
    assert {room(module) for module in SOURCES} == {*MAY_USE, "commands", "cli", "api", "__main__", ""}


def test_imports_have_no_cycle() -> None:
    order = graphlib.TopologicalSorter({module: ours(found) for module, found in ALL.items()}).static_order()
    assert set(order) >= set(SOURCES)  # a cycle is an error of the sorter's


@pytest.mark.parametrize("lower", MAY_USE)
def test_a_room_knows_the_rooms_below_it_only(lower: str) -> None:
    for module in (module for module in SOURCES if room(module) == lower):
        assert {room(name) for name in ours(ALL[module])} <= {lower, *MAY_USE[lower]}, module


LIBRARIES = {
    "optuna": ("sweep", "report"),
    "hydra": ("compose", "train"),
    "wandb": ("trial", "sweep", "report"),
    "plotly": ("report",),
    "matplotlib": ("report",),
    "typer": ("cli", "commands"),
    "pytorch_lightning": ("trial", "data"),
    "pickle": (),
}
"""Whoever else needs one of these asks the room that has it."""


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_stays_in_its_rooms(library: str) -> None:
    users = {room(module) for module, found in ALL.items() if any(room(name) == library for name in found)}
    assert users <= set(LIBRARIES[library])


TORCH = {"torch", "torchvision", "torchmetrics", "pytorch_lightning", "safetensors"}


@pytest.mark.parametrize(
    "start",
    ["__main__", "cli", "commands", "config", "compose", "errors", "console", "storage", "records", "sweep", "report"],
)
def test_what_a_person_waits_for_starts_without_torch(start: str) -> None:
    reached: set[str] = set()
    waiting = {module for module in SOURCES if room(module) == start}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        assert not {room(name) for name in AT_START[module]} & TORCH, module
        waiting |= ours(AT_START[module]) - reached


def test_torch_is_not_there_after_they_started() -> None:
    code = "import sys, finetune.cli, finetune.sweep.run, finetune.report.page.page; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert "finetune.sweep.run" in loaded
    assert not loaded & {*TORCH, "optuna", "wandb"}
