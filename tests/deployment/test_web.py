"""A model as a page: what is fetched and refused, and in Chromium what is read and answered."""

import base64
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import tarfile
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertForQuestionAnswering,
    BertForTokenClassification,
    BertModel,
    PreTrainedTokenizerFast,
)

from xtclib import cache, cli
from xtclib.artefact import format
from xtclib.deployment import npm, web
from xtclib.files import fault
from xtclib.techniques.quantization.technique import Quantize

USERS = cache.cache_dir()  # before a test has one of its own
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
TEXTS = (
    "", " ", "plain words, and (some) punctuation: it's - 3.5 % $5 `x` ~", "Café naïve ÅNGSTRÖM",
    "e\u0301 a\u0308\u0323 q\u0307\u0323 \u1e69 \u0344", "ΣΑΣ Σ ὈΔΥΣΣΕΎΣ", "İstanbul Iı ẞ ß ﬁ K Å",
    "東京は日本の首都 汉字 한국어 조선 \U00020000\U0002a6d6 \U0002b820\U0002f800",
    "שָׁלוֹם עולם مرحبا بِالعَالَم \u202eabc\u202c",
    "👩\u200d👩\u200d👧\u200d👦 👍🏽 🇨🇭 ❤\ufe0f",
    "a\x00b\x01c\x1fd\x7fe\x85f\u00a0g\u2028h\ufeffi\ufffdj\u200bk",
    "tabs\tand\nlines\r\nand\x0bmore\x0c", "w" * 100, "w" * 101, "é" * 60, "x" * 5000,
    "[CLS] is [SEP] not [MASK] said[PAD]", "[cls] [ SEP ]", "नमस्ते หวัดดี ཀྵ", "\u1abf a\u1abfb ꧠ 𑄀𑄧 ⹅ ⸻",
    "so many words " * 3334, "東" * 700, "\U0001f600" * 300, "…—“quoted”„low“«»¿¡", "١٢٣ Ⅳ ½ ①",
)  # fmt: skip


# What is fetched.


def archive(**files):
    """A gzipped tar of these files under package/; a `TarInfo` instead is put there as it is."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        for name, content in files.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo()
            info.name = f"package/{name}"
            data = content if isinstance(content, bytes) else b""
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def package(content, *members, name="@a/b"):
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode()
    return npm.Package(name, "1.0.0", len(content), digest, members)


@contextmanager
def served(folder):
    """A folder over HTTP, as `python -m http.server` has it; its address, and what was asked."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A registry that has what `put` puts there."""
    root = tmp_path / "registry"
    root.mkdir()

    def put(wanted, content):
        place = root / wanted.name / "-" / wanted.archive
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content)

    with served(root) as (address, asked):
        monkeypatch.setenv("npm_config_registry", address + "/")
        yield SimpleNamespace(put=put, asked=asked, address=address)


def test_a_package_is_fetched_once_and_healed(index, own_cache):
    content = archive(**{"dist/a.mjs": b"code", "dist/b.wasm": b"\0asm" * 99, "rest.js": b"-"})
    wanted, told = package(content, "dist/a.mjs", "dist/b.wasm"), []
    index.put(wanted, content)
    folder = npm.fetch(wanted, told.append)
    assert sorted(path.name for path in folder.iterdir()) == ["SHA256SUMS", "a.mjs", "b.wasm.gz"]
    assert gzip.decompress((folder / "b.wasm.gz").read_bytes()) == b"\0asm" * 99
    assert told == [f"fetch    @a/b 1.0.0 (0.0 MB) from {index.address}"]
    assert npm.fetch(wanted, told.append) == folder and len(index.asked) == 1 and len(told) == 1
    (folder / "a.mjs").write_bytes(b"evil")
    with pytest.warns(UserWarning, match="a.mjs does not match its sha256"):
        npm.fetch(wanted, told.append)
    assert (folder / "a.mjs").read_bytes() == b"code" and len(index.asked) == 2


