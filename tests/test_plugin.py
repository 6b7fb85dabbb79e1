import os
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
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "_BUILDERS", {})
    monkeypatch.setenv(PLUGIN, "")
    plugin._run.cache_clear()


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
