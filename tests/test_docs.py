"""What the documents print is what the commands print."""

from pathlib import Path

from typer.testing import CliRunner

from finetune.cli import app

DOCS = Path(__file__).parent.parent / "docs"


def printed(*arguments: str) -> list[str]:
    lines = CliRunner().invoke(app, arguments, standalone_mode=False).stdout.splitlines()
    return [line.rstrip() for line in lines if line.strip()]


def test_freeze_depth_shows_the_depth_table_of_resnet50() -> None:
    text = (DOCS / "freeze-depth.md").read_text()
    block = text.split("$ finetune depths resnet50\n")[1].split("```")[0]
    assert [line.rstrip() for line in block.splitlines() if line.strip()] == printed("depths", "resnet50")


def test_the_readings_of_100_layers_are_what_the_table_says() -> None:
    rows = {line.split()[0]: line.split()[1] for line in printed("depths", "resnet50", "--unit", "tensor")[3:]}
    assert (rows["100"], rows["91"]) == ("layer3.2.conv3.weight", "layer3.1.conv3.weight")
