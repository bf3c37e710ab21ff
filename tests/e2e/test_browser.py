"""A real Chromium streams a file from the console page."""

import asyncio
import json
import shutil
import subprocess
import urllib.request

import numpy as np
import pytest
import soundfile
import websockets

from tests.conftest import free_port
from tests.e2e.test_streams import expected

pytestmark = pytest.mark.e2e


class Page:
    """A page of a headless Chromium, driven over its DevTools protocol."""

    def __init__(self, socket):
        self.socket = socket
        self.count = 0

    async def ask(self, method, **params):
        self.count += 1
        await self.socket.send(json.dumps({"id": self.count, "method": method, "params": params}))
        while True:
            answer = json.loads(await self.socket.recv())
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    async def value(self, script):
        result = await self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        return result["result"].get("value")


@pytest.fixture
def chromium(tmp_path):
    """Address of the DevTools protocol of a blank page."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if binary is None:
        pytest.skip("Chromium is missing: apt-get install chromium")
    port = free_port()
    command = [binary, "--headless=new", "--no-sandbox", "--disable-gpu", f"--remote-debugging-port={port}"]
    command += [f"--user-data-dir={tmp_path}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield asyncio.run(page_address(port, process))
    finally:
        process.terminate()
        process.wait()


async def page_address(port, process):
    for _ in range(300):
        assert process.poll() is None, "Chromium ended"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as reply:
                return next(row for row in json.load(reply) if row["type"] == "page")["webSocketDebuggerUrl"]
        except OSError:
            await asyncio.sleep(0.1)
    raise AssertionError("Chromium does not answer")


def test_the_console_streams_a_wav_file_and_shows_its_turns(server, chromium, model, talk, tmp_path):
    path = tmp_path / "talk.wav"
    soundfile.write(path, talk, 16_000)

    async def run():
        async with websockets.connect(chromium, max_size=2**24) as socket:
            page = Page(socket)
            await page.ask("Page.enable")
            await page.ask("Page.navigate", url=f"http://127.0.0.1:{server}/console?speed=4")
            for _ in range(100):
                if await page.value("document.readyState === 'complete' && !!document.getElementById('file')"):
                    break
                await asyncio.sleep(0.1)
            document = await page.ask("DOM.getDocument")
            found = await page.ask("DOM.querySelector", nodeId=document["root"]["nodeId"], selector="#file")
            await page.ask("DOM.setFileInputFiles", nodeId=found["nodeId"], files=[str(path)])
            for _ in range(300):
                if await page.value("document.body.dataset.done === 'true'"):
                    break
                await asyncio.sleep(0.1)
            rows = await page.value(
                "[...document.querySelectorAll('#turns tr')].map(r => [...r.children].map(c => c.textContent))"
            )
            return rows, await page.value("document.getElementById('state').textContent")

    rows, state = asyncio.run(run())
    told = sorted((float(start), float(end), speaker) for start, end, speaker, _ in rows)
    turns = expected(model, talk)
    assert state.startswith("done:"), state
    assert [speaker for _, _, speaker in told] == [speaker for _, _, speaker in turns]
    assert np.allclose([row[:2] for row in told], [row[:2] for row in turns], atol=0.006)
