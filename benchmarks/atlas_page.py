"""How fast the atlas panel is with 20 480 latents, measured in the browser.

python -m benchmarks.atlas_page --url http://127.0.0.1:8188 --saes ComfyUI/models/saes

A running ComfyUI with the pack, and the folder of SAEs that it reads. A synthetic SAE and atlas are written there where
there is none yet (about 170 MB); delete `synthetic.*` afterwards. Printed are the time from the click on the tab to the
first cards and to their pictures, that of each search, frames while scrolling, and memory.
"""

import argparse
import resource
import shutil
import time
from pathlib import Path

from training.common.results import table

from .synthetic_atlas import write

READY = "() => window.app?.graph && app.extensionManager?.spinner === false"
OPEN = """async () => {
  const began = performance.now();
  app.extensionManager.sidebarTab.toggleSidebarTab("saeuron-atlas");
  const until = async (done) => { while (!done()) await new Promise(requestAnimationFrame); };
  const cards = () => [...document.querySelectorAll(".saeuron-card")];
  await until(() => cards().length);
  const first = performance.now() - began;
  await until(() => cards().every((card) => card.firstChild.naturalWidth));
  return [first, performance.now() - began];
}"""
SEARCH = """async (text) => {
  const box = document.querySelector(".saeuron-list input");
  const began = performance.now();
  box.value = text;
  box.dispatchEvent(new Event("input"));
  await new Promise(requestAnimationFrame);
  return [performance.now() - began, document.querySelector(".saeuron-list small").textContent];
}"""
SCROLL = """async () => {
  const grid = document.querySelector(".saeuron-grid");
  const frames = [];
  let before = performance.now();
  for (let frame = 0; frame < 180; frame++) {
    grid.scrollTop += 300;
    await new Promise(requestAnimationFrame);
    frames.push(performance.now() - before);
    before = performance.now();
  }
  frames.sort((one, other) => one - other);
  return [frames[90], frames[170]];
}"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--url", default="http://127.0.0.1:8188")
    options.add_argument("--saes", type=Path, required=True)
    options.add_argument("--chromium", default=shutil.which("chromium"))
    given = options.parse_args()
    lines = []
    if not (given.saes / "synthetic.atlas" / "atlas.json").exists():
        began = time.perf_counter()
        write(given.saes)
        lines.append(["atlas written in", f"{time.perf_counter() - began:.0f} s"])
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        lines.append(["largest memory while writing", f"{peak:.0f} MiB"])
    size = sum(file.stat().st_size for file in (given.saes / "synthetic.atlas").rglob("*") if file.is_file())
    lines.append(["atlas on disk", f"{size / 1e6:.0f} MB"])
    print(table(["what", "measured"], lines + measured(given.url, given.chromium)))


def measured(url: str, chromium: str) -> list[list[str]]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1800, "height": 1100})
        page.set_default_timeout(600_000)
        page.goto(url)
        page.wait_for_function(READY)
        page.wait_for_timeout(3000)
        inside = page.context.new_cdp_session(page)
        inside.send("Performance.enable")
        before = memory(browser, inside)
        # The choice falls on the first SAE with an atlas: the first visit makes `cards.json`, which is no matter of the
        # page; the second is measured.
        address = f"{url}/saeuron/atlas/cards?sae=synthetic.safetensors"
        page.evaluate("(address) => fetch(address).then((answer) => answer.arrayBuffer())", address)
        page.evaluate("() => localStorage.setItem('saeuron-atlas', 'synthetic.safetensors')")
        first, pictures = page.evaluate(OPEN)
        lines = [["first cards", f"{first:.0f} ms"], ["with their pictures", f"{pictures:.0f} ms"]]
        for text in ("s", "sun", "sunlight", "rain bird", "20000", ""):
            took, told = page.evaluate(SEARCH, text)
            lines.append([f"search {text!r} ({told.split(' of ')[0]} found)", f"{took:.0f} ms"])
        middle, worst = page.evaluate(SCROLL)
        lines.append(["a frame while scrolling, median and 95th of 100", f"{middle:.0f} and {worst:.0f} ms"])
        page.wait_for_timeout(1000)
        after = memory(browser, inside)
        lines.append(["JavaScript's memory before and after", f"{before[0]:.0f} and {after[0]:.0f} MB"])
        lines.append(["the page's process before and after", f"{before[1]:.0f} and {after[1]:.0f} MB"])
        browser.close()
    return lines


def memory(browser, inside) -> tuple[float, float]:
    """MB that JavaScript holds, and that the page's process has to itself (Pss)."""
    inside.send("HeapProfiler.collectGarbage")
    metrics = {one["name"]: one["value"] for one in inside.send("Performance.getMetrics")["metrics"]}
    processes = browser.new_browser_cdp_session().send("SystemInfo.getProcessInfo")["processInfo"]
    sizes = [pss(one["id"]) for one in processes if one["type"] == "renderer"]
    return metrics["JSHeapUsedSize"] / 1e6, max(sizes)


def pss(process: int) -> float:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1e3


if __name__ == "__main__":
    main()
