"""A recipe whose export is for llama.cpp: evaluated, gated, published and pulled as any other."""

from pathlib import Path

import pytest
import yaml

from tasks.models.checkpoint import count_parameters, load_model
from tasks.models.folder import GGUF_FILE
from tests.integration.llama_cpp import ask_llama_cpp, why_not
from tests.integration.pipeline import Workplace

pytestmark = pytest.mark.integration


@pytest.mark.slow
def test_a_gguf_export_is_published_and_pulled(recipe_file: Path, tmp_path: Path) -> None:
    """Half the neurons are cut, and the rest has 4 bits by GPTQ."""
    raw = yaml.safe_load(recipe_file.read_text())
    raw["steps"] = [
        {"prune": raw["steps"][0]["prune"] | {"sparsity": {"ffn": 0.5}}},
    ]
    raw["comparisons"] = []
    raw["exports"] = [
        {
            "name": "q4",
            "method": "gptq",
            "format": "gguf",
            "dtype": "float16",
            "runtime": "llama.cpp",
            "options": {"bits": 4, "group_size": 32},
        }
    ]
    recipe_file.write_text(yaml.safe_dump(raw))
    place = Workplace(tmp_path / "place")
    record = place.run_json("run", recipe_file)
    assert record["status"] == "done"
    assert [export["outcome"] for export in record["exports"]] == ["published"]
    place.run("pull", "tiny/q4", tmp_path / "pulled")
    pulled = tmp_path / "pulled"
    (card,) = place.store.rglob("README.md")
    assert 'gguf_file="model.gguf"' in card.read_text()
    model = load_model(pulled, "auto")
    assert model.config.intermediate_size == 32
    described = {row["title"]: row["model"] for row in record["models"]}
    assert described["q4"]["num_parameters"] == count_parameters(pulled)
    if why_not() is None:
        assert ask_llama_cpp(pulled / GGUF_FILE, prompt=[5, 6, 7], num_new=3)["generated"]
