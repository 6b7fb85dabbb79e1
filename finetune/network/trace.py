"""Where any network can be cut: its forward pass is traced, and cut wherever one tensor alone crosses.

Blocks stay whole: the tracer looks into the network itself, into plain `Sequential`s and into stages, which hold equal
blocks. A unit is what lies between two cuts and holds a weight; what holds none (activations, pooling) and what holds
vectors alone (a norm) belongs to the unit before it.
"""

import copy
import functools
import inspect
import itertools
import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn


class NotCuttable(Exception):
    """A network has no place to be cut; the message says why."""


class NoValues(Exception):
    """What is traced computes with values, so the network must have them: it must not be on the meta device."""


@dataclass(frozen=True)
class Part:
    """What lies between two cuts, of any network that is built in the same way."""

    name: str
    graph: fx.Graph
    constants: Mapping[str, Tensor]
    """Tensors that the trace computed, by the name that the graph has for them."""

    def of(self, model: nn.Module) -> nn.Module:
        """This part of `model`, whose modules and parameters it shares: a module, a chain of modules, or a program."""
        chain = _chain(self.graph)
        if chain is None:
            for name, value in self.constants.items():
                setattr(model, name, value)
            return fx.GraphModule(model, copy.deepcopy(self.graph), class_name="Unit")
        if not chain:
            return nn.Identity()
        if len(chain) == 1:
            return model.get_submodule(chain[0])
        return nn.Sequential(OrderedDict((path.rpartition(".")[2], model.get_submodule(path)) for path in chain))


@dataclass(frozen=True)
class Division:
    """How a network is divided."""

    units: tuple[Part, ...]
    """In forward order; each holds a weight, and together they hold every parameter that the network uses."""
    rest: Part
    """From the last unit to the features; it holds no parameter."""
    classifier: str
    """The path of the last layer, if that is a linear one; the features are what enters it. Empty if there is none."""
    width: int
    """Features per image."""


def refresh(part: nn.Module, model: nn.Module) -> None:
    """Have `part` hold the parameters that `model` itself holds, after they were replaced by others."""
    if isinstance(part, fx.GraphModule):
        for node in part.graph.find_nodes(op="get_attr"):
            parent, _, name = str(node.target).rpartition(".")
            setattr(part.get_submodule(parent), name, _attribute(model, str(node.target)))


def divide(model: nn.Module, size: int) -> Division:
    """Find the units of a network; nothing is computed but shapes.

    Args:
        model: A network in eval mode, with or without a classifier. It is on the meta device afterwards.
        size: Height and width of its images. Networks may count their tokens; then the units are for this size alone.

    Raises:
        NotCuttable: the network cannot be traced, or does not give one row of numbers for an image.
        NoValues: the trace computes with values, which a network on the meta device has not.
    """
    try:
        return _divided(_Traced(model, True, size))
    except NotCuttable as problem:
        try:
            return _divided(_Traced(model, False, size))
        except NotCuttable:
            raise problem from None


def _is_block(module: nn.Module) -> bool:
    """Whether it has weights of its own to divide: two or more tensors of two or more dimensions."""
    return sum(parameter.ndim >= 2 for parameter in module.parameters()) >= 2


def _holds_equal_blocks(module: nn.Module) -> bool:
    children = list(module.children())
    return len(children) >= 2 and len(set(map(type, children))) == 1 and _is_block(children[0])


def _is_stage(module: nn.Module) -> bool:
    containers = [child for child in module.children() if isinstance(child, nn.Sequential | nn.ModuleList)]
    return any(map(_holds_equal_blocks, [module, *containers]))


class _Tracer(fx.Tracer):
    def __init__(self, look_into_stages: bool) -> None:
        super().__init__()
        self._look_into_stages = look_into_stages

    def is_leaf_module(self, module: nn.Module, module_qualified_name: str) -> bool:
        plain = type(module).forward is nn.Sequential.forward
        if plain and any(isinstance(child, nn.Linear) for child in module.children()):
            return False  # it may end with the classifier
        if not _is_block(module):
            return True
        return not plain and not (self._look_into_stages and _is_stage(module))


