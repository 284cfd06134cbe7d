"""Small models, a tokenizer and rows, all built in code; nothing outside a test's own folder."""

import itertools
import json
import shutil
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from xtclib import clock
from xtclib.artefact import format
from xtclib.costs import latency
from xtclib.tasks import reviews
from xtclib.tasks.glue import TASKS, Split, TaskData
from xtclib.techniques.dynamic import calibration
from xtclib.techniques.pruning import budget

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)

torch.set_num_threads(1)
# A busy machine is slow at drawing examples, which says nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")
FETCHED = reviews.folder()  # in the user's cache, before a test has one of its own
CACHES = itertools.count()
TIMED = "test_latency", "test_calibration", "test_dropping", "test_budget"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LABELS = {2: ("negative", "positive"), 3: ("entailment", "neutral", "contradiction")}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the user's cache. Only those that use theirs make a folder."""
    place = tmp_path_factory.getbasetemp() / f"cache-{next(CACHES)}"
    monkeypatch.setenv("XTC_CACHE", str(place))
    monkeypatch.delenv("XTC_GLUE_DIR", raising=False)
    return place


@pytest.fixture
def texts(own_cache):
    """The real reviews in a cache of the test's own; a word where they were not fetched."""
    if not (FETCHED / "tweets_GroundTruth.txt").is_file():
        pytest.skip("the real reviews were not fetched: xtc fetch")
    shutil.copytree(FETCHED, own_cache / "data" / FETCHED.name)


@pytest.fixture(autouse=True)
def reopened_here(monkeypatch, request):
    """What is handed out is opened again in this process: a fresh one imports for seconds."""
    if "fresh_process" not in request.keywords:
        check = format.check_reopens
        monkeypatch.setattr(
            format, "check_reopens", lambda model, folder, **_: check(model, folder)
        )


@pytest.fixture(autouse=True)
def times_few_turns(monkeypatch, request):
    """What runs record of time nobody reads here, but where timing is what is tested."""
    if not any(name in request.node.nodeid for name in TIMED):
        monkeypatch.setattr(latency, "enough", lambda *_: 3)
        for module in (budget, calibration):
            monkeypatch.setattr(module, "in_turns", lambda runs, *_: clock.in_turns(runs, 1, 0))


@pytest.fixture(scope="session")
def make_bert():
    """Random classifiers, 32 wide, with weights large enough that their outputs differ."""

    def build(layers=4, labels=2, seed=0, dropout=0.1):
        torch.manual_seed(seed)
        names = LABELS.get(labels, tuple(f"LABEL_{i}" for i in range(labels)))
        config = BertConfig(
            vocab_size=200, hidden_size=32, num_hidden_layers=layers, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=64, initializer_range=0.2,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout,
            id2label=dict(enumerate(names)), label2id={n: i for i, n in enumerate(names)},
        )  # fmt: skip
        return BertForSequenceClassification(config).eval()

    return build


@pytest.fixture
def bert(make_bert):
    return make_bert(4)


@pytest.fixture
def bert12(make_bert):
    return make_bert(12)


@pytest.fixture(scope="session")
def tokenizer():
    """Words w0 … w194 after the five special tokens: 200 in all."""
    vocabulary = {w: i for i, w in enumerate((*SPECIAL, *(f"w{i}" for i in range(195))))}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def _rows(count, start):
    texts, labels = [], []
    for i in range(start, start + count):
        words = [f"w{(7 * i + 3 * j) % 190}" for j in range(2 + i % 9)]
        texts.append(" ".join([*words, "w191" if i % 3 else "w192"]))
        labels.append(int(i % 3 > 0))
    return Split(texts, None, labels)


@pytest.fixture(scope="session")
def data():
    """SST-2 in small: the last word says the label; 40 rows to train on, 14 to evaluate."""
    return TaskData(TASKS["sst2"], _rows(40, 0), {"dev": _rows(14, 100)}, "in memory", "SST-2 dev")


@pytest.fixture
def batch():
    """Ids and mask of shape (3, 7), two rows padded."""
    ids = torch.randint(5, 200, (3, 7), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([7, 4, 2])
    mask = (torch.arange(7) < lengths[:, None]).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


# Forks for each question, so that no answer sees what another left.
FRESH = """
import json, os, sys, torch, traceback, xtclib
from transformers import AutoModelForSequenceClassification as Auto

def answer(ids, mask, folder):
    model = Auto.from_pretrained(folder).eval()
    with torch.no_grad():
        return model(ids.clamp(max=model.config.vocab_size - 1), mask).logits.tolist()

for line in sys.stdin:
    *given, folders = json.loads(line)
    if os.fork():
        if os.wait()[1]:
            print(json.dumps("a process died"), flush=True)
        continue
    try:
        found = [answer(*map(torch.tensor, given), folder) for folder in folders]
    except Exception:
        found = traceback.format_exc()
    print(json.dumps(found), flush=True)
    os._exit(0)
"""


@pytest.fixture(scope="session")
def _fresh():
    """A process that imported what opens artefacts, and has made nothing: imports take seconds."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", FRESH], text=True, **pipes) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def fresh_logits(batch, _fresh):
    """What folders' models answer to ``batch`` in a process of its own, as nested lists.

    Ids past a smaller vocabulary are its last one. One folder: its answer; several: a list.
    """
    given = [batch[name].tolist() for name in ("input_ids", "attention_mask")]

    def read(*folders):
        print(json.dumps([*given, [*map(str, folders)]]), file=_fresh.stdin, flush=True)
        answers = json.loads(_fresh.stdout.readline())
        assert isinstance(answers, list), answers[-2000:]
        return answers if len(folders) > 1 else answers[0]

    return read


# Of a module, not of a session: while it lives, no other test of its process can run a loop.
@pytest.fixture(scope="module")
def browser():
    sync = pytest.importorskip("playwright.sync_api", reason="pages: pip install -e '.[browser]'")
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH: pages are not opened")
    with sync.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()
