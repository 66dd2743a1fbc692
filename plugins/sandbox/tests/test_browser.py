"""The chat page in Chromium, used by keyboard, mouse and files. Needs Selenium, a Chromium and its chromedriver."""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from molecule_connect_sandbox.options import SandboxOptions
from molecule_connect_sandbox.server import running_server

webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed: pip install selenium")

from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.remote.webelement import WebElement  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.drill,
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        CHROMIUM is None or CHROMEDRIVER is None,
        reason="there is no Chromium with chromedriver: apt install chromium chromium-driver",
    ),
]
ADMIN = {"Authorization": "Bearer admin"}
PHONE, SMALL_PHONE, DESKTOP = (390, 844), (360, 640), (1280, 800)
PATIENCE = 60
PROGRAM = [sys.executable, "-m", "molecule_connect_sandbox"]

# The contrast of each visible text with the nearest opaque background, where it is too low.
LOW_CONTRAST = """
const parse = (color) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = ([r, g, b]) => {
  const part = (value) => (value /= 255) <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
  return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
};
const over = (top, below) => top.slice(0, 3).map((value, at) => value * top[3] / 255 + below[at] * (1 - top[3] / 255));
const ground = (element) => {
  const layers = [];
  for (let one = element; one; one = one.parentElement) {
    const color = parse(getComputedStyle(one).backgroundColor);
    layers.push(color);
    if (color[3] === 255) break;
  }
  return layers.reverse().reduce((below, top) => [...over(top, below), 255], [255, 255, 255, 255]);
};
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const element = walker.currentNode.parentElement;
  if (!walker.currentNode.textContent.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
  if (element.closest("script, noscript, option, :disabled, .hidden, .skip")) continue;
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) found.push(`${walker.currentNode.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
}
return found;
"""


