"""What every test run has in common: small, quiet, offline, one thread."""

import gc
import os

# Before torch or a kernel starts. `smoke` is forced: the outputs nbval compares were made with it.
os.environ.update(
    XTC_PROFILE="smoke",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    TQDM_DISABLE="1",
    TOKENIZERS_PARALLELISM="false",
    PLOTLY_RENDERER="plotly_mimetype",
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
)

# nbval compares these exactly although they carry random ids, or change with a library.
SKIPPED = (
    "application/vnd.plotly.v1+json",
    "application/vnd.jupyter.widget-view+json",
    "application/javascript",
    "image/svg+xml",
    "text/html",
    "text/latex",
    "text/markdown",
    "stderr",
)


def pytest_collection_finish():
    gc.freeze()  # every Trainer collects garbage: not among all that was imported


def pytest_collection_modifyitems(items):
    for notebook in {item.parent for item in items if hasattr(item.parent, "skip_compare")}:
        notebook.skip_compare = (*notebook.skip_compare, *SKIPPED)
