"""A network as units in forward order: what a freeze depth counts."""

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from finetune.errors import Refused
from finetune.network.catalog import classifier_of, default_size
from finetune.network.create import cannot_take, create, create_empty, create_shapes
from finetune.network.division import Division, divide, refresh
from finetune.network.trace import NotCuttable, NoValues


@dataclass(frozen=True)
class Backbone:
    """A network without its classifier."""

    name: str
    model: nn.Module
    """The whole network; its parameter names are the weight file's."""
    units: Mapping[str, nn.Module]
    """The network's parts by name, in forward order; they share `model`'s modules."""
    pool: nn.Module
    """Last unit's output to features, N x width."""
    width: int
    """Features per image."""
    classifier: str = "fc"
    """What the network calls the layer that the head replaces; weight files may hold it."""

    @property
    def modules(self) -> list[nn.Module]:
        """The units and then the pooling: what a cut lies between."""
        return [*self.units.values(), self.pool]

    @functools.cached_property
    def unit_parameters(self) -> Mapping[str, list[str]]:
        """The names of each unit's parameters, in `model`'s order; one that several units use is the first one's."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        owners = dict[str, str]()
        for unit, module in self.units.items():
            for parameter in module.parameters():
                owners.setdefault(names[id(parameter)], unit)
        return {unit: [name for name in names.values() if owners.get(name) == unit] for unit in self.units}

    @functools.cached_property
    def parameter_names(self) -> list[str]:
        """The parameters in forward order, unit by unit: what `freeze_unit=tensor` counts along."""
        return [name for unit in self.units for name in self.unit_parameters[unit]]

    def state_names(self, modules: Iterable[nn.Module]) -> set[str]:
        """The names of what these modules hold, parameters and buffers, as `model` and weight files have them."""
        owned = {id(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())}
        own = self.model.state_dict(keep_vars=True)
        return {name for name, tensor in own.items() if id(tensor) in owned}

    def refresh(self) -> None:
        """Have the units hold what `model` holds, after parameters were replaced."""
        for module in self.modules:
            refresh(module, self.model)


def build_backbone(name: str, size: int | None = None, empty: bool = False) -> Backbone:
    """A backbone, randomly initialised.

    >>> build_backbone("resnet18").width
    512

    Args:
        name: A network, as `network.create.create` takes it.
        size: Height and width of its images, pixels; None is what its weights were trained with.
        empty: Leave parameters and buffers on the meta device, for others to put values there.

    Raises:
        Refused: there is no such network, it does not take such images, or it cannot be cut.
    """
    size = size or default_size(name)
    with torch.random.fork_rng(devices=[]):  # what is drawn below does not depend on whether this is known already
        division = _division(name, size)
    return _assembled(name, create_empty(name, size) if empty else create(name, size), division)


@functools.cache
def backbone_shapes(name: str, size: int | None = None) -> Backbone:
    """A backbone without values, to look at."""
    size = size or default_size(name)
    division = _division(name, size)
    return _assembled(name, create_shapes(name, size), division)


@functools.cache
def _division_of_shapes(name: str, size: int) -> Division | None:
    """How the network is divided; None where that takes values. Found once a process and those forked from it."""
    try:
        return divide(create_shapes(name, size).eval(), size)
    except NoValues:
        return None


def divides_without_values(name: str, size: int) -> bool:
    """Whether shapes alone tell where a network can be cut, which is known from then on.

    Raises:
        Refused: there is no such network, or it does not take such images.
        NotCuttable: it cannot be cut.
    """
    return _division_of_shapes(name, size) is not None


@functools.cache
def _division(name: str, size: int) -> Division:
    """How the network is divided; found once a process."""
    try:
        division = _division_of_shapes(name, size)
        if division is not None:
            return division
        with torch.device("cpu"):
            return divide(create(name, size).eval(), size)
    except NotCuttable as problem:
        own = default_size(name)
        if size != own and _can_be_cut(name, own):
            raise cannot_take(name, size, problem) from problem
        raise Refused(f"model.backbone={name} cannot be cut: {problem}; choose another network") from problem


def _can_be_cut(name: str, size: int) -> bool:
    try:
        _division(name, size)
    except Refused:
        return False
    return True


def _assembled(name: str, model: nn.Module, division: Division) -> Backbone:
    if division.classifier:
        parent, _, child = division.classifier.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())  # torch 2.4 has no set_submodule

    units = {part.name: part.of(model) for part in division.units}
    return Backbone(
        name, model, units, division.rest.of(model), division.width, division.classifier or classifier_of(name)
    )
