"""What is found out of a network before trials are forked is there for them, and stops none of them."""

import subprocess
import sys
from pathlib import Path

import pytest

from finetune.compose import compose_config
from finetune.network import backbone
from finetune.network.backbone import backbone_shapes
from finetune.network.trace import NoValues
from finetune.plugin import register_backbone
from finetune.sharing.networks import divide_network
from finetune.sweep.children import FORKS
from finetune.train import divide_networks


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """No network was looked at before; lists those that are traced."""
    traced = []

    def create(name: str, size: int) -> object:
        traced.append((name, size))
        return shapes(name, size)

    shapes = backbone.create_shapes
    for function in (backbone._division, backbone._division_of_shapes, backbone_shapes):
        function.cache_clear()
    monkeypatch.setattr(backbone, "create_shapes", create)
    return traced


def test_a_network_is_traced_once_whatever_asks_for_it(nothing_known: list[tuple[str, int]]) -> None:
    config = compose_config(["model=resnet18", "data.size=64"])
    divide_network(config)
    looked_at = list(nothing_known)
    assert set(looked_at) == {("resnet18", 64)}
    backbone_shapes("resnet18", 64)
    backbone.build_backbone("resnet18", 64, empty=True)
    assert nothing_known == looked_at


def test_the_size_is_the_networks_own_where_none_is_given(nothing_known: list[tuple[str, int]]) -> None:
    divide_networks([["model.backbone=mobilenet_v3_small"]])
    assert set(nothing_known) == {("mobilenet_v3_small", 224)}


@pytest.mark.parametrize(
    "words",
    [
        ["model.backbone=resnet5O"],
        ["model.backbone=timm/no_such_network"],
        ["model.backbone=vit_b_16", "data.size=100"],
        ["data.sice=3"],
    ],
)
def test_what_is_wrong_is_left_to_the_trials(words: list[str]) -> None:
    divide_networks([words, ["model=cnn5", "data.size=32"]])
    assert backbone._division_of_shapes.cache_info().currsize == 1


def test_networks_of_a_users_own_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetune.plugin._BUILDERS", {})
    register_backbone("mine", lambda: pytest.fail("it was built"))
    divide_networks([["model.backbone=mine"]])


def test_a_network_that_needs_values_is_traced_where_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def divide(model: object, size: int) -> object:
        raise NoValues

    monkeypatch.setattr(backbone, "divide", divide)
    divide_networks([["model=cnn5", "data.size=32"]])
    assert backbone_shapes.cache_info().currsize == 0


INHERITED = """
from finetune.sweep.children import CONTEXT, set_networks, start_child

def child(sender):
    from finetune.network.backbone import backbone_shapes
    sender.send(backbone_shapes.cache_info().currsize)

if __name__ == "__main__":
    set_networks([["model=cnn5", "data.size=32"], ["model=resnet18", "data.size=32"]])
    receiver, sender = CONTEXT.Pipe(duplex=False)
    start_child(CONTEXT.Process(target=child, args=(sender,)))
    print(receiver.recv())
"""


@pytest.mark.slow
@pytest.mark.skipif(not FORKS, reason="nothing is forked here")
def test_a_forked_trial_knows_the_networks_of_its_sweep(tmp_path: Path) -> None:
    script = tmp_path / "sweep.py"
    script.write_text(INHERITED)
    ran = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["2"]
