"""Data flows one way; the table of who may not know whom."""

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


def under(module: str, prefixes: tuple[str, ...]) -> bool:
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in prefixes)


NETWORK = ("backbone", "freeze", "layout", "head", "module")
ENTRIES = ("train", "cli", "pretrain", "export", "predict", "sweep.run", "report.html")
ROOTS = ("cli", "commands")
"""They import entries, late."""
LEAVES = ("errors", "faults", "config", "head", "metric", "parallel", "progress", "cost", "sweep.stopping")
NEVER = {
    "guard": (*NETWORK, "data", "compose", "checkpoint", "trainer", "sweep", "report", "result", "store", "durable"),
    "durable": (*NETWORK, "data", "compose", "checkpoint", "trainer", "sweep", "report", "result", "store"),
    "result": (*NETWORK, "data", "compose", "checkpoint", "trainer", "sweep", "report"),
    "store": (*NETWORK, "data", "compose", "checkpoint", "trainer", "sweep", "report", "result", "activations"),
    "compose": (*NETWORK, "data", "checkpoint", "trainer", "sweep", "report", "result"),
    "data": (*NETWORK, "checkpoint", "trainer", "sweep", "report", "result", "compose", "activations"),
    "data.sources": ("data.samples", "data.pixels", "data.augment", "data.datamodule"),
    "data.samples": ("data.pixels", "data.augment", "data.datamodule"),
    **dict.fromkeys(NETWORK, ("data", "checkpoint", "trainer", "sweep", "report", "result", "activations")),
    "activations": (
        "sweep",
        "report",
        "module",
        "trainer",
        "checkpoint",
        "result",
        "shared",
        "activation_plan",
        "inputs",
    ),
    "shared": ("sweep", "report", "module", "trainer", "result", "trial", "activations", "activation_plan", "inputs"),
    "activation_plan": ("sweep", "report", "trainer", "result", "trial", "inputs"),
    "inputs": ("sweep", "report", "trainer", "result", "trial"),
    "checkpoint": ("sweep", "report", "data", "trainer", "result"),
    "predictions": (*NETWORK, "data", "checkpoint", "trainer", "sweep", "report", "result", "compose"),
    "repeat": (*NETWORK, "data", "checkpoint", "trainer", "sweep", "report", "result"),
    "classifier": ("sweep", "report", "data", "trainer", "result"),
    "evaluate": (*NETWORK, "data", "checkpoint", "classifier", "trainer", "sweep", "report", "result"),
    "card": (*NETWORK, "checkpoint", "classifier", "trainer", "sweep", "report"),
    "trainer": ("sweep", "report", "data", "checkpoint", "compose"),
    "account": ("sweep", "report", "trial"),
    "trial": ("sweep", "report", "train"),
    "unfinished": ("sweep", "report", "data", "checkpoint", "compose", "trainer"),
    "heartbeat": (*NETWORK, "data", "checkpoint", "trainer", "sweep", "report", "compose"),
    "signals": (*NETWORK, "data", "checkpoint", "trainer", "sweep", "report", "compose", "result"),
    "sweep": (*NETWORK, "data", "checkpoint", "trainer", "report", "activations", "inputs"),
    "sweep.spec": ("sweep.search", "sweep.launch", "result"),
    "sweep.search": ("sweep.launch", "result"),
    "sweep.launch": ("sweep.search", "result"),
    "report": (*NETWORK, "data", "checkpoint", "trainer", "sweep", "activations", "compose"),
}


def test_the_walk_sees_imports_at_the_top_in_functions_and_for_types() -> None:
    assert {"finetune.errors", "typer"} <= AT_START["cli"]
    assert "finetune.sweep.run" in ALL["commands.sweep"] - AT_START["commands.sweep"]
    assert {"finetune.train", "torch"} <= ALL["sweep.launch"] - AT_START["sweep.launch"]
    assert all(under(module, tuple(SOURCES)) for module in NEVER)


def test_imports_have_no_cycle() -> None:
    order = graphlib.TopologicalSorter({module: ours(found) for module, found in ALL.items()}).static_order()
    assert set(order) >= set(SOURCES)  # a cycle is an error of the sorter's


@pytest.mark.parametrize("module", LEAVES)
def test_leaves_import_nothing_of_ours(module: str) -> None:
    assert ours(ALL[module]) == set()


@pytest.mark.parametrize("lower", NEVER)
def test_no_module_knows_what_uses_it(lower: str) -> None:
    for module in (module for module in SOURCES if under(module, (lower,))):
        assert not {name for name in ours(ALL[module]) if under(name, NEVER[lower])}, module


def test_entries_are_imported_by_the_command_line_and_by_children_only_and_late() -> None:
    users = {(user, name) for user, found in ALL.items() for name in ours(found) if name in ENTRIES}
    known = {("sweep.launch", "train"), ("sweep.prepare", "train"), ("sweep.cluster", "train")}
    known |= {("report.serve", "report.html")}
    assert {(user, name) for user, name in users if not under(user, ROOTS)} == known
    assert not {(user, name) for user, name in users if f"finetune.{name}" in AT_START[user]}


ONLY_IN = {
    "optuna": ("sweep.search", "report.study"),
    "hydra": ("compose", "train"),
    "wandb": ("wandb_run", "sweep.agent", "report.dashboard"),
    "plotly": ("report.html", "report.plot", "report.figures", "report.settings", "report.winner_html"),
    "typer": ("cli", "commands"),
    "yaml": ("sweep.document", "sweep.agent", "sweep.cluster"),
    "torchvision": ("backbone", "activations", "account", "commands.model"),
    "pytorch_lightning": ("module", "trainer", "unfinished", "wandb_run", "trial", "account", "data.datamodule"),
    "pickle": (),
}


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_library_stays_in_its_home(library: str) -> None:
    users = {module for module, found in ALL.items() if any(under(name, (library,)) for name in found)}
    assert all(under(user, ONLY_IN[library]) for user in users)


def test_the_network_knows_no_files() -> None:
    assert not {name for name in ALL["module"] | ALL["freeze"] | ALL["head"] if under(name, ("os", "pathlib", "json"))}


TORCH = ("torch", "torchvision", "torchmetrics", "pytorch_lightning", "safetensors")


@pytest.mark.parametrize(
    "start",
    [
        "config",
        "compose",
        "errors",
        "durable",
        "heartbeat",
        "signals",
        "guard",
        "store",
        "result",
        "sweep",
        "report",
        "cli",
        "commands",
        "card",
        "evaluate",
        "predictions",
        "repeat",
    ],
)
def test_search_and_report_start_without_torch(start: str) -> None:
    reached: set[str] = set()
    waiting = {module for module in SOURCES if under(module, (start,))}
    while waiting:
        module = waiting.pop()
        reached.add(module)
        assert not {name for name in AT_START[module] if under(name, TORCH)}, module
        waiting |= ours(AT_START[module]) - reached


def test_torch_is_not_there_after_they_started() -> None:
    code = "import sys, finetune.cli, finetune.sweep.run, finetune.report.html; print(*sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(shown.stdout.split())
    assert "finetune.sweep.run" in loaded
    assert not loaded & {*TORCH, "optuna", "wandb"}
