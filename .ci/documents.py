"""Bring the documents together for a site, which `make docs` builds: `python .ci/documents.py FOLDER`.

README.md becomes its first page; the report of `runs/local`, where `make sweep-local` left one, is shown in another, to
which the page about reports leads.
"""

import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
REPORT = ROOT / "runs" / "local" / "report.html"
ELSEWHERE = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")
"""Pages that lie above `docs/` in a checkout."""
FRAME = """# A report

What `make sweep-local` found, as the page that it writes.

<iframe src="../report-of-local.html" style="width: 100%; height: 80vh; border: 0"></iframe>
"""


def main(folder: Path) -> None:
    """Write all pages into `folder`, in place of what it held."""
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(ROOT / "docs", folder)
    for name in ELSEWHERE:
        text = (ROOT / name).read_text().replace("](docs/", "](")
        (folder / name.replace("README", "index")).write_text(_linked(text))
    for page in (ROOT / "docs").glob("*.md"):
        (folder / page.name).write_text(_linked(page.read_text().replace("](../", "](")))

    if REPORT.is_file():
        shutil.copy(REPORT, folder / "report-of-local.html")
        (folder / "example.md").write_text(FRAME)
        heading, rest = (folder / "report.md").read_text().split("\n", 1)
        (folder / "report.md").write_text(
            f"{heading}\n\n[A report](example.md): what `make sweep-local` found.\n{rest}"
        )


def _linked(text: str) -> str:
    """With links to the first page by its name on the site, and without links to files that are no pages."""
    text = text.replace("](README.md", "](index.md")
    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)[^)]*\.(?:py|yaml|toml)[^)]*\)", r"\1", text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
