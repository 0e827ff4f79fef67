"""How fast the report of a large run opens: python experiments/bench/report.py --evaluations 5000

Writes the report of simulated evaluations of a twelve-layer encoder and opens it in headless Chromium, each time in a
new browser.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random

from nas.fronts.front import ParetoFront
from nas.fronts.point import Point, Source
from nas.recipe.objectives import Bound, Direction
from nas.reports.html import write_report
from search_spaces import SubnetConfig

OBJECTIVES: dict[str, Direction] = {"accuracy": "maximize", "latency_ms": "minimize"}
MARKS = ("shown", "drawn", "ready")
"""When all text is there, when the front is drawn, and when all evaluations are drawn and the page answers."""


def evaluated(rng: Random, source: Source) -> Point:
    """A subnetwork with values that grow with its size, and noise."""
    layers = tuple(sorted(rng.sample(range(12), rng.randint(4, 12))))
    heads = tuple(rng.choice([2, 4, 6, 8, 10, 12]) for _ in layers)
    ffn = tuple(rng.choice([192, 384, 768, 1152, 1536]) for _ in layers)
    latency_ms = 0.2 * sum(heads) + 0.001 * sum(ffn)
    values = {
        "accuracy": 1 - 1 / (1 + latency_ms) + rng.gauss(0, 0.02),
        "latency_ms": latency_ms,
        "macs": latency_ms * 1e7,
        "num_parameters": latency_ms * 1e6,
        "size_mb": latency_ms * 4,
    }
    return Point(SubnetConfig(layers, heads, ffn, 384), values, {"accuracy": 0.01, "latency_ms": 0.1}, source)


def write(path: Path, evaluations: int) -> None:
    """The report of a run with ``evaluations`` evaluations, as many at random, and a front."""
    rng = Random(0)
    search = [evaluated(rng, "search") for _ in range(evaluations)]
    random = [evaluated(rng, "random") for _ in range(evaluations)]
    verified = [replace(point, measured=True) for point in ParetoFront.of([*search, *random], OBJECTIVES)]
    write_report(
        path,
        title=f"{evaluations} evaluations",
        front=ParetoFront.of(verified, OBJECTIVES),
        verified=verified,
        evaluated=search + random,
        constraints={"latency_ms": Bound.parse("<= 20")},
        facts={},
        notes=[],
        export_command="nas export runs/x --pick {key} --out {key}",
    )


def openings(path: Path, rounds: int) -> Iterator[dict[str, float]]:
    """Milliseconds from the start of the navigation to each of `MARKS`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        for _ in range(rounds):
            browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(path.as_uri())
            page.wait_for_selector("html[data-ready=true]", timeout=60_000)
            entries = page.evaluate("performance.getEntriesByType('mark').map(mark => [mark.name, mark.startTime])")
            yield {name: time for name, time in entries if name in MARKS}
            browser.close()


def main() -> None:
    """Prints one row a mark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="where to leave the report")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = (options.keep or Path(folder, "report.html")).resolve()
        write(path, options.evaluations)
        timings = list(openings(path, options.rounds))
        print(f"{options.evaluations} evaluations, {path.stat().st_size / 1e6:.1f} MB, {len(timings)} openings\n")
    print("| | median s | fastest | slowest |\n|---|---|---|---|")
    for mark in MARKS:
        seconds = sorted(times[mark] / 1e3 for times in timings)
        print(f"| {mark} | {statistics.median(seconds):.2f} | {seconds[0]:.2f} | {seconds[-1]:.2f} |")


if __name__ == "__main__":
    main()
