"""The wheel carries what it needs and works from any folder."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_wheel_carries_conf_sweeps_and_weights_and_runs_elsewhere(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    names = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    for folder in ("conf", "sweeps"):
        own = {str(Path("finetune") / path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*.yaml")}
        assert own <= names
    texts = {
        str(path.relative_to(ROOT))
        for kind in ("md", "html", "css", "js", "json")
        for path in (ROOT / "finetune").rglob(f"*.{kind}")
    }
    assert {"finetune/export/card.md", "finetune/report/page/page.html"} <= texts <= names
    (weights,) = (site / "finetune" / "network" / "shipped").iterdir()
    assert weights.stat().st_size <= 6_000_000
    elsewhere = {**os.environ, "PYTHONPATH": str(site)}
    shown = subprocess.run(
        [sys.executable, "-m", "finetune.train", "experiment=first_100", "data.root=x", "--cfg", "job"],
        cwd=tmp_path,
        env=elsewhere,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "freeze_unit: tensor" in shown.stdout
    nope = [sys.executable, "-m", "finetune.cli", "sweep", "nope"]
    refused = subprocess.run(nope, cwd=tmp_path, env=elsewhere, capture_output=True, text=True)
    assert refused.returncode == 2
    assert all(path.name in refused.stderr for path in (ROOT / "sweeps").glob("*.yaml"))