class Site:
    """A sandbox with one workspace, and what its agent does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.client = httpx.Client(base_url=url, headers=ADMIN, timeout=30, trust_env=False)
        self.id, self.token = self.workspace("helper")

    def workspace(self, name: str) -> tuple[str, str]:
        body = {"name": name, "external": True, "runtime": "external", "delivery_mode": "poll"}
        made = self.client.post("/workspaces", json=body).json()
        workspace_id, token = made["id"], made["connection"]["auth_token"]
        about = {"id": workspace_id, "delivery_mode": "poll", "agent_card": {"name": name}}
        self.client.post("/registry/register", json=about, headers={"Authorization": f"Bearer {token}"})
        return str(workspace_id), str(token)

    def as_agent(self, path: str, body: Any, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        answered = self.client.post(path, json=body, headers=headers, **more)
        assert answered.is_success, answered.text
        return answered.json()

    def notify(self, text: str, **more: Any) -> None:
        self.as_agent(f"/workspaces/{self.id}/notify", {"message": text, **more})

    def upload(self, name: str, content: bytes, kind: str) -> list[dict[str, Any]]:
        files = [("files", (name, content, kind))]
        headers = {"Authorization": f"Bearer {self.token}"}
        answered = self.client.post(f"/workspaces/{self.id}/chat/uploads", files=files, headers=headers)
        uploaded: list[dict[str, Any]] = answered.json()["files"]
        return uploaded

    def beat(self, **fields: Any) -> None:
        self.as_agent("/registry/heartbeat", {"workspace_id": self.id, "error_rate": 0.0, **fields})

    def rows(self, count: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.get(f"/sandbox/workspaces/{self.id}/rows?count={count}").json()
        return found


@pytest.fixture
def site() -> Iterator[Site]:
    with running_server(SandboxOptions(admin_token="admin")) as server:
        made = Site(server.url)
        yield made
        made.client.close()


class Browser:
    """A Chromium with the helpers of these tests. Waits instead of sleeping."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def show(self, url: str, size: tuple[int, int] = DESKTOP, **features: str) -> None:
        width, height = size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": media})
        self.driver.get("about:blank")
        self.driver.get(url)
        self.until(lambda: self["live"].get_attribute("data-state") == "open")

    def __getitem__(self, name: str) -> WebElement:
        element: WebElement = self.driver.find_element(By.ID, name)
        return element

    def all(self, selector: str) -> list[WebElement]:
        elements: list[WebElement] = self.driver.find_elements(By.CSS_SELECTOR, selector)
        return elements

    def texts(self, selector: str = "#messages .body") -> list[str]:
        script = "return [...document.querySelectorAll(arguments[0])].map((one) => one.innerText.trim())"
        found: list[str] = self.driver.execute_script(script, selector)
        return found

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def until(self, condition: Callable[[], Any]) -> Any:
        return WebDriverWait(self.driver, PATIENCE, poll_frequency=0.1).until(lambda _: condition())

    def press(self, *keys: str) -> None:
        webdriver.ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> str:
        return str(self.run("return document.activeElement.id"))

    def complaints(self) -> list[str]:
        """Errors of the script and violations of the policy."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium: Browser, site: Site) -> Iterator[Browser]:
    """The browser. It leaves the page before the site ends, which the page would report."""
    yield chromium
    complaints = chromium.complaints()
    chromium.driver.get("about:blank")
    chromium.complaints()
    assert complaints == []


def test_person_chats_with_an_agent(browser: Browser, site: Site) -> None:
    browser.show(site.url)
    browser.until(lambda: browser["chat-name"].text == "helper")
    browser["text"].send_keys("hello", Keys.SHIFT, Keys.ENTER)
    browser["text"].send_keys("there", Keys.ENTER)
    (row,) = site.rows(1)
    assert row["request_body"]["params"]["message"]["parts"] == [{"kind": "text", "text": "hello\nthere"}]
    browser.until(lambda: browser.texts() == ["hello\nthere"])
    assert browser["text"].get_attribute("value") == ""
    assert browser.focused() == "text"
    site.beat(active_tasks=1, current_task="Reading 3 of 7")
    browser.until(lambda: "helper is working: Reading 3 of 7" in browser["waiting"].text)
    site.notify("**hi** <b>you</b>")
    browser.until(lambda: browser.texts() == ["hello\nthere", "hi <b>you</b>"])
    assert not browser["waiting"].is_displayed()
    assert browser["log"].get_attribute("aria-live") == "polite"
    browser.driver.refresh()
    browser.until(lambda: browser.texts() == ["hello\nthere", "hi <b>you</b>"])


def test_nothing_is_requested_from_other_hosts(browser: Browser, site: Site) -> None:
    site.notify("![pixel](https://evil.example/pixel.png) <img src='https://evil.example/x'> https://evil.example")
    browser.show(site.url)
    browser.until(lambda: len(browser.texts()) == 1)
    entries = browser.run("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert entries
    assert [name for name in entries if not name.startswith(site.url)] == []


@pytest.mark.parametrize("voice", ["person", "agent"])
def test_hostile_texts_run_nothing(browser: Browser, site: Site, voice: str) -> None:
    hostile = (
        "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'> "
        "[x](javascript:window.hacked=1) <svg onload=window.hacked=1> `<iframe srcdoc='<script>top.hacked=1</script>'>`"
    )
    name = "<img src=x onerror=window.hacked=1>.html"
    page = b"<script>opener.hacked = 1; top.hacked = 1</script>"
    site.workspace("<script>window.hacked=1</script>")
    site.beat(runtime_state="wedged", sample_error=hostile)
    if voice == "agent":
        site.notify(hostile, attachments=[{**site.upload("x.html", page, "text/html")[0], "name": name}])
    else:
        message = {"parts": [{"kind": "text", "text": hostile}]}
        site.client.post(f"/workspaces/{site.id}/a2a", json={"method": "message/send", "params": {"message": message}})
    browser.show(site.url)
    browser.until(lambda: len(browser.texts()) == 1)
    browser["show-panel"].click()
    browser.until(lambda: browser.all("#rows summary"))[0].click()
    assert browser.run("return window.hacked ?? null") is None
    assert browser.all("#messages script, #messages iframe, #messages svg[onload], #rows img") == []
    # Trusted types make the sanitized HTML of the server the only HTML.
    with pytest.raises(Exception, match="TrustedHTML"):
        browser.run("document.body.innerHTML = '<p>x</p>'")
    assert any("TrustedHTML" in line for line in browser.complaints())


def test_agents_files_are_saved_not_opened(browser: Browser, site: Site, tmp_path: Path) -> None:
    page = b"<script>window.hacked = 1</script>"
    site.notify("see", attachments=site.upload("page.html", page, "text/html"))
    behavior = {"behavior": "allow", "downloadPath": str(tmp_path)}
    browser.driver.execute_cdp_cmd("Browser.setDownloadBehavior", behavior)
    browser.show(site.url)
    link = browser.until(lambda: browser.all("#messages a.file"))[0]
    address = link.get_attribute("href")
    link.click()
    browser.until(lambda: (tmp_path / "page.html").exists())
    assert (tmp_path / "page.html").read_bytes() == page
    browser.driver.get(address)
    assert browser.run("return location.pathname") == "/"


def test_files_are_dropped_pasted_and_chosen(browser: Browser, site: Site, tmp_path: Path) -> None:
    browser.show(site.url)
    browser.until(lambda: browser["chat-name"].text == "helper")
    browser.run("""
      const files = (name) => { const data = new DataTransfer(); data.items.add(new File(["x"], name)); return data; };
      const drop = { bubbles: true, cancelable: true, dataTransfer: files("dropped.txt") };
      document.querySelector("#log").dispatchEvent(new DragEvent("dragenter", drop));
      if (document.querySelector("#drop").hidden) throw Error("no hint");
      document.querySelector("#log").dispatchEvent(new DragEvent("drop", drop));
      const paste = { bubbles: true, cancelable: true, clipboardData: files("pasted.txt") };
      document.querySelector("#text").dispatchEvent(new ClipboardEvent("paste", paste));
    """)
    (tmp_path / "chosen.txt").write_text("chosen")
    (tmp_path / "removed.txt").write_text("removed")
    browser["files"].send_keys(f"{tmp_path / 'chosen.txt'}\n{tmp_path / 'removed.txt'}")
    browser.until(lambda: len(browser.all("#chips li")) == 4)
    assert not browser["drop"].is_displayed()
    browser.all("#chips li [aria-label='Remove removed.txt']")[0].click()
    browser["send"].click()
    *uploads, message = site.rows(4)
    names = [row["request_body"]["name"] for row in uploads]
    assert names == ["dropped.txt", "pasted.txt", "chosen.txt"]
    assert len(message["request_body"]["params"]["message"]["parts"]) == 3
    browser.until(lambda: browser.texts("#messages .file-name") == names)
    assert browser.all("#chips li") == []


def test_speaks_as_a_peer(browser: Browser, site: Site) -> None:
    browser.show(site.url)
    browser.until(lambda: len(browser.all("#voice option")) == 2)
    browser["voice"].send_keys("a peer")
    browser.until(lambda: "as a peer" in (browser["text"].get_attribute("placeholder") or ""))
    browser["text"].send_keys("status?", Keys.ENTER)
    (row,) = site.rows(1)
    assert row["source_id"] not in (None, site.id)
    message = {"role": "agent", "parts": [{"kind": "text", "text": "all green"}]}
    site.as_agent(f"/workspaces/{row['source_id']}/a2a", {"method": "message/send", "params": {"message": message}})
    browser.until(lambda: browser.texts() == ["status?", "all green"])
    browser["voice"].send_keys("a person")
    browser.until(lambda: browser.texts() == [])


def test_panel_shows_rows_dead_letters_and_faults(browser: Browser, site: Site) -> None:
    site.notify("hello")
    browser.show(site.url)
    browser["show-panel"].click()
    browser.until(lambda: browser.all("#rows summary"))[0].click()
    browser.until(lambda: '"result": "hello"' in browser.texts("#rows pre")[0])
    site.notify("again")
    browser.until(lambda: len(browser.all("#rows summary")) == 2)
    browser["tab-dead"].click()
    browser.until(lambda: "Failures that the platform knows" in browser["dead"].text)
    browser["tab-faults"].click()
    browser.until(lambda: browser.all("#faults li"))
    browser["fault-unavailable"].click()
    browser.until(lambda: site.client.get("/sandbox/faults").json()["faults"] == ["unavailable"])
    browser.until(lambda: browser["fault-count"].text == "1")
    site.client.put("/sandbox/faults", json={"faults": ["html,times=1"]})
    browser.until(lambda: browser["fault-html"].is_selected() and not browser["fault-unavailable"].is_selected())
    browser["no-faults"].click()
    browser.until(lambda: site.client.get("/sandbox/faults").json()["faults"] == [])


def test_failed_answer_leads_to_dead_letters(browser: Browser, site: Site) -> None:
    site.notify("This message could not be answered (reference 3f2a9c1d).")
    browser.show(site.url)
    browser.until(lambda: browser.all(".notice .link"))[0].click()
    assert browser["view-dead"].is_displayed()


def test_every_state_is_shown(browser: Browser, site: Site) -> None:
    paused, _ = site.workspace("paused")
    site.client.post(f"/workspaces/{paused}/pause")
    body = {"name": "waiting", "external": True, "runtime": "external", "delivery_mode": "poll"}
    site.client.post("/workspaces", json=body)
    browser.show(site.url)
    states = ["Online", "Paused", "Waiting for a connector"]
    browser.until(lambda: browser.texts("#workspace-list .state") == states)
    site.beat(runtime_state="wedged", sample_error="the backend hangs")
    browser.until(lambda: browser.texts("#workspace-list .state")[0] == "Stuck: the backend hangs")
    site.beat(runtime_state="wedged", sample_error="stopped")
    browser.until(lambda: browser.texts("#workspace-list .state")[0] == "Connector stopped")
    browser["text"].send_keys("hello", Keys.ENTER)
    browser.until(lambda: "No connector serves helper" in browser["waiting"].text)
    browser.all("#workspace-list button")[1].click()
    browser.until(lambda: browser["chat-name"].text == "paused")
    browser["text"].send_keys("hello", Keys.ENTER)
    browser.until(lambda: "paused is paused" in browser["waiting"].text)


def test_reader_who_scrolled_up_is_not_moved(browser: Browser, site: Site) -> None:
    for number in range(60):
        site.notify(f"message {number}\n\nwith two paragraphs")
    browser.show(site.url)
    browser.until(lambda: len(browser.texts()) == 50)
    at_end = (
        "const log = document.querySelector('#log'); return log.scrollHeight - log.scrollTop - log.clientHeight < 3"
    )
    browser.until(lambda: browser.run(at_end))
    site.notify("at the end")
    browser.until(lambda: browser.texts()[-1] == "at the end" and browser.run(at_end))
    browser.run("document.querySelector('#log').scrollTop = 100")
    site.notify("while reading")
    browser.until(lambda: browser["jump"].is_displayed())
    assert browser.run("return document.querySelector('#log').scrollTop") == 100
    browser["jump"].click()
    browser.until(lambda: browser.run(at_end))
    assert not browser["jump"].is_displayed()
    browser.run("document.querySelector('#log').scrollTop = 0")
    browser["earlier"].click()
    browser.until(lambda: browser.texts()[0] == "message 0\n\nwith two paragraphs")
    assert browser.run("return document.querySelector('#log').scrollTop") > 0
    assert not browser["earlier"].is_displayed()


def test_long_messages_are_folded(browser: Browser, site: Site) -> None:
    site.notify("\n\n".join(f"paragraph {number}" for number in range(60)))
    browser.show(site.url)
    more = browser.until(lambda: browser.all(".more"))[0]
    height = browser.all(".bubble")[0].size["height"]
    assert height < 520
    more.click()
    assert browser.all(".bubble")[0].size["height"] > 2 * height
    assert more.get_attribute("aria-expanded") == "true"


@contextlib.contextmanager
def serving(store: Path, port: int = 0) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    command = [*PROGRAM, "--serve", "--store", str(store), "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            yield process, url
        finally:
            process.kill()


def test_page_survives_a_restart_of_the_sandbox(browser: Browser, tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    with serving(store) as (process, url):
        browser.show(url)
        browser["text"].send_keys("hello", Keys.ENTER)
        browser.until(lambda: browser.texts() == ["hello"])
        browser["text"].send_keys("a draft")
        process.send_signal(signal.SIGKILL)
        process.wait()
        browser.until(lambda: browser["live"].text == "Reconnecting…")
        browser.until(lambda: "does not answer" in browser["banner"].text)
        browser["text"].send_keys(Keys.ENTER)
        browser.until(lambda: "Not sent" in browser["send-error"].text)
        assert browser["text"].get_attribute("value") == "a draft"
    with serving(store) as (_, again):
        assert again == url
        browser.until(lambda: browser["live"].get_attribute("data-state") == "open")
        browser.until(lambda: browser.texts() == ["hello"])
        assert browser["text"].get_attribute("value") == "a draft"
        browser.driver.refresh()
        browser.until(lambda: browser.texts() == ["hello"])
        assert browser["text"].get_attribute("value") == "a draft"
    # The browser logs each refused connection.
    assert all("ERR_" in line for line in browser.complaints())


def test_drafts_belong_to_their_conversation(browser: Browser, site: Site) -> None:
    site.workspace("other")
    browser.show(site.url)
    browser.until(lambda: len(browser.all("#workspace-list button")) == 2)
    browser["text"].send_keys("for helper")
    browser.all("#workspace-list button")[1].click()
    browser.until(lambda: browser["chat-name"].text == "other")
    assert browser["text"].get_attribute("value") == ""
    site.notify("news")
    fresh = "#workspace-list li:first-child .new:not([hidden])"
    browser.until(lambda: browser.all(fresh))
    assert browser.driver.title.startswith("(1) other")
    browser.all("#workspace-list button")[0].click()
    browser.until(lambda: browser["text"].get_attribute("value") == "for helper")
    browser.until(lambda: not browser.all("#workspace-list .new:not([hidden])"))


def test_works_by_keyboard_alone(browser: Browser, site: Site) -> None:
    browser.show(site.url)
    browser.until(lambda: browser["chat-name"].text == "helper")
    browser.press(Keys.TAB, Keys.ENTER)
    assert browser.focused() == "text"
    browser.press("hello", Keys.ENTER)
    site.rows(1)
    browser["show-panel"].send_keys(Keys.ENTER)
    assert browser.focused() == "tab-rows"
    browser.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert browser.focused() == "tab-faults"
    assert browser["view-faults"].is_displayed()
    browser.until(lambda: browser.all("#faults li"))
    browser.press(Keys.TAB, Keys.TAB, Keys.TAB)
    assert browser.focused() == "fault-late-commits"
    browser.press(Keys.SPACE)
    browser.until(lambda: site.client.get("/sandbox/faults").json()["faults"] == ["late-commits"])
    browser.press(Keys.ESCAPE)
    assert not browser["panel"].is_displayed()
    assert browser.focused() == "show-panel"


NAMED = {"button", "textbox", "combobox", "link", "tab", "switch", "listbox", "img", "log", "tabpanel", "navigation"}


def test_every_control_has_a_name(browser: Browser, site: Site) -> None:
    site.notify("done", attachments=site.upload("a.txt", b"a", "text/plain"))
    browser.show(site.url)
    browser["show-panel"].click()
    browser["tab-faults"].click()
    browser.until(lambda: browser.all("#faults li") and browser.all("#messages .file"))
    for summary in browser.all("#faults summary")[:1]:
        summary.click()
    nodes = browser.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    shown = [node for node in nodes if not node.get("ignored")]
    unnamed = [
        node["role"]["value"]
        for node in shown
        if node["role"]["value"].lower() in NAMED and not node.get("name", {}).get("value")
    ]
    assert unnamed == []
    roles = {node["role"]["value"] for node in shown}
    assert {"log", "main", "navigation", "complementary", "banner", "tablist", "switch"} <= roles


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [SMALL_PHONE, PHONE, DESKTOP], ids=["small-phone", "phone", "desktop"])
def test_texts_are_readable_and_fit(browser: Browser, site: Site, size: tuple[int, int], scheme: str) -> None:
    wide = "| " + " | ".join("column" for _ in range(20)) + " |\n|" + "---|" * 20
    site.notify(
        f"# Title\n\n> quote\n\n`code` [link](https://x.example)\n\n{'w' * 300}\n\n{wide}\n\n```\n{'y' * 300}\n```"
    )
    site.notify("This message could not be answered (reference 3f2a9c1d).")
    message = {"parts": [{"kind": "text", "text": "x" * 300}]}
    site.client.post(f"/workspaces/{site.id}/a2a", json={"method": "message/send", "params": {"message": message}})
    site.beat(active_tasks=1, current_task="z" * 300)
    site.workspace("n" * 100)
    site.client.put("/sandbox/faults", json={"faults": ["late-commits=1-5"]})
    browser.show(site.url, size, prefers_color_scheme=scheme)
    browser.until(lambda: len(browser.texts()) == 3)

    def check() -> None:
        assert browser.run("return document.documentElement.scrollWidth") == size[0]
        inner = "const one = document.querySelector(arguments[0]); return one.scrollWidth - one.clientWidth"
        assert browser.run(inner, "#log") <= 0
        assert browser.run(LOW_CONTRAST) == []

    check()
    browser["show-panel"].click()
    browser.until(lambda: browser.all("#rows summary"))[0].click()
    check()
    browser["tab-dead"].click()
    browser.until(lambda: "Failures" in browser["dead"].text)
    check()
    browser["tab-faults"].click()
    browser.until(lambda: browser.all("#faults li"))
    check()
    browser["hide-panel"].click()
    if size is not DESKTOP:
        browser["show-workspaces"].click()
        browser.until(lambda: browser["workspaces"].is_displayed())
        assert browser.run("return document.querySelector('#workspaces').contains(document.activeElement)")
        check()
        browser.press(Keys.ESCAPE)
        assert browser.focused() == "show-workspaces"
    touch = (
        "return [...document.querySelectorAll('.composer button, .bar button')].filter((one) => one.checkVisibility())"
    )
    assert all(
        one["height"] >= 36 for one in browser.run(f"{touch}.map((one) => one.getBoundingClientRect().toJSON())")
    )


def test_nothing_moves_if_the_reader_prefers_so(browser: Browser, site: Site) -> None:
    browser.show(site.url, prefers_reduced_motion="reduce")
    browser["text"].send_keys("hello", Keys.ENTER)
    browser.until(lambda: browser["waiting"].is_displayed())
    assert browser.run("return getComputedStyle(document.querySelector('.dots i')).animationName") == "none"
    assert json.dumps(browser.run("return document.getAnimations().length")) == "0"