class _Values(fx.Interpreter):
    """Runs a traced network and keeps what each node gives, with how often that had been written to by then."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.values: dict[fx.Node, Any] = {}
        self.versions: dict[fx.Node, int] = {}
        self._known: dict[tuple[str, torch.Size], Tensor] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Blocks that are alike give shapes that are alike: one of them is run."""
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            return super().call_module(target, args, kwargs)

        key = repr(self.fetch_attr(target)), args[0].shape
        if key in self._known:
            return torch.empty_like(self._known[key])

        before = args[0]._version
        value = super().call_module(target, args, kwargs)
        if isinstance(value, Tensor) and args[0]._version == before:
            self._known[key] = value
        return value

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = value
        if isinstance(value, Tensor):
            self.versions[n] = value._version
        return value


class _Traced:
    """A traced network, and what its nodes give for a batch of images."""

    def __init__(self, model: nn.Module, look_into_stages: bool, size: int):
        others = list(inspect.signature(model.forward).parameters.values())[1:]
        self._defaults = {p.name: p.default for p in others if p.default is not p.empty}
        self._size = size
        self.model = model
        try:
            graph = _Tracer(look_into_stages).trace(model, concrete_args=self._defaults)
            self.constants = _constants(model, graph)
            self.classifier = _without_classifier(model, graph)
            self._program = fx.GraphModule(model, graph).to("meta")
            run = self._run(images=2)
        except NoValues:
            raise
        except Exception as error:  # whatever the network's own code raises
            lines = str(error).strip().splitlines() or [type(error).__name__]
            if "device meta" in lines[0]:  # as rotary tables of positions are
                raise NotCuttable("it computes with tables that are neither parameters nor buffers") from error
            raise NotCuttable(lines[0]) from error

        self.nodes = list(self._program.graph.nodes)
        self.values = run.values
        self.overwritten = {node for node, version in run.versions.items() if run.values[node]._version != version}
        """The nodes whose tensor a later one writes to."""

        aside = [node for node in self.nodes if _writes_aside(node)]
        if aside:
            raise NotCuttable(f"{aside[0].target} writes to a tensor in passing")

    def _run(self, images: int) -> _Values:
        run = _Values(self._program)
        with torch.no_grad():
            run.run(torch.empty(images, 3, self._size, self._size, device="meta"), *self._defaults.values())
        return run

    @functools.cached_property
    def _values_of_three(self) -> dict[fx.Node, Any]:
        """The same for a batch of three: what differs counts images."""
        return self._run(images=3).values

    @property
    def output(self) -> fx.Node:
        """The node that the network returns."""
        node = self.nodes[-1].args[0]
        if not isinstance(node, fx.Node) or not isinstance(self.values[node], Tensor):
            raise NotCuttable("it returns something else than one tensor")
        return node

    def cuts(self) -> list[fx.Node]:
        """The nodes after which their own output is all that is needed, the input first and the output last."""
        last_use = {used: i for i, node in enumerate(self.nodes) for used in node.all_input_nodes}
        depends = self._depends_on_the_image()
        cuts, live = list[fx.Node](), list[fx.Node]()
        for i, node in enumerate(self.nodes[:-1]):
            live = [needed for needed in [*live, node] if last_use.get(needed, -1) > i]
            tensors = [needed for needed in live if needed in depends]
            if tensors != [node] or not isinstance(self.values[node], Tensor) or node in self.overwritten:
                continue

            others = [needed for needed in live if not isinstance(self.values[needed], Tensor)]
            if all(self._follows(needed, node) for needed in others if needed.op != "placeholder"):
                cuts.append(node)
        return cuts

    def _depends_on_the_image(self) -> set[fx.Node]:
        """The nodes whose tensors differ from image to image, or hold parameters: what has to be handed on."""
        depends = set[fx.Node]()
        for node in self.nodes:
            if not isinstance(self.values[node], Tensor) and node.op != "call_module":
                if any(used in depends for used in node.all_input_nodes) and _holds_tensors(self.values[node]):
                    depends.add(node)
                continue
            own = node.op == "placeholder" or bool(list(_parameters(self.model, node)))
            if own or any(used in depends for used in node.all_input_nodes):
                depends.add(node)
        return depends

    def _follows(self, node: fx.Node, cut: fx.Node) -> bool:
        """Whether what is no tensor can be known after `cut`: a constant at this size, or the number of images."""
        try:
            self.known(node, cut, fx.Graph().placeholder("x"))
        except NotCuttable:
            return False
        return True

    def known(self, node: fx.Node, cut: fx.Node, x: fx.Node) -> Any:
        """A value that is no tensor, as an argument in a part that begins with `x`, the tensor of `cut`."""
        return self._known(self.values[node], self._values_of_three[node], cut, x)

    def _known(self, two: Any, three: Any, cut: fx.Node, x: fx.Node) -> Any:
        if isinstance(two, tuple | list):
            return tuple(self._known(a, b, cut, x) for a, b in zip(two, three, strict=True))
        if isinstance(two, torch.device | torch.dtype):
            return x.graph.call_function(getattr, (x, "device" if isinstance(two, torch.device) else "dtype"))
        if two is None or (isinstance(two, bool | int | float | str) and two == three):
            return two
        if (two, three) == (2, 3) and (len(self.values[cut]), len(self._values_of_three[cut])) == (2, 3):
            return x.graph.call_method("size", (x, 0))
        raise NotCuttable(f"{two} cannot be known later")

    def between(self, start: fx.Node, end: fx.Node) -> fx.Graph:
        """What leads from the tensor of `start` to that of `end`."""
        part = fx.Graph()
        copies = {start: part.placeholder("x")}
        position = {node: i for i, node in enumerate(self.nodes)}

        def copied(node: fx.Node) -> Any:
            if node not in copies:
                earlier = position[node] <= position[start] or node.op == "placeholder"
                if earlier and not isinstance(self.values[node], Tensor):
                    return self.known(node, start, copies[start])
                copies[node] = part.node_copy(node, copied)
            return copies[node]

        part.output(copied(end))
        return part


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, tuple | list | dict) and any(
        isinstance(item, Tensor) or _holds_tensors(item)
        for item in (value.values() if isinstance(value, dict) else value)
    )


