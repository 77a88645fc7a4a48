"""Measure how fast the page of play.py is in Chromium, on this machine.

Example: python benchmarks/page.py --out page.json

It times the start of the program, a slider until its image has changed, and how many pictures a
second the plane shows. Needs chromium and chromedriver.
"""

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from throughput import TOP, save

# Move a slider and call back with the milliseconds until another image is shown.
SLIDE = """
const [value, done] = arguments;
const shown = (css) => [...document.querySelectorAll(css)].filter(e => e.offsetParent);
const images = () => shown("img").map(e => e.src).join();
const before = images(), began = performance.now(), slider = shown("input[type=range]")[3];
const watch = new MutationObserver(() => {
  if (images() != before) { watch.disconnect(); done(performance.now() - began); }
});
watch.observe(document.body, {subtree: true, childList: true, attributes: true});
const {set} = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value");
set.call(slider, value);
for (const event of ["input", "change", "pointerup"])
  slider.dispatchEvent(new Event(event, {bubbles: true}));
"""
# Call back with the number of pictures of the plane in so many milliseconds.
COUNT = """
const [milliseconds, done] = arguments;
const step = () => document.body.innerText.match(/step ([\\d,]+)/)?.[1];
let last = step(), pictures = 0;
new MutationObserver(() => { if (step() != last) { last = step(); pictures++; } })
  .observe(document.body, {subtree: true, childList: true, characterData: true});
setTimeout(() => done(pictures), milliseconds);
"""


def click(driver: webdriver.Chrome, css: str, text: str) -> None:
    """Click what is shown with this text."""
    found = [e for e in driver.find_elements(By.CSS_SELECTOR, css) if e.is_displayed()]
    next(e for e in found if e.text == text).click()


def measure(driver: webdriver.Chrome, address: str) -> dict[str, float]:
    """Return the median milliseconds of a slider and the pictures of the plane in a second."""
    driver.get(address)
    time.sleep(8)  # until everything is drawn
    times = []
    for number in range(20):
        times.append(driver.execute_async_script(SLIDE, number % 12 - 5.5))
        time.sleep(0.3)
    click(driver, "button[role=tab]", "Plane")
    time.sleep(3)
    click(driver, "button", "Play")
    time.sleep(3)
    pictures = driver.execute_async_script(COUNT, 10_000)
    return {
        "slider_milliseconds": round(statistics.median(times)),
        "pictures_per_second": pictures / 10,
    }


def main() -> None:
    """Start the program and a browser, measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    args = parser.parse_args()
    options = webdriver.ChromeOptions()
    for option in ("--headless=new", "--no-sandbox", "--window-size=1400,1000"):
        options.add_argument(option)
    service = webdriver.ChromeService(shutil.which("chromedriver"))  # none is fetched
    command = [sys.executable, "play.py", "--no-browser", "--port", "7999"]
    began = time.time()
    with subprocess.Popen(command, cwd=TOP, stdout=subprocess.PIPE, text=True) as page:
        address = re.search(r"http://\S+", page.stdout.readline())[0]
        figures = {"start_seconds": round(time.time() - began, 1)}
        try:
            with webdriver.Chrome(options=options, service=service) as driver:
                figures |= measure(driver, address)
        finally:
            page.terminate()
            page.communicate()
    print(json.dumps(figures, indent=1))
    save(figures, args.out)


if __name__ == "__main__":
    main()
