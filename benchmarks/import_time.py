"""How long `import xtclib` takes beyond the parts of torch and transformers that it stands on.

    python benchmarks/import_time.py --repeats 7

Every import is a process of its own, in turns; the medians are printed, and the imports that
`xtclib` adds. Bound: 0.3 s.
"""

import subprocess
import sys
import time
from statistics import median

import common

# What whoever opens an artefact by `from_pretrained` has loaded anyway.
GROUND = (
    "import torch, transformers, transformers.quantizers\n"
    "from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel\n"
)
LISTED = (
    "import sys\nbefore = set(sys.modules)\nimport xtclib\n"
    "print(*sorted(set(sys.modules) - before))"
)


def seconds(code: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def main() -> None:
    repeats = common.options(__doc__, repeats=7).repeats
    pairs = [(seconds(GROUND), seconds(GROUND + "import xtclib")) for _ in range(repeats)]
    ground, both = (median(times) for times in zip(*pairs, strict=True))
    added = median(b - a for a, b in pairs)
    print(f"torch and transformers {ground:6.2f} s\nwith xtclib            {both:6.2f} s")
    print(f"xtclib alone           {added:6.2f} s (median of {repeats} differences; bound 0.30)")
    found = subprocess.run(
        [sys.executable, "-c", GROUND + LISTED], check=True, capture_output=True, text=True
    ).stdout.split()
    roots = sorted({name.split(".")[0] for name in found} - {"xtclib"})
    own = sum(name.startswith("xtclib") for name in found)
    print(f"{own} modules of xtclib, and {len(found) - own} others: {', '.join(roots)}")


if __name__ == "__main__":
    main()
