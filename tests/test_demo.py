"""The page, in a real browser without a network: clips chosen or uploaded, what is made of them, what is wrong said;
and the microphone."""

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_stage import make_run

from avdvae.data.prepare import Summary

PROGRAM = Path(__file__).parent.parent / "experiments" / "demo.py"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")

for package in ("gradio", "playwright"):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed: pip install -e '.[demo,test]'", allow_module_level=True)
if BROWSER is None:
    pytest.skip("no browser: apt-get install chromium", allow_module_level=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def address(prepared: Summary, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root, port = tmp_path_factory.mktemp("demo"), free_port()
    run = make_run(root / "run", prepared.out, "DSAE")
    words = [f"run={run}", f"port={port}", "open=false", "max_seconds=5", "max_mb=1"]
    words += ["enhance.estep.name=free_gaussian", "streaming.iterations=1", "streaming.block=0.3"]
    log = (root / "log").open("w")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    page = subprocess.Popen([sys.executable, PROGRAM, *words], stdout=log, stderr=log, cwd=root, env=environment)
    try:
        for _ in range(600):
            assert page.poll() is None, (root / "log").read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        page.terminate()  # what runs in the background may be deaf to Ctrl-C
        page.wait(30)
        log.close()


def test_it_listens_on_this_machine_alone(address: str) -> None:
    port = int(address.rpartition(":")[2])
    listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:] if " 0A " in line]
    assert [place for place in listening if place.endswith(f":{port:04X}")] == [f"0100007F:{port:04X}"]


def test_the_page_in_a_browser(address: str, clip: Path, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    long, loud, text = tmp_path / "long.wav", tmp_path / "loud.wav", tmp_path / "broken.wav"
    soundfile.write(long, np.zeros(16_000 * 9, np.int16), 16_000)
    soundfile.write(loud, np.random.default_rng(0).normal(0, 0.1, 1_000_000), 48_000)
    text.write_text("no sound")
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        arguments += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        page = browser.new_page()
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address)
        page.get_by_role("button", name="Transfer", exact=True).click()
        result = page.locator("#result_sound")
        expect(page.locator("#film video")).to_be_visible()
        expect(page.locator("#strip img")).to_be_visible()
        seconds = page.locator("#film video").evaluate(
            "v => new Promise(ok => v.readyState ? ok(v.duration) : v.onloadedmetadata = () => ok(v.duration))"
        )
        assert 0.5 < seconds < 10, "the film plays"
        expect(result).to_be_visible()

        for percent in ("50", "0"):  # half way, and not at all
            shown = page.locator("#film video").get_attribute("src")
            page.locator("#percent input[type=range]").fill(percent)
            expect(page.locator("#percent input[type=number]")).to_have_value(percent)
            page.get_by_role("button", name="Transfer", exact=True).click()
            expect(page.locator("#film video")).not_to_have_attribute("src", shown or "")
        first = page.locator("#film video").get_attribute("src")

        page.locator("#source_file input[type=file]").set_input_files(clip)  # one's own, which goes first
        expect(page.locator("#source_file")).to_contain_text(clip.stem)
        page.get_by_role("button", name="Transfer", exact=True).click()
        expect(page.locator("#film video")).not_to_have_attribute("src", first or "")

        page.get_by_label("z", exact=True).check()
        page.get_by_label("v", exact=True).uncheck()
        page.get_by_label("z", exact=True).uncheck()
        page.get_by_role("button", name="Transfer", exact=True).click()
        expect(page.get_by_text("none is named: choose from v, z")).to_be_visible()
        page.locator(".toast-close").last.click()

        page.get_by_role("tab", name="Enhance").click()
        for file, words in (
            (long, "long.wav: it lasts 9.0 s, and this page takes 5 s at most"),
            (text, "broken.wav: it is neither a video nor a sound file"),
        ):
            page.locator("#noisy_file input[type=file]").set_input_files(file)
            expect(page.locator("#noisy_file")).to_contain_text(file.stem)
            page.get_by_role("button", name="Enhance", exact=True).click()
            expect(page.get_by_text(words)).to_be_visible()
            page.locator(".toast-close").last.click()
            expect(page.locator(".toast-close")).to_have_count(0)
            page.locator("#noisy_file").get_by_label("Clear").click()
        page.locator("#noisy_file input[type=file]").set_input_files(loud)
        expect(page.get_by_text("exceed the maximum allowed size")).to_be_visible()
        page.reload()
        page.get_by_role("tab", name="Enhance").click()
        page.locator("#noisy_file input[type=file]").set_input_files(clip)
        expect(page.locator("#noisy_file")).to_contain_text(clip.stem)
        page.get_by_role("button", name="Enhance", exact=True).click()
        expect(page.locator("#enhanced")).to_contain_text("0:0")

        page.get_by_role("tab", name="Microphone").click()  # tests/test_live.py has what it plays
        frame = page.frame_locator("iframe")
        frame.get_by_role("button", name="Start").click()
        expect(frame.locator("#factor")).to_have_text(re.compile(r"\d"))
        expect(frame.locator("#latency")).to_have_text(re.compile(r"\d+ ms"))
        frame.get_by_role("button", name="Stop").click()
        expect(frame.get_by_role("button", name="Save both recordings")).to_be_enabled()
        expect(frame.get_by_role("alert")).to_have_text("")
        browser.close()
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not elsewhere, elsewhere
