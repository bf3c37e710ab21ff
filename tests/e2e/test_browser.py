"""A real Chromium streams a file from the console page."""

import shutil

import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect, sync_playwright

from tests.e2e.test_streams import expected

pytestmark = pytest.mark.e2e

PATIENCE_MS = 120_000
"""What is awaited ends this; only a page that is broken takes so long."""


@pytest.fixture
def page():
    """A page of the system's Chromium, which Playwright drives; it need not download one of its own."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("Chromium is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=binary, args=flags)
        yield browser.new_page()
        browser.close()


def test_the_console_streams_a_wav_file_and_shows_its_turns(server, page, model, talk, tmp_path):
    soundfile.write(tmp_path / "talk.wav", talk, 16_000)
    page.goto(f"http://127.0.0.1:{server}/console?speed=4")
    page.set_input_files("#file", tmp_path / "talk.wav")
    expect(page.locator("body")).to_have_attribute("data-done", "true", timeout=PATIENCE_MS)
    expect(page.locator("#state")).to_contain_text("done:")
    rows = [row.locator("td").all_text_contents() for row in page.locator("#turns tr").all()]
    told = sorted((float(start), float(end), speaker) for start, end, speaker, _ in rows)
    turns = expected(model, talk)
    assert [speaker for _, _, speaker in told] == [speaker for _, _, speaker in turns]
    assert np.allclose([row[:2] for row in told], [row[:2] for row in turns], atol=0.006)