def _writes_aside(node: fx.Node) -> bool:
    """Whether a node is there only for what it writes, which a part that leaves it out would lack."""
    name = str(node.target)
    return node.op == "call_method" and not node.users and name.endswith("_") and not name.endswith("__")


def _attribute(model: nn.Module, path: str) -> Any:
    parent, _, name = path.rpartition(".")
    return getattr(model.get_submodule(parent), name)


def _parameters(model: nn.Module, node: fx.Node) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a node uses, by the name of the module, or parameter, that holds them."""
    path = str(node.target)
    if node.op == "call_module":
        yield from ((path, parameter) for parameter in model.get_submodule(path).parameters())
    elif node.op == "get_attr" and isinstance(value := _attribute(model, path), nn.Parameter):
        yield path, value


@dataclass(frozen=True)
class _Piece:
    """What lies between two cuts, before pieces are joined into units."""

    start: fx.Node
    end: fx.Node
    name: str
    has_weight: bool
    has_parameters: bool
    has_block: bool

    def __add__(self, following: "_Piece") -> "_Piece":
        return _Piece(
            self.start,
            following.end,
            self.name if self.has_weight else following.name,
            self.has_weight or following.has_weight,
            self.has_parameters or following.has_parameters,
            self.has_block or following.has_block,
        )


def _divided(traced: _Traced) -> Division:
    cuts = traced.cuts()
    if not cuts or cuts[-1] is not traced.output:
        raise NotCuttable("what it returns is not one tensor that the tensor before it decides")
    features = traced.values[cuts[-1]].shape
    if len(features) != 2:
        raise NotCuttable(f"it gives {' x '.join(map(str, features[1:]))} values for an image, not one row of features")
    pieces = [_piece(traced, start, end) for start, end in itertools.pairwise(cuts)]

    # 1. What comes after the last parameter is no unit
    count = max((i for i, piece in enumerate(pieces, start=1) if piece.has_parameters), default=0)
    if not count:
        raise NotCuttable("it holds no parameters between two places where it could be cut")
    last = pieces[count - 1].end

    # 2. What holds no weight belongs to the unit before it, or at the beginning to the one after it
    units = list[_Piece]()
    for piece in pieces[:count]:
        if units and not (piece.has_weight and units[-1].has_weight):
            units[-1] += piece
        else:
            units.append(piece)

    # 3. What comes before the first block is the stem
    first_block = next((i for i, unit in enumerate(units) if unit.has_block), 0)
    if first_block:
        stem = functools.reduce(operator.add, units[:first_block])
        units = [replace(stem, name="stem"), *units[first_block:]]

    parts = [Part(unit.name, traced.between(unit.start, unit.end), traced.constants) for unit in units]
    rest = Part("rest", traced.between(last, cuts[-1]), traced.constants)
    return Division(tuple(parts), rest, traced.classifier, features[1])


def _piece(traced: _Traced, start: fx.Node, end: fx.Node) -> _Piece:
    nodes = list(traced.between(start, end).nodes)
    held = [pair for node in nodes for pair in _parameters(traced.model, node)]
    weights = dict.fromkeys(path for path, parameter in held if parameter.ndim >= 2)
    called = [str(node.target) for node in nodes if node.op == "call_module"]
    blocks = [path for path in called if _is_block(traced.model.get_submodule(path))]
    return _Piece(start, end, _in_common(blocks or list(weights)), bool(weights), bool(held), bool(blocks))


def _in_common(paths: list[str]) -> str:
    """How the paths begin; the first of them where they begin differently."""
    levels = zip(*(path.split(".") for path in paths), strict=False)
    common = itertools.takewhile(lambda names: len(set(names)) == 1, levels)
    return ".".join(names[0] for names in common) or next(iter(paths), "")


def _constants(model: nn.Module, graph: fx.Graph) -> dict[str, Tensor]:
    """The tensors that tracing computed and left on the model."""
    names = [str(node.target) for node in graph.find_nodes(op="get_attr")]
    constants = {name: getattr(model, name) for name in names if name.startswith("_tensor_constant")}
    if any(value.is_meta for value in constants.values()):
        raise NoValues
    return constants


def _without_classifier(model: nn.Module, graph: fx.Graph) -> str:
    """Take the classifier out of the graph, if what holds the last parameters is a linear layer; returns its path."""
    holding = [node for node in graph.nodes if any(_parameters(model, node))]
    last = holding[-1] if holding else None
    if last is None or last.op != "call_module" or not isinstance(model.get_submodule(str(last.target)), nn.Linear):
        return ""

    last.replace_all_uses_with(last.args[0])
    graph.erase_node(last)
    return str(last.target)


def _chain(graph: fx.Graph) -> list[str] | None:
    """The paths of the modules that a part calls one after the other; None where it does anything else."""
    paths, before = list[str](), next(iter(graph.nodes))
    for node in list(graph.nodes)[1:-1]:
        if node.op != "call_module" or node.args != (before,) or node.kwargs or len(before.users) != 1:
            return None
        paths.append(str(node.target))
        before = node
    return paths if len({path.rpartition(".")[2] for path in paths}) == len(paths) else None
