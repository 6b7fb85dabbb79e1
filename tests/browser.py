"""A real Chromium, Debian's, for the tests of pages; skipped with a reason where there is none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Page, sync_playwright

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; apt-get install chromium")


@dataclass
class Seen:
    """A page that was opened and what it said and asked for."""

    page: Page
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def opened(url: str, folder: Path, width: int = 1100, height: int = 900, scheme: str = "light") -> Iterator[Seen]:
    """Open `url` with a fresh profile in `folder`, once all its plots are drawn."""
    with sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            folder / "profile",
            executable_path=CHROMIUM,
            args=_FLAGS,
            headless=True,
            viewport={"width": width, "height": height},
            color_scheme="dark" if scheme == "dark" else "light",
        )
        page = context.pages[0]
        page.set_default_timeout(60_000)
        seen = Seen(page)
        page.on("console", lambda message: seen.messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: seen.messages.append(f"error: {error}"))
        page.on("request", lambda request: seen.requests.append(request.url))
        try:
            page.goto(url)
            for plot in page.locator(".plot").all():
                plot.locator("svg.main-svg").first.wait_for(state="attached")
            yield seen
        finally:
            context.close()