def test_another_archive_is_refused(index, own_cache):
    content = archive(**{"a.js": b"code" * 1000})
    wanted = package(content, "a.js")
    index.put(wanted, content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="has sha512-.*: it is not @a/b 1.0.0"):
        npm.fetch(wanted, lambda _: None)
    index.put(wanted, content + b"more")
    with pytest.raises(ValueError, match=f"and {len(content) + 1} bytes, expected sha512-"):
        npm.fetch(wanted, lambda _: None)
    index.put(wanted, content[: len(content) // 2])
    with pytest.raises(ConnectionError, match=f"of {len(content)} bytes"):
        npm.fetch(wanted, lambda _: None)
    assert not list((own_cache / "npm").iterdir())


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE]
)
def test_only_plain_files_are_taken(index, own_cache, kind):
    evil = tarfile.TarInfo()
    evil.type, evil.linkname = kind, "/etc/passwd"
    content = archive(**{"a.js": evil, "../../out.js": b"evil"})
    wanted = package(content, "a.js")
    index.put(wanted, content)
    with pytest.raises(ValueError, match="a.js in the archive of @a/b 1.0.0 is no plain file"):
        npm.fetch(wanted, lambda _: None)
    missing = package(content, "b.js")
    with pytest.raises(ValueError, match="holds no b.js"):
        npm.fetch(missing, lambda _: None)
    assert not list((own_cache / "npm").iterdir())


def test_without_a_network_it_says_what_and_how(index, own_cache, monkeypatch):
    content = archive(**{"a.js": b"code"})
    wanted = package(content, "a.js")
    by_hand = own_cache / "npm" / "b-1.0.0.tgz"
    with pytest.raises(ConnectionError) as error:
        npm.fetch(wanted, lambda _: None)
    for words in ("@a/b 1.0.0 (0.0 MB)", f"{index.address}/@a/b/-/b-1.0.0.tgz", "404",
                  "npm_config_registry", str(by_hand)):  # fmt: skip
        assert words in str(error.value)
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="refused"):
        npm.fetch(wanted, lambda _: None)
    monkeypatch.setenv("npm_config_registry", "file:///etc")
    with pytest.raises(ValueError, match="must be an http or https address, received file:///etc"):
        npm.fetch(wanted, lambda _: None)
    by_hand.parent.mkdir(parents=True, exist_ok=True)
    by_hand.write_bytes(content)
    assert (npm.fetch(wanted, lambda _: None) / "a.js").read_bytes() == b"code"


# What is refused, and what is written.


def word_pieces(*texts, pair_type=1):
    """A WordPiece tokenizer, lowercase, that knows every letter of these texts, and a few words."""
    normalizer = normalizers.BertNormalizer()
    letters = sorted({letter for text in texts for letter in normalizer.normalize_str(text)})
    words = ["so", "many", "words", "plain", "ab", "##s", *letters, *(f"##{x}" for x in letters)]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys((*SPECIAL, *words)))}
    inner = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]", max_input_chars_per_word=100))
    inner.normalizer, inner.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )  # fmt: skip
    names = {f"{name.lower()[1:-1]}_token": name for name in SPECIAL}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=10**30, **names)


def artefact(make_bert, labels=2, kind="single_label_classification", pair=False, names=None):
    """A packed model of one layer and its tokenizer."""
    tokenizer = word_pieces(*TEXTS)
    model = make_bert(1, labels)
    model.resize_token_embeddings(len(tokenizer))
    model.config.problem_type = kind
    model.config.trained_on = {"task": "own", "own": {"text_pair": "b" if pair else None}}
    model.config.id2label = dict(enumerate(names or [f"class {i}" for i in range(labels)]))
    return format.finalize(Quantize(activations="uint8").apply(model), [Quantize()]), tokenizer


def test_heads_that_a_page_cannot_show_are_refused(bert):
    assert web.check_head(bert, Path("m")) == "classes"
    bert.config.problem_type = "multi_label_classification"
    assert web.check_head(bert, Path("m")) == "labels"
    bert.config.problem_type, bert.config.num_labels = None, 1
    assert web.check_head(bert, Path("m")) == "number"
    for kind in (BertForTokenClassification, BertForQuestionAnswering, BertModel):
        with pytest.raises(ValueError, match=f"my/art is a {kind.__name__}: a page shows"):
            web.check_head(kind(bert.config), Path("my/art"))
    bert.drops = bert.exits = object()
    with pytest.raises(ValueError, match="leaves by exits"):
        web.check_head(bert, Path("m"))
    del bert.exits
    with pytest.raises(ValueError, match="drops tokens"):
        web.check_head(bert, Path("m"))


