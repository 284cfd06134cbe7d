"""PNG of what the top of an HTML page shows, by headless Chromium and without a network.

python scripts/screenshot.py build/index.html index.png --width 1200 --height 900 --dark
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-sync "
    "--disable-extensions --disable-component-update --disable-default-apps "
    "--disable-domain-reliability --disable-background-networking --virtual-time-budget=10000"
).split()  # the last one lets figures finish drawing
OFFLINE = "--host-resolver-rules=MAP * ~NOTFOUND"  # a page that needs the network shows it here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true", help="as a reader with a dark theme sees it")
    args = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"no browser on PATH: looked for {', '.join(BROWSERS)}")
    if not args.source.is_file():
        sys.exit(f"no page at {args.source}")
    target = args.target.resolve()
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser, *FLAGS, OFFLINE, f"--user-data-dir={profile}",
            f"--window-size={args.width},{args.height}", f"--screenshot={target}",
            f"--blink-settings=preferredColorScheme={int(not args.dark)}",
            args.source.resolve().as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode or not target.is_file():
        sys.exit(f"{browser} made no picture:\n{done.stderr[-2000:]}")


if __name__ == "__main__":
    main()
