import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune import plugin
from finetune.errors import Refused
from finetune.network.backbone import backbone_shapes
from finetune.plugin import PLUGIN, register_backbone, registered, take_plugin

MINE = """
from torch import nn
import finetune
blocks = [nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 1)) for _ in range(2)]
finetune.register_backbone(
    "mine", lambda: nn.Sequential(nn.Conv2d(3, 4, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
)
"""


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(plugin, "_BUILDERS", {})
    monkeypatch.setenv(PLUGIN, "")
    plugin._run.cache_clear()
    plugin._of_packages.cache_clear()
    yield
    plugin._of_packages.cache_clear()


def test_a_file_registers_a_network_that_is_divided_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    assert take_plugin(["--plugin", str(tmp_path / "mine.py"), "depths", "mine"]) == ["depths", "mine"]
    assert os.environ[PLUGIN] == str(tmp_path / "mine.py")
    assert "mine" in registered()
    backbone = backbone_shapes("mine", 16)
    assert (len(backbone.units), backbone.width, backbone.classifier) == (5, 4, "5")


def test_a_registered_name_is_offered_where_another_is_mistyped() -> None:
    register_backbone("my_network", lambda: None)
    with pytest.raises(Refused, match="did you mean my_network"):
        backbone_shapes("my_netwrok", 16)


def test_a_plugin_that_is_not_there_or_fails_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Refused, match="there is no such file"):
        take_plugin([f"--plugin={tmp_path / 'none.py'}"])
    (tmp_path / "broken.py").write_text("1 / 0")
    monkeypatch.setenv(PLUGIN, str(tmp_path / "broken.py"))
    with pytest.raises(Refused, match=r"broken\.py failed: ZeroDivisionError: division by zero; mend it"):
        registered()


def installed(site: Path, name: str, entry: str) -> None:
    """A package in `site`, as an installer leaves it, with an entry point of our group."""
    (site / "netpackage").mkdir(parents=True)
    (site / "netpackage" / "__init__.py").write_text("")
    build = MINE.replace('finetune.register_backbone(\n    "mine", lambda: ', "def build():\n    return (")
    (site / "netpackage" / "networks.py").write_text(build)
    about = site / "netpackage-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: netpackage\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[finetune.backbones]\n{name} = {entry}\n")


def test_an_installed_package_brings_its_network_by_an_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "site", "packaged", "netpackage.networks:build")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert "packaged" in registered()
    backbone = backbone_shapes("packaged", 16)
    assert (len(backbone.units), backbone.width, backbone.classifier) == (5, 4, "5")


def test_a_package_that_cannot_be_loaded_is_named_where_its_network_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(tmp_path / "site", "broken", "netpackage.gone:build")
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert len(backbone_shapes("cnn5", 32).units) == 5, "another network is no concern of it"
    said = r"model\.backbone=broken is netpackage\.gone:build of an installed package, which cannot be loaded"
    with pytest.raises(Refused, match=said):
        backbone_shapes("broken", 16)
