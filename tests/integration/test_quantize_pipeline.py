"""One night with every way to quantize: gated, published, pulled, and loaded by whom it is for."""

import json
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests.integration.pipeline import Workplace

pytestmark = pytest.mark.integration

BUDGET = 27_000
"""Bytes of the mixed export: room for 4 bits everywhere, and for 8 bits in some places."""
TRAIN = {
    "losses": [{"name": "forward_kl"}],
    "num_tokens": 1024,
    "batch_blocks": 8,
    "micro_batch_blocks": 4,
}
PACKED = {"method": "gptq", "format": "compressed-tensors"}
EXPORTS: dict[str, dict[str, Any]] = {
    "gptq4": PACKED | {"options": {"bits": 4, "group_size": 32}, "runtime": "transformers"},
    "gguf4": {
        "method": "gptq",
        "format": "gguf",
        "dtype": "float16",
        "options": {"bits": 4, "group_size": 32},
        "runtime": "llama.cpp",
    },
    "nf4": {"method": "nf4", "format": "nightpress"},
    "trained2": PACKED | {"method": "absmax", "options": {"bits": 2}, "train": TRAIN},
    "mixed": PACKED
    | {
        "dtype": "float16",
        "options": {"group_size": 32},
        "mixed_precision": {"bytes": BUDGET, "bits": [2, 4, 8], "num_windows": 2},
    },
    "w8a8": PACKED | {"method": "vector_int8"},
    "fp8": PACKED | {"method": "fp8"},
}
OF_OTHERS = [name for name, export in EXPORTS.items() if export["format"] != "nightpress"]
SCORE_ALL = """
import json, sys, torch
from pathlib import Path
from transformers import AutoModelForCausalLM, AutoTokenizer
for folder in sys.argv[2:]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    file = {"gguf_file": "model.gguf"} if (Path(folder) / "model.gguf").exists() else {}
    model = AutoModelForCausalLM.from_pretrained(folder, **file).eval()
    texts = [json.loads(line)["text"] for line in open(sys.argv[1])]
    ids = [i for text in texts for i in tokenizer(text).input_ids]
    total, count = 0.0, 0
    with torch.inference_mode():
        for start in range(0, len(ids) - 1, 32):
            part = torch.tensor([ids[start : start + 32]])
            if part.shape[1] > 1:
                logits = model(part).logits[0, :-1].float()
                loss = torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="sum")
                total, count = total + loss.item(), count + part.shape[1] - 1
    print(json.dumps(total / count))
"""
"""What a stranger would write: nothing of nightpress in it."""


class Finished(NamedTuple):
    place: Workplace
    record: dict[str, Any]
    told: str
    """stderr."""


def tell(place: Workplace, *arguments: str | Path) -> tuple[str, str]:
    """Run a command to its end; return stdout and stderr."""
    process = place.start(*arguments)
    try:
        out, err = process.communicate(timeout=place.timeout_s)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.communicate()
        raise
    assert process.returncode == 0, err
    return out, err


@pytest.fixture(scope="module")
def finished(recipe_text: str, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    place = Workplace(tmp_path_factory.mktemp("quantized"))
    raw = yaml.safe_load(recipe_text)
    raw["steps"] = [{"prune": raw["steps"][0]["prune"] | {"sparsity": {"ffn": 0.5}}}]
    raw |= {"comparisons": [], "exports": [{"name": n} | export for n, export in EXPORTS.items()]}
    recipe = place.folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(raw))
    out, err = tell(place, "run", recipe, "--json")
    return Finished(place, json.loads(out), err)


