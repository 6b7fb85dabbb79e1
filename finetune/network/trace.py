"""A network's forward pass as a graph, and where one tensor alone crosses it: there the network can be cut.

Blocks stay whole: the tracer looks into the network itself, into plain `Sequential`s and into stages, which hold equal
blocks.
"""

import functools
import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode


class NotCuttable(Exception):
    """A network has no place to be cut; the message says why."""


class NoValues(Exception):
    """What is traced computes with values, so the network must have them: it must not be on the meta device."""


def is_block(module: nn.Module) -> bool:
    """Whether it has weights of its own to divide: two or more tensors of two or more dimensions."""
    return sum(parameter.ndim >= 2 for parameter in module.parameters()) >= 2


def _holds_equal_blocks(module: nn.Module) -> bool:
    children = list(module.children())
    return len(children) >= 2 and len(set(map(type, children))) == 1 and is_block(children[0])


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
        if not is_block(module):
            return True
        return not plain and not (self._look_into_stages and _is_stage(module))


class _ShapeOfNorms(TorchFunctionMode):
    """Gives norms an output without values: on the meta device they are computed from their parts, in Python."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.layer_norm, F.batch_norm, F.group_norm):
            return torch.empty_like(args[0])
        return func(*args, **(kwargs or {}))


_CHANCE = re.compile(r"(?<=StochasticDepth\()p=[^,)]*|(?<=DropPath\()drop_prob=[^,)]*")
"""What alone differs between blocks of one stage, and matters in training only."""


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

        key = _CHANCE.sub("", repr(self.fetch_attr(target))), args[0].shape
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


class Traced:
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
        with torch.no_grad(), _ShapeOfNorms():
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
            own = node.op == "placeholder" or bool(list(parameters_of(self.model, node)))
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


def attribute(model: nn.Module, path: str) -> Any:
    """What lies at a dotted path of a network: a parameter, a buffer or a constant."""
    parent, _, name = path.rpartition(".")
    return getattr(model.get_submodule(parent), name)


def parameters_of(model: nn.Module, node: fx.Node) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a node uses, by the name of the module, or parameter, that holds them."""
    path = str(node.target)
    if node.op == "call_module":
        yield from ((path, parameter) for parameter in model.get_submodule(path).parameters())
    elif node.op == "get_attr" and isinstance(value := attribute(model, path), nn.Parameter):
        yield path, value


def _constants(model: nn.Module, graph: fx.Graph) -> dict[str, Tensor]:
    """The tensors that tracing computed and left on the model."""
    names = [str(node.target) for node in graph.find_nodes(op="get_attr")]
    constants = {name: getattr(model, name) for name in names if name.startswith("_tensor_constant")}
    if any(value.is_meta for value in constants.values()):
        raise NoValues
    return constants


def _without_classifier(model: nn.Module, graph: fx.Graph) -> str:
    """Take the classifier out of the graph, if what holds the last parameters is a linear layer; returns its path."""
    holding = [node for node in graph.nodes if any(parameters_of(model, node))]
    last = holding[-1] if holding else None
    if last is None or last.op != "call_module" or not isinstance(model.get_submodule(str(last.target)), nn.Linear):
        return ""

    last.replace_all_uses_with(last.args[0])
    graph.erase_node(last)
    return str(last.target)