def test_a_bad_request_is_refused_before_anything_is_fetched(
    bert, tokenizer, tmp_path, monkeypatch
):
    monkeypatch.setattr(web, "fetch_all", lambda *_: pytest.fail("it fetched"))
    with pytest.raises(ValueError, match="tokenizers of a WordLevel do not run in browsers"):
        web.export(bert, tokenizer, tmp_path / "out")
    words = word_pieces("a")
    with pytest.raises(ValueError, match="expected the name of a new folder"):
        web.export(bert, words, tmp_path / "out.onnx")
    with pytest.raises(ValueError, match="activations must be one of dynamic, trained"):
        web.export(bert, words, tmp_path / "out", activations="int4")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").touch()
    with pytest.raises(FileExistsError, match="expected a new or empty folder"):
        web.export(bert, words, tmp_path / "full")
    with pytest.raises(OSError, match="name another place"):
        web.export(bert, words, tmp_path / "full" / "a" / "out")
    (tmp_path / "m.onnx").touch()
    with pytest.raises(ValueError, match="is no artefact's folder"):
        web.export_folder(tmp_path / "m.onnx", tmp_path / "out")
    with pytest.raises(ValueError, match="name one of them"):
        web.export_folder(tmp_path, tmp_path / "out", tmp_path / "m.onnx")
    with pytest.raises(FileNotFoundError, match="no config.json in"):
        web.export_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_packages_nothing_is_left(bert, tmp_path, monkeypatch):
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    both = r"could not fetch onnxruntime-web .*\(33.1 MB\).*; could not fetch @huggingface/tokeniz"
    with pytest.raises(ConnectionError, match=both):
        web.export(bert, word_pieces("a"), tmp_path / "new" / "out", tell=lambda _: None)
    assert not (tmp_path / "new").exists()


def test_the_command_takes_a_new_folder(bert, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    item = Quantize()
    folder = format.save(
        format.finalize(item.apply(bert), [item]), word_pieces("a"), tmp_path / "a"
    )
    monkeypatch.setattr("sys.argv", ["xtc", "export", str(folder), "--web", str(tmp_path / "web")])
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    said = capsys.readouterr()
    assert "fetch    onnxruntime-web 1.30.0 (33.1 MB) from http://127.0.0.1:9" in said.out
    assert "refused" in said.err and not (tmp_path / "web").exists()


def test_an_installed_package_has_the_page():
    text = (cache.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^"xtclib.deployment" = \["page/\*"\]$', text, re.MULTILINE)
    assert all(path.is_file() for path in web.PAGE.iterdir())
    page = "".join(path.read_text(encoding="utf-8") for path in web.PAGE.iterdir())
    assert not re.search(r"https?://(?!localhost)", page)


@pytest.mark.slow
def test_a_folder_is_whole(make_bert, tmp_path, index, monkeypatch):
    pytest.importorskip("onnxruntime")
    contents = [archive(**dict.fromkeys(p.members, b"made up")) for p in web.PACKAGES]
    fakes = [package(content, *p.members, name=p.name)
             for p, content in zip(web.PACKAGES, contents, strict=True)]  # fmt: skip
    for fake, content in zip(fakes, contents, strict=True):
        index.put(fake, content)
    monkeypatch.setattr(web, "PACKAGES", tuple(fakes))
    told = []
    folder = format.save(*artefact(make_bert, names=["<b>", "é"]), tmp_path / "art")
    out = web.export_folder(folder, tmp_path / "out", tell=told.append)
    assert not fault(out) and told[-1].endswith(f"python -m http.server -d {out}")
    about = json.loads((out / "about.json").read_text(encoding="utf-8"))
    assert about["labels"] == ["<b>", "é"] and about["max_length"] == 64 and about["name"] == "art"
    for files in about["files"].values():
        for name, size in files.items():
            assert (out / name).stat().st_size == size
    assert {p.name for p in out.glob("LICENSE*")} == {
        "LICENSE-onnxruntime-web.txt", "LICENSE-huggingface-tokenizers.txt"
    }  # fmt: skip
    words = json.loads(gzip.decompress((out / "tokenizer.json.gz").read_bytes()))
    assert words["model"]["vocab"] and words["truncation"] is None


# In Chromium.


@pytest.fixture(scope="module")
def sites(browser, make_bert, tmp_path_factory):
    """Pages of tiny models by kind, with the address of each; skipped without the npm packages."""
    pytest.importorskip("onnxruntime")
    root = tmp_path_factory.mktemp("sites")
    kinds = {
        "classes": dict(labels=3), "pairs": dict(pair=True),
        "labels": dict(kind="multi_label_classification", labels=4),
        "number": dict(kind="regression", labels=1),
    }  # fmt: skip
    found = {}
    with pytest.MonkeyPatch.context() as patch, served(root) as (address, _):
        patch.setenv("XTC_CACHE", str(root / "cache"))
        for p in web.PACKAGES:
            kept = USERS / "npm" / p.archive.removesuffix(".tgz")
            if not fault(kept):
                shutil.copytree(kept, root / "cache" / "npm" / kept.name)
        try:
            for package_ in web.PACKAGES:
                npm.fetch(package_)
        except ConnectionError as error:
            pytest.skip(f"the npm packages are neither cached nor reachable: {error}")
        for name, given in kinds.items():
            model, tokenizer = artefact(make_bert, **given)
            out = web.export(model, tokenizer, root / name, name, tell=lambda _: None)
            found[name] = SimpleNamespace(url=f"{address}/{name}/", out=out, tokenizer=tokenizer)
        yield found


@contextmanager
def opened(browser, url, script="", **how):
    """A page, ready; what it asked of other hosts or complained of fails the test."""
    context = browser.new_context(**how)
    page, asked, said = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text) if message.type == "error" else 0)
    page.on("pageerror", lambda error: said.append(str(error)))
    if script:
        page.add_init_script(script)
    page.goto(url)
    try:
        if not script:
            page.evaluate("xtc.ready")
        yield page
    finally:
        context.close()
    host = url.split("/")[2]
    assert not [
        u for u in asked if not u.startswith(("data:", "blob:")) and u.split("/")[2] != host
    ]
    assert not said


