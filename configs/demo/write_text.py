"""Write the demo's text: docstrings and source of Python's own standard library.

Every machine with Python has this text, so the demo needs no download. A document is one
top-level function or class (or a module's opening docstring). Modules are split, never
documents, so that held-out text comes from files that training has not seen.

    python configs/demo/write_text.py            # writes configs/demo/text/*.jsonl

One row of the output: {"text": "def wrap(text, width=70, ...", "source": "textwrap"}
"""

import argparse
import ast
import json
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HELD_OUT = """bisect cmd csv filecmp fractions getopt heapq html.parser json.decoder netrc
    pprint queue sched shelve shlex textwrap timeit tomllib._parser uuid wave
    wsgiref.util zipapp concurrent.futures.thread asyncio.locks xml.sax.saxutils""".split()

CALIBRATION = """calendar code copy fileinput glob hmac linecache numbers operator
    poplib quopri reprlib secrets string tabnanny trace types unittest.suite
    asyncio.queues multiprocessing.queues email.header xml.etree.ElementPath""".split()

TRAIN = """__future__ _collections_abc _compat_pickle _compression _markupbase _pydecimal _pyio
    _strptime _weakrefset abc aifc argparse ast asyncio.base_events asyncio.events
    asyncio.futures asyncio.proactor_events asyncio.protocols asyncio.runners
    asyncio.selector_events asyncio.sslproto asyncio.staggered asyncio.streams
    asyncio.subprocess asyncio.taskgroups asyncio.tasks asyncio.timeouts asyncio.transports
    asyncio.unix_events base64 bdb bz2 cProfile codecs codeop collections compileall
    concurrent.futures._base concurrent.futures.process configparser contextlib copyreg
    ctypes.util dataclasses datetime dbm.dumb difflib dis doctest email._encoded_words
    email._header_value_parser email._parseaddr email._policybase email.charset
    email.contentmanager email.feedparser email.generator email.headerregistry email.message
    email.policy email.quoprimime email.utils enum fnmatch ftplib functools getpass gettext
    graphlib gzip hashlib http http.client http.cookiejar http.cookies http.server imaplib
    importlib._bootstrap importlib._bootstrap_external importlib.abc importlib.metadata
    importlib.util inspect ipaddress json.encoder locale logging logging.config
    logging.handlers lzma mailbox mimetypes modulefinder multiprocessing.connection
    multiprocessing.context multiprocessing.forkserver multiprocessing.heap
    multiprocessing.managers multiprocessing.pool multiprocessing.process
    multiprocessing.reduction multiprocessing.resource_tracker
    multiprocessing.shared_memory multiprocessing.sharedctypes multiprocessing.spawn
    multiprocessing.synchronize multiprocessing.util ntpath optparse os pathlib pdb pickle
    pickletools pkgutil platform plistlib posixpath profile pstats py_compile pyclbr pydoc
    pydoc_data.topics random re re._compiler re._parser rlcompleter runpy selectors shutil
    site smtplib socket socketserver ssl statistics stringprep subprocess sysconfig symtable
    tarfile tempfile threading tokenize traceback tracemalloc typing unittest.case
    unittest.loader unittest.main unittest.mock unittest.result unittest.runner urllib.parse
    urllib.request urllib.robotparser warnings weakref webbrowser wsgiref.handlers
    wsgiref.headers wsgiref.simple_server wsgiref.validate xml.dom.expatbuilder
    xml.dom.minidom xml.dom.pulldom xml.dom.xmlbuilder xml.etree.ElementInclude
    xml.etree.ElementTree xml.sax.expatreader xml.sax.handler xml.sax.xmlreader
    xmlrpc.client xmlrpc.server zipfile zipimport zoneinfo._zoneinfo""".split()

MIN_CHARACTERS, MAX_CHARACTERS = 200, 6000


def read_documents(module_name: str) -> Iterator[str]:
    """Yield the documents of one module, in the order of the file. Nothing is imported."""
    stem = Path(sysconfig.get_path("stdlib"), *module_name.split("."))
    path = next((p for p in (stem.with_suffix(".py"), stem / "__init__.py") if p.exists()), None)
    if path is None:
        raise SystemExit(f"no source of module {module_name!r} at {stem}.py: use CPython 3.11")
    source = path.read_text(encoding="utf-8")
    if module_name == "pydoc_data.topics":  # one big dict of manual pages: each page is a document
        (assignment,) = (n for n in ast.parse(source).body if isinstance(n, ast.Assign))
        yield from ast.literal_eval(assignment.value).values()
        return
    tree = ast.parse(source)
    if docstring := ast.get_docstring(tree):
        yield docstring
    lines = source.splitlines()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
            yield "\n".join(lines[first : node.end_lineno])


def cut(document: str) -> Iterator[str]:
    """Cut a long document at line ends into parts of at most MAX_CHARACTERS."""
    part: list[str] = []
    size = 0
    for line in document.splitlines():
        if size + len(line) > MAX_CHARACTERS:
            yield "\n".join(part)
            part, size = [], 0
        part.append(line)
        size += len(line) + 1
    yield "\n".join(part)


def write_split(modules: list[str], path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for name in modules:
            for document in read_documents(name):
                for part in cut(document):
                    if len(part) >= MIN_CHARACTERS:
                        file.write(json.dumps({"text": part, "source": name}) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "text")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    splits = {"train": TRAIN, "calibration": CALIBRATION, "heldout": HELD_OUT}
    for split, modules in splits.items():
        write_split(modules, out / f"{split}.jsonl")
    print(f"demo text of Python {sys.version.split()[0]} written to {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
