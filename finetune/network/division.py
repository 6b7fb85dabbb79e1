"""A network as units in forward order, found by tracing it.

A unit is what lies between two cuts and holds a weight; what holds none (activations, pooling), vectors alone (a norm)
or what is one for all images (a class token, a table of positions) belongs to the unit before it.
"""

import copy
import functools
import itertools
import operator
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor, fx, nn

from finetune.network.trace import NotCuttable, Traced, attribute, is_block, parameters_of


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
            setattr(part.get_submodule(parent), name, attribute(model, str(node.target)))


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
        return _divided(Traced(model, True, size))
    except NotCuttable as problem:
        try:
            return _divided(Traced(model, False, size))
        except NotCuttable:
            raise problem from None


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


def _divided(traced: Traced) -> Division:
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


def _piece(traced: Traced, start: fx.Node, end: fx.Node) -> _Piece:
    nodes = list(traced.between(start, end).nodes)
    parameters = [(node, *pair) for node in nodes for pair in parameters_of(traced.model, node)]
    weights = dict.fromkeys(path for node, path, parameter in parameters if _is_weight(node, parameter))
    called = [str(node.target) for node in nodes if node.op == "call_module"]
    blocks = [path for path in called if is_block(traced.model.get_submodule(path))]
    return _Piece(start, end, _in_common(blocks or list(weights)), bool(weights), bool(parameters), bool(blocks))


def _is_weight(node: fx.Node, parameter: nn.Parameter) -> bool:
    """Whether it is no vector, and no token or table: those lie outside any module, with 1 as the number of images."""
    return parameter.ndim >= 2 and not (node.op == "get_attr" and len(parameter) == 1)


def _in_common(paths: list[str]) -> str:
    """How the paths begin; the first of them where they begin differently."""
    levels = zip(*(path.split(".") for path in paths), strict=False)
    common = itertools.takewhile(lambda names: len(set(names)) == 1, levels)
    return ".".join(names[0] for names in common) or next(iter(paths), "")


def _chain(graph: fx.Graph) -> list[str] | None:
    """The paths of the modules that a part calls one after the other; None where it does anything else."""
    paths, before = list[str](), next(iter(graph.nodes))
    for node in list(graph.nodes)[1:-1]:
        if node.op != "call_module" or node.args != (before,) or node.kwargs or len(before.users) != 1:
            return None
        paths.append(str(node.target))
        before = node
    return paths if len({path.rpartition(".")[2] for path in paths}) == len(paths) else None