IDS = "async (rows) => Promise.all(rows.map(([text, pair]) => xtc.ids(text, pair)))"
# Past the longest: the tokenizer itself, without a bound.
FREE = """async (texts) => {
  const { tokenizer } = await import(new URL("tokens.js", location).href);
  const stored = (await fetch("tokenizer.json.gz")).body
    .pipeThrough(new DecompressionStream("gzip"));
  const read = tokenizer(await new Response(stored).json(), { max_length: Infinity });
  return texts.map((text) => read(text).ids);
}"""


@pytest.mark.slow
def test_ids_are_pythons(browser, sites):
    site = sites["classes"]
    with opened(browser, site.url) as page:
        assert page.evaluate("xtc.ready.then(({ odd }) => odd ?? null)") is None
        found = page.evaluate(IDS, [[text, None] for text in TEXTS])
        whole = page.evaluate(FREE, list(TEXTS))
    for text, cut, ids in zip(TEXTS, found, whole, strict=True):
        assert cut == site.tokenizer(text, truncation=True, max_length=64)["input_ids"], repr(text)
        assert ids == site.tokenizer(text)["input_ids"], repr(text)


@pytest.mark.slow
def test_ids_of_pairs_are_pythons(browser, sites):
    site = sites["pairs"]
    counts = (0, 1, 29, 30, 31, 32, 60, 61, 62, 200)
    rows = [["so " * a, "words " * b] for a in counts for b in counts]
    rows += [[a, b] for a in TEXTS[:8] for b in TEXTS[6:12]]
    with opened(browser, site.url) as page:
        found = page.evaluate(IDS, rows)
    for row, ids in zip(rows, found, strict=True):
        given = [[text] for text in row]  # as lists: one empty second text alone is taken for none
        assert ids == site.tokenizer(*given, truncation=True, max_length=64)["input_ids"][0], row


EDGES = (0x2A6E0, 0x2A700, 0x2B740, 0x2B820, 0x2B920, 0x2CEB0, 0x2F800, 0x2FA20, 0xE0100, 0xE01F0)


@pytest.mark.slow
def test_every_code_point_is_read_as_python_reads_it(browser, sites):
    site = sites["classes"]
    points = [c for c in range(0x20000) if not 0xD800 <= c < 0xE000]
    points += range(
        0x20000, 0x110000, 53
    )  # ideographs and what is not assigned, at ends and within
    points += [c + i for c in EDGES for i in (-1, 0)]
    blocks = [points[i : i + 4096] for i in range(0, len(points), 4096)]
    texts = [" ".join(f"a{chr(c)}b" for c in block) for block in blocks]
    with opened(browser, site.url) as page:
        found = page.evaluate(FREE, texts)
    for block, text, ids in zip(blocks, texts, found, strict=True):
        assert ids == site.tokenizer(text)["input_ids"], f"from U+{block[0]:04X}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "pairs", "labels", "number"])
