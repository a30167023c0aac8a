"""Where the ComfyUI is, and a server of it with this pack in ``custom_nodes``.

Tests here need a ComfyUI: at ``COMFYUI_PATH`` or where `comfy install` puts it, with the interpreter of its virtual
environment or ``COMFYUI_PYTHON``. Without one they are skipped, and the summary says so.
"""

import contextlib
import io
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
STARTS, RUNS = 300, 300
"""Seconds that a start and a queued workflow may take: a busy machine without a GPU is slow at both."""


@dataclass(frozen=True)
class ComfyUI:
    path: Path
    python: Path


def find_comfyui() -> ComfyUI | None:
    path = Path(os.environ.get("COMFYUI_PATH", "~/comfy/ComfyUI")).expanduser()
    own = [path / ".venv" / "bin" / "python", path / "venv" / "bin" / "python"]
    given = os.environ.get("COMFYUI_PYTHON")
    python = next((p for p in ([Path(given)] if given else own) if p.exists()), None)
    return ComfyUI(path, python) if (path / "main.py").exists() and python else None


FOUND = find_comfyui()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if FOUND is None:
        for item in items:
            if item.get_closest_marker("comfyui"):
                item.add_marker(pytest.mark.skip(reason="no ComfyUI found: set COMFYUI_PATH and COMFYUI_PYTHON"))


def pytest_terminal_summary(terminalreporter) -> None:
    if FOUND is None:
        terminalreporter.section("NO COMFYUI FOUND", sep="!", red=True, bold=True)
        terminalreporter.line("The nodes were NOT tested. Set COMFYUI_PATH to a ComfyUI, COMFYUI_PYTHON to its python.")


@pytest.fixture(scope="session")
def comfyui() -> ComfyUI:
    return FOUND


class Refused(Exception):
    """What ComfyUI says against a workflow: ``node`` is the id of the node that says it; ``ran`` are those before."""

    def __init__(self, node: str, message: str, ran: set[str]) -> None:
        super().__init__(message)
        self.node, self.message, self.ran = node, message, ran


class Server:
    """A running ComfyUI and its base directory; ``cached`` are the nodes that the last workflow did not run again."""

    Refused = Refused

    def __init__(self, comfyui: ComfyUI, base: Path, port: int, process: subprocess.Popen) -> None:
        self.comfyui, self.base, self.port, self.process = comfyui, base, port, process
        self.url = f"http://127.0.0.1:{port}"
        self.cached: set[str] = set()

    def get(self, path: str, **query: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}?{urllib.parse.urlencode(query)}", timeout=60) as answer:
            return answer.read()

    def get_json(self, path: str, **query: str) -> dict:
        return json.loads(self.get(path, **query))

    def post(self, path: str, content: dict) -> dict:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(content).encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = answer.read()
        return json.loads(content) if content else {}

    def queue(self, workflow: dict) -> str:
        """Queue a workflow in API format; its number. Raises Refused."""
        try:
            return self.post("/prompt", {"prompt": workflow})["prompt_id"]
        except urllib.error.HTTPError as error:
            answer = json.loads(error.read())
            for node, found in answer.get("node_errors", {}).items():
                first = found["errors"][0]
                raise Refused(node, f"{first['message']}: {first['details']}", set()) from None
            raise AssertionError(answer) from None

    def wait(self, number: str) -> dict:
        """What ComfyUI remembers of the workflow of this number, once it has ended."""
        deadline = time.monotonic() + RUNS
        while time.monotonic() < deadline:
            entry = self.get_json(f"/history/{number}").get(number)
            if entry:
                return entry
            time.sleep(0.2)
        raise AssertionError(f"the workflow did not finish in {RUNS} s")

    def run(self, workflow: dict) -> dict[str, dict]:
        """Queue a workflow and wait; what each node showed, by node id. Raises Refused."""
        return self.outputs(self.wait(self.queue(workflow)))

    def outputs(self, entry: dict) -> dict[str, dict]:
        messages = entry["status"]["messages"]
        self.cached = {node for kind, message in messages if kind == "execution_cached" for node in message["nodes"]}
        for kind, message in messages:
            if kind == "execution_error":
                raise Refused(message["node_id"], message["exception_message"].strip(), set(message["executed"]))
        assert entry["status"]["completed"], entry["status"]
        return entry["outputs"]

    def images(self, shown: dict) -> numpy.ndarray:
        """The pictures a node showed, ``[B, H, W, 3]`` of bytes."""
        read = [self.get("/view", **{key: item[key] for key in ("filename", "subfolder", "type")}) for item in shown]
        return numpy.stack([numpy.asarray(Image.open(io.BytesIO(png)).convert("RGB")) for png in read])

    def forget(self) -> None:
        """Drop every cached result and loaded model, so that the next workflow computes all of itself."""
        self.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(1)  # it is done between two workflows, by whoever waits for the next

    def log(self) -> str:
        return (self.base / "log.txt").read_text(errors="replace")


