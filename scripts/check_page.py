#!/usr/bin/env python3
"""Looks at report.html as a browser does: no request, no script, no violation of axe-core.

    python3 -m venv venv && venv/bin/pip install playwright axe-playwright-python
    apt-get install chromium
    venv/bin/python scripts/check_page.py PAGE.html… [--shots FOLDER]

Every page is opened at 1280 and 375 pixels, light and dark. Exits with 1 where something is wrong.
"""

import argparse
import sys
from importlib.resources import files
from pathlib import Path

from playwright.sync_api import sync_playwright

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text()


def look(browser, path, width, scheme, shots):
    """What a reader's browser does with the page."""
    page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
    problems = []
    own = path.resolve().as_uri()
    page.on("request", lambda r: r.url in (own, "data:,") or problems.append(f"asks for {r.url}"))
    page.on("dialog", lambda d: (problems.append(f"opens a dialog: {d.message}"), d.dismiss()))
    page.on("console", lambda m: problems.append(f"says {m.text}"))
    page.goto(own)
    page.wait_for_timeout(300)
    active = page.evaluate("document.querySelectorAll('script, img, iframe, object, embed, form').length")
    if active:
        problems.append(f"holds {active} elements that a page of text has no use for")
    wide = page.evaluate("document.documentElement.scrollWidth")
    if wide > width:
        problems.append(f"is {wide} pixels wide")
    if shots:
        page.screenshot(path=shots / f"{path.stem}-{width}-{scheme}.png", full_page=True)
    page.context.close()
    return problems


def axe(browser, path, width, scheme):
    """axe-core is a script, so it needs a context that lets scripts in; all details are open."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True
    )
    page = context.new_page()
    page.goto(path.resolve().as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.evaluate(AXE)
    found = page.evaluate("rules => axe.run(document, {runOnly: rules})", RULES)
    context.close()
    return [f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:120]}" for v in found["violations"]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--shots", type=Path, help="folder for screenshots")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    if args.shots:
        args.shots.mkdir(parents=True, exist_ok=True)
    wrong = 0
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for path in args.pages:
            for width in (1280, 375):
                for scheme in ("light", "dark"):
                    problems = look(browser, path, width, scheme, args.shots)
                    problems += axe(browser, path, width, scheme)
                    wrong += len(problems)
                    print(f"{path} at {width} pixels, {scheme}:", "; ".join(problems) or "nothing wrong")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
