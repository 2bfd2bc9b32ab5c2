"""Fixtures for all tests: tiny random models with a real tokenizer, and text for them."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("steady", derandomize=True)
if not os.environ.get("NIGHTPRESS_NEW_EXAMPLES"):
    settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))


WORDS = "the model learns to write short plain sentences about nights presses and small numbers"


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Forty different short documents."""
    words = WORDS.split()
    return [
        " ".join(words[(i * k) % len(words)] for k in range(1, 30)) + f" number {i}."
        for i in range(40)
    ]


@pytest.fixture(scope="session")
def text_file(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documents as JSONL."""
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture(scope="session")
def tokenizer(texts: list[str]) -> Any:
    """Byte-level BPE of 300 tokens with BOS = EOS = 0 and a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet),
    )
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="<s>", chat_template=template
    )


@pytest.fixture(scope="session")
def make_llama(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Save a random Llama (2 layers, hidden 32, 4 heads in 2 KV groups, FFN 64) and its tokenizer.

    Keyword arguments override the config; `seed` chooses the weights.
    """

    def make(seed: int = 0, **overrides: Any) -> Path:
        import torch
        from transformers import LlamaConfig, LlamaForCausalLM

        settings = {
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
            "bos_token_id": 0,
            "eos_token_id": 0,
        }
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**(settings | overrides)))
        with torch.no_grad():  # wider than the default, so that every unit matters
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(4.0)
        folder = tmp_path_factory.mktemp("llama")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_llama(make_llama: Callable[..., Path]) -> Path:
    return make_llama()


@pytest.fixture(scope="session")
def recipe_text(tiny_llama: Path, text_file: Path) -> str:
    """A recipe that compresses the tiny Llama, every stage included."""
    return f"""
name: tiny
teacher: {{model: {tiny_llama}}}
calibration: {{text: {text_file}, num_windows: 8, window: 32}}
evaluation: {{text: {text_file}, window: 32}}
corpus:
  sources:
    - {{name: teacher_samples, options: {{num_tokens: 512, sample_tokens: 64, batch_samples: 4}}}}
    - {{name: local_text, options: {{path: {text_file}}}}}
  block_tokens: 32
steps:
  - prune: {{sparsity: {{ffn: 0.5, kv_groups: 0.5}}, num_submodels: 8, windows_per_submodel: 2,
             submodels_per_unit: 2}}
  - distill:
      losses: [{{name: forward_kl, weight: 0.5}}, {{name: cross_entropy, weight: 0.5}}]
      num_tokens: 4096
      batch_blocks: 8
      micro_batch_blocks: 4
      checkpoint_steps: 4
comparisons: [from_scratch]
exports:
  - {{name: int4, method: gptq, format: compressed-tensors, options: {{bits: 4, group_size: 16}}}}
  - {{name: int8, method: absmax, format: compressed-tensors, options: {{bits: 8}}}}
gate:
  teacher: {{max_nats_increase: 100.0}}
"""


@pytest.fixture
def recipe_file(recipe_text: str, tmp_path: Path) -> Path:
    """The recipe, for one test to change."""
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe_text)
    return path


@pytest.fixture(scope="session")
def shared_recipe(recipe_text: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe, for many tests to read."""
    path = tmp_path_factory.mktemp("recipe") / "recipe.yaml"
    path.write_text(recipe_text)
    return path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a worker has: the same bytes are promised for the same number of threads."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