def free_port() -> int:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def server(comfyui, tmp_path_factory):
    """A ComfyUI whose every file, but for its code, lies in a temporary directory; the pack is a link in it."""
    base = tmp_path_factory.mktemp("comfyui")
    for folder in ("custom_nodes", "models/saes", "models/checkpoints", "input", "output", "temp", "user"):
        (base / folder).mkdir(parents=True)
    (base / "custom_nodes" / "ComfyUI-SAeUron").symlink_to(ROOT, target_is_directory=True)
    port = free_port()
    command = [comfyui.python, comfyui.path / "main.py", "--cpu", "--disable-api-nodes", "--port", port]
    command += ["--base-directory", base, "--user-directory", base / "user", "--output-directory", base / "output"]
    command += ["--database-url", "sqlite:///:memory:", "--disable-auto-launch"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    with open(base / "log.txt", "wb") as log:
        process = subprocess.Popen(
            [str(part) for part in command], cwd=base, stdout=log, stderr=subprocess.STDOUT, env=environment
        )
    running = Server(comfyui, base, port, process)
    try:
        _wait(running)
        yield running
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(server: Server) -> None:
    deadline = time.monotonic() + STARTS
    while time.monotonic() < deadline and server.process.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            server.get("/system_stats")
            return
        time.sleep(0.5)
    raise AssertionError(f"ComfyUI did not start:\n{server.log()[-4000:]}")


@pytest.fixture
def load():
    """Reads a workflow in API format by its name; every call gives a fresh copy.

    Empty Latent Image of older ComfyUIs counts eight pixels a latent for every model, TinyCanvas has two: there it is
    asked for four times the size, as the node's help says.
    """
    knows_ratio = "downscale_ratio_spacial" in (FOUND.path / "comfy" / "sample.py").read_text("utf-8")

    def read(name: str, folder: Path = ROOT / "workflows" / "api") -> dict:
        workflow = json.loads((folder / f"{name}.json").read_text("utf-8"))
        for node in workflow.values():
            if node["class_type"] == "EmptyLatentImage" and not knows_ratio:
                node["inputs"] |= {side: 4 * node["inputs"][side] for side in ("width", "height")}
        return workflow

    return read


@pytest.fixture(scope="session")
def chromium() -> str:
    """Debian's Chromium, or another by CHROMIUM; Playwright's own download is not used."""
    path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no Chromium found: install one, or set CHROMIUM")
    return path


FRONT_END = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
}
STEP = 120_000
"""Milliseconds that one step in the browser may take."""


@pytest.fixture(scope="session")
def browser(chromium):
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: the browser was NOT tested")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def models(server):
    """Files of the names that the workflows for other models ask for; nothing reads them."""
    checkpoints = ("v1-5-pruned-emaonly-fp16", "sd_xl_base_1.0", "flux1-schnell-fp8")
    wanted = [f"checkpoints/{name}.safetensors" for name in checkpoints]
    wanted += ["saes/SAE_flux_18/state_dict.pth"]
    wanted += ["saes/unet.down_blocks.2.attentions.1_k10_hidden5120_auxk256_bs4096_lr0.0001/final/state_dict.pth"]
    wanted += [f"saes/unet.up_blocks.1.attentions.{i}/sae.safetensors" for i in (1, 2)]
    for name in wanted:
        file = server.base / "models" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.fixture
def open_page(browser, server, models):
    """The front end, with or without Nodes 2.0, past its welcome."""
    pages = []

    def open_it(vue: bool, theme: str = "dark"):
        server.post("/settings", FRONT_END | {"Comfy.VueNodes.Enabled": vue, "Comfy.ColorPalette": theme})
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        pages.append(page)
        page.set_default_timeout(STEP)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.goto(server.url)
        page.wait_for_function("() => window.app?.graph && app.extensionManager?.spinner === false")
        return page

    yield open_it
    for page in pages:
        page.close()