@pytest.fixture(scope="module")
def pulled(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folder by export."""
    folder = tmp_path_factory.mktemp("pulled")
    for name in EXPORTS:
        finished.place.run("pull", f"tiny/{name}", folder / name)
    return {name: folder / name for name in EXPORTS}


def test_every_export_is_gated_and_published(finished: Finished) -> None:
    record = finished.record
    assert record["status"] == "done"
    assert {e["export"]: e["outcome"] for e in record["exports"]} == dict.fromkeys(
        EXPORTS, "published"
    )
    models = {row["title"]: row for row in record["models"]}
    assert list(models) == ["teacher", "1 prune", *EXPORTS]
    pruned = models["1 prune"]["model"]
    for name in EXPORTS:
        assert models[name]["model"]["num_parameters"] == pruned["num_parameters"]
        assert models[name]["model"]["num_bytes"] < pruned["num_bytes"]
        assert models[name]["metrics"]["nats_per_token"] < 6.5
    titles = [stage["title"] for stage in record["stages"]]
    assert [title for title in titles if title.startswith("train ")] == ["train trained2"]


def test_mixed_widths_keep_to_their_bytes(finished: Finished, pulled: dict[str, Path]) -> None:
    (mixed,) = (row["model"] for row in finished.record["models"] if row["title"] == "mixed")
    counts = [str(v) for name, v in mixed["facts"].items() if name.startswith("weights_at_")]
    assert len(counts) > 1
    assert sum(int(count.split()[0]) for count in counts) == 14
    header = 8192  # names and shapes, which the budget leaves out
    assert (pulled["mixed"] / "model.safetensors").stat().st_size < BUDGET + header


def test_the_run_tells_its_stages_and_nothing_of_the_libraries(finished: Finished) -> None:
    for line in finished.told.splitlines():
        assert re.fullmatch(r"\d\d:\d\d:\d\d  [a-z0-9_ ]+: (\d+/\d+|computed in \d+\.\d s)", line)


def test_plain_transformers_gives_the_manifests_loss(
    pulled: dict[str, Path], text_file: Path
) -> None:
    folders = [str(pulled[name]) for name in OF_OTHERS]
    done = subprocess.run(
        [sys.executable, "-I", "-c", SCORE_ALL, str(text_file), *folders],
        capture_output=True,
        text=True,
        check=True,
        timeout=180,
    )
    for name, measured in zip(OF_OTHERS, done.stdout.split(), strict=True):
        manifest = json.loads((pulled[name] / "manifest.json").read_text())
        expected = manifest["metrics"]["nats_per_token"]
        assert float(measured) == pytest.approx(expected, rel=0.01), name


@pytest.mark.parametrize("name", ["nf4", "gptq4", "gguf4"])
def test_our_loader_gives_the_loss_and_other_libraries_are_silent(
    name: str, finished: Finished, pulled: dict[str, Path], text_file: Path
) -> None:
    arguments = ["evaluate", pulled[name], "--text", text_file, "--window", "32", "--json"]
    out, err = tell(finished.place, *arguments)
    manifest = json.loads((pulled[name] / "manifest.json").read_text())
    expected = manifest["metrics"]["nats_per_token"]
    assert json.loads(out)["nats_per_token"] == pytest.approx(expected, rel=1e-6)
    assert not any(sign in err for sign in ("%|", "it/s", "[transformers]"))


def test_the_report_names_each_and_says_how_it_was_made(finished: Finished) -> None:
    record, store = finished.record, finished.place.store
    report = (store / "runs" / "tiny" / record["run_id"] / "report.html").read_text()
    text = unescape(re.sub(r"(<[^>]*>|\s)+", " ", report))
    assert "Published gptq4, gguf4, nf4, trained2, mixed, w8a8 and fp8." in text
    assert "Trained through absmax's rounding on 1,024 tokens; loss 1 x forward_kl." in text
    assert "at 2, 4 or 8 bits, weight by weight, within 27,000 bytes as compressed-tensors" in text
    for name, export in EXPORTS.items():
        assert f"nightpress pull tiny/{name}@nightly" in text
        assert f"Exported by {export['method']}" in text


def test_list_and_show_find_each(finished: Finished) -> None:
    listed = finished.place.run("list")
    for name in EXPORTS:
        assert f"tiny/{name} " in listed
    shown = finished.place.run("show", "tiny/trained2")
    assert "effective_bits     3" in shown and "no runtime multiplies in int2" in shown