def test_answers_are_those_of_python(browser, sites, kind):
    from xtclib.deployment import runtimes

    site, rows = sites[kind], TEXTS[2:14]
    path = site.out / "model.onnx"
    if not path.is_file():
        path = site.out.with_suffix(".onnx")
        path.write_bytes(gzip.decompress((site.out / "model.onnx.gz").read_bytes()))
    model = runtimes.OnnxModel(path, threads=1)
    with opened(browser, site.url) as page:
        answers = page.evaluate("(texts) => xtc.classify(texts, texts)", list(rows))
    for text, answer in zip(rows, answers, strict=True):
        given = ([text], [text]) if kind == "pairs" else ([text],)
        read = site.tokenizer(*given, truncation=True, max_length=64, return_tensors="pt",
                              return_token_type_ids=True)  # fmt: skip
        logits = model(**read).logits[0]
        assert answer["tokens"] == read["input_ids"].shape[1]
        torch.testing.assert_close(torch.tensor(answer["logits"]), logits, atol=2e-2, rtol=2e-2)
        chances = {"labels": logits.sigmoid, "number": lambda: torch.zeros(0)}.get(
            kind, lambda logits=logits: logits.softmax(-1))()  # fmt: skip
        shown = torch.tensor(answer["probabilities"])
        torch.testing.assert_close(shown, chances, atol=1e-2, rtol=1e-2)


def has(page, count):
    """Waits for so many answers."""
    from playwright.sync_api import expect

    expect(page.locator("#answers li")).to_have_count(count)


WIDE = "document.documentElement.scrollWidth"


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(420, "dark"), (420, "light"), (1200, "dark")])
def test_the_page_shows_what_it_found(browser, sites, width, scheme):
    site = sites["classes"]
    how = {"viewport": {"width": width, "height": 900}, "color_scheme": scheme}
    with opened(browser, site.url, **how) as page:
        assert page.evaluate("document.activeElement.id") == "texts"  # one may type at once
        page.keyboard.type("so many words\n\n" + "x" * 300)
        has(page, 2)
        assert page.locator("#answers li").first.locator(".bar").count() == 3
        shares = page.locator("#answers li").first.locator(".share").all_inner_texts()
        assert sum(float(share.split()[0]) for share in shares) == pytest.approx(100, abs=0.2)
        assert page.locator("#answers li .chosen").count() == 2
        for name in ("bytes-model", "bytes-tokenizer", "bytes-runtime", "load", "latest", "median"):
            assert re.fullmatch(r"[\d.]+ (kB|MB|ms|s)", page.inner_text(f"#{name}")), name
        ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (int(re.findall(r"\d+", ground)[0]) < 100) == (scheme == "dark")
        assert page.evaluate(WIDE) <= width and page.is_hidden("#problem")
        assert page.is_hidden("#pairs") and page.get_by_label("Text", exact=False).count()
        page.fill("#texts", "")
        has(page, 0)


@pytest.mark.slow
def test_pairs_labels_and_numbers_are_shown(browser, sites):
    with opened(browser, sites["pairs"].url) as page:
        page.fill("#texts", "so many words\nplain")
        page.get_by_label("Second text").fill("many\nwords")
        has(page, 2)
        assert "plain · words" in page.inner_text("#answers")
    with opened(browser, sites["labels"].url) as page:
        page.fill("#texts", "so")
        page.wait_for_selector("#answers li")
        assert page.locator("#answers .bar").count() == 4
    with opened(browser, sites["number"].url) as page:
        page.fill("#texts", "so")
        page.wait_for_selector("#answers li")
        assert re.fullmatch(r"-?\d+\.\d\d", page.inner_text("#answers .label"))


@pytest.mark.slow
@pytest.mark.parametrize(("script", "what"), [
    ("WebAssembly.validate = () => false", "WebAssembly SIMD"),
    ("delete window.WebAssembly", "WebAssembly SIMD"),
    ("delete window.DecompressionStream", "DecompressionStream"),
])  # fmt: skip
def test_an_old_browser_is_told(browser, sites, script, what):
    with opened(browser, sites["classes"].url, script) as page:
        page.wait_for_selector("#problem:not([hidden])")
        assert f"This browser has no {what}" in page.inner_text("#problem")


@pytest.mark.slow
def test_a_missing_file_and_a_page_without_a_server_are_told(browser, sites, tmp_path):
    broken = shutil.copytree(sites["classes"].out, tmp_path / "broken")
    for file in broken.glob("model.onnx*"):
        os.truncate(file, 100)
    with served(tmp_path) as (address, _):
        page = browser.new_page()
        page.goto(f"{address}/broken/")
        page.wait_for_selector("#problem:not([hidden])")
        assert page.inner_text("#problem").startswith("It stopped: ")
        page.goto((broken / "index.html").as_uri())
        page.wait_for_selector("#problem:not([hidden])")
        assert "python -m http.server" in page.inner_text("#problem")
        page.close()
