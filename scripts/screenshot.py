"""Picture of an HTML page, by headless Chromium and without a network.

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
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-sync",
    "--disable-extensions",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-domain-reliability",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND",  # a page that needs the network shows it here
    "--virtual-time-budget=10000",  # let figures finish drawing
)


def screenshot(
    source: Path, target: Path, width: int = 1200, height: int = 900, dark: bool = False
) -> None:
    """Write what the top `width` × `height` pixels of the page show to a PNG."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise RuntimeError(f"no browser on PATH: looked for {', '.join(BROWSERS)}")
    if not source.is_file():
        raise ValueError(f"no page at {source}")
    target = target.resolve()
    target.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as profile:
        command = [
            browser,
            *FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            f"--screenshot={target}",
            source.resolve().as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if done.returncode or not target.is_file():
        raise RuntimeError(f"{browser} made no picture:\n{done.stderr[-2000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--width", type=int, default=1200)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--dark", action="store_true", help="as a reader with a dark theme sees it")
    args = parser.parse_args()
    screenshot(args.source, args.target, args.width, args.height, args.dark)
    return 0


if __name__ == "__main__":
    sys.exit(main())
