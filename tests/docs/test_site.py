"""Test the documentation site: no warning in the build, no broken link, a browser shows pages."""

import functools
import http.server
import importlib
import os
import subprocess
import sys
import threading
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.docs.pages import ROOT
from tests.experiments.browser import CHROMIUM, Browser

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="no Chromium; apt-get install chromium"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    out = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", ROOT / "docs", out]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return out


class Links(HTMLParser):
    """Addresses that a page leads to or loads, and the places in it that links can name."""

    def __init__(self, source: str):
        super().__init__()
        self.addresses, self.places = [], set()
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.addresses += [values[name] for name in ("href", "src") if values.get(name)]
        self.places |= {values.get("id"), values.get("name")}


def broken_links(site: Path) -> list[str]:
    """Return the links of a site to a file or a place that is not there, with their pages."""
    pages = {path: Links(path.read_text()) for path in site.rglob("*.html")}
    broken = []
    for page, links in pages.items():
        for address in links.addresses:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:  # of another site
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            place = unquote(parts.fragment)
            known = target not in pages or not place or place in pages[target].places
            if not target.exists() or not known:
                broken.append(f"{page.relative_to(site)}: {address}")
    return broken


def test_every_link_leads_somewhere(site):
    assert broken_links(site) == []


def test_a_broken_link_would_be_noticed(tmp_path):
    (tmp_path / "a.html").write_text('<a href="b.html#there">b</a> <img src="c.png"><p id="x">')
    (tmp_path / "b.html").write_text('<a href="a.html#x">a</a>')
    assert broken_links(tmp_path) == ["a.html: b.html#there", "a.html: c.png"]


def test_notebooks_are_shown_with_their_outputs(site):
    for notebook in ROOT.glob("notebooks/*.ipynb"):
        page = (site / f"notebooks/{notebook.stem}.html").read_text()
        assert "cell_output" in page and "<math" in page or "07" in notebook.stem


def test_the_reference_has_every_module(site):
    shown = "".join(path.read_text() for path in (site / "reference/packages").glob("*.html"))
    for path in ROOT.glob("genjax/*/**/*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        assert f'id="module-{name}"' in shown, name


PACKAGES = [path.name for path in (ROOT / "genjax").iterdir() if (path / "__init__.py").exists()]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_reference_has_every_public_name(site, package):
    """A name that a package gathers stands on its page, under the module that defines it."""
    shown = (site / f"reference/packages/{package}.html").read_text()
    module = importlib.import_module(f"genjax.{package}")
    for name, value in vars(module).items():
        if not name.startswith("_") and callable(value):
            assert f'.{name}"' in shown, name
            if isinstance(value, type) and "__call__" in vars(value):
                assert f'.{name}.__call__"' in shown, name


@pytest.fixture(scope="module")
def address(site):
    """The site, served on this machine; scripts of a page may not read files."""
    handler = functools.partial(Silent, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Silent(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def open_page(browser, url):
    browser._events.clear()
    browser.open(url)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@needs_chromium
def test_a_browser_opens_every_page(site, address, browser):
    """No error in the console, nothing loaded from elsewhere, and no page wider than the window.

    Each page is opened in a wide window, which then becomes as narrow as a telephone.
    """
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        browser.resize(1280)
        open_page(browser, f"{address}/{page.relative_to(site)}")
        broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).length"
        assert browser.evaluate("document.body.innerText.length") > 100, page
        assert browser.evaluate(broken) == 0, page
        for width in (1280, 400):
            browser.resize(width)
            assert browser.evaluate("window.innerWidth") == width
            assert browser.evaluate("document.documentElement.scrollWidth") <= width, (page, width)
    elsewhere = [each for each in browser.requests if not each.startswith((address, "data:"))]
    assert elsewhere == [] and browser.complaints == []


@needs_chromium
@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("guidance", "lecture/rectified_flow.html"),
        ("frechet_distance", "reference/packages/metrics.html"),
        ("LoRA", "guides/fine_tuning.html"),
    ],
)
def test_search_finds(address, browser, query, expected):
    open_page(browser, f"{address}/search.html?q={query}")
    results = "[...document.querySelectorAll('#search-results a')].map(a => a.pathname).join()"
    for _ in range(100):
        found = browser.evaluate(results)
        if expected in found:
            break
        time.sleep(0.1)
    assert expected in found
