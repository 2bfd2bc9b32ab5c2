"""A look into a model: the same prompts for all, greedy text, probabilities that add up."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.corpus.text import Document, tokenize_file
from tasks.evaluate.inspection import inspect_model
from tasks.evaluate.sampled import Samples
from tasks.evaluate.samples import (
    NUM_PLACES,
    NUM_TOKENS,
    PROMPT_TOKENS,
    choose_places,
    choose_prompts,
    spell,
)
from tasks.inputs import find_text
from tasks.models.checkpoint import describe_model, load_model
from tests.unit.stage_space import make_space

OPTIONS = {
    "window": 24,
    "temperatures": [1.0, 2.0],
    "seed": 3,
    "device": "cpu",
    "trust_remote_code": False,
}


def inspect(model: Path, text: Path, folder: Path, **changes: Any) -> tuple[str, Path]:
    space = make_space(folder / "store", folder / "scratch", prefix="stages/inspect/key")
    ref = describe_model(model, str(model)).model_copy(update=changes)
    found = inspect_model(space, OPTIONS, model=ref, text=find_text("text", str(text), space.store))
    return found.digest, space.out


@pytest.fixture(scope="module")
def looked(
    tiny_llama: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    return inspect(tiny_llama, text_file, tmp_path_factory.mktemp("looked"))


def read_samples(out: Path) -> Samples:
    return Samples.model_validate_json((out / "samples.json").read_bytes())


def test_the_same_look_gives_the_same_bytes(
    looked: tuple[str, Path], tiny_llama: Path, text_file: Path, tmp_path: Path
) -> None:
    digest, out = looked
    assert inspect(tiny_llama, text_file, tmp_path)[0] == digest
    assert {row["name"] for row in json.loads((out / "components.json").read_text())} == {
        "embeddings",
        "attention",
        "feed-forward",
        "norms",
        "head",
    }


def test_another_model_is_shown_at_the_same_places(
    looked: tuple[str, Path], make_llama: Callable[..., Path], text_file: Path, tmp_path: Path
) -> None:
    one, other = (
        read_samples(looked[1]),
        read_samples(inspect(make_llama(9), text_file, tmp_path)[1]),
    )
    assert [c.prompt for c in one.continuations] == [c.prompt for c in other.continuations]
    assert [(n.context, n.actual) for n in one.next_tokens] == [
        (n.context, n.actual) for n in other.next_tokens
    ]
    assert one.next_tokens != other.next_tokens and len(one.next_tokens) == NUM_PLACES


def test_text_is_what_generate_writes_and_tokens_are_ranked(
    looked: tuple[str, Path], tiny_llama: Path, text_file: Path, tokenizer: Any
) -> None:
    samples = read_samples(looked[1])
    model = load_model(tiny_llama, "auto")
    prompts = choose_prompts(tokenize_file(text_file, tokenizer), 24, OPTIONS["seed"])
    for ids, found in zip(prompts, samples.continuations, strict=True):
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=48, do_sample=False, pad_token_id=0
        )
        written = [i for i in out[0].tolist() if i != 0]
        assert tokenizer.decode(written).replace("<s>", "") == found.prompt + found.text
    for place in samples.next_tokens:
        assert len(place.ranked) == NUM_TOKENS
        for column in zip(*(token.probabilities for token in place.ranked), strict=True):
            assert list(column) == sorted(column, reverse=True) and sum(column) <= 1 + 1e-4
        sharp, soft = (place.ranked[0].probabilities[i] for i in (0, 1))
        assert sharp > soft, "the higher temperature is flatter"


def test_a_chat_is_continued_where_the_assistant_begins() -> None:
    chat = Document(list(range(100, 130)), [0] * 20 + [1] * 10)
    text = Document(list(range(99)), [1] * 99)
    short = Document([7, 8, 9], [1, 1, 1])
    unlearned = Document([1, 2, 3], [1, 0, 0])
    assert choose_prompts([chat], 8, 0) == [list(range(112, 120))]
    assert choose_prompts([text], 99, 0) == [list(range(PROMPT_TOKENS))]
    assert choose_prompts([short], 8, 0) == [[7]]
    assert choose_prompts([unlearned], 8, 0) == []
    (place,) = choose_places([chat], 8, 0)
    assert place.actual >= 120 and len(place.before) == 8 and place.before[-1] == place.actual - 1


def test_tokens_without_text_have_the_vocabularys_name(tokenizer: Any) -> None:
    (half, *_) = tokenizer("é", add_special_tokens=False).input_ids
    before = tokenizer("the", add_special_tokens=False).input_ids
    assert spell(tokenizer, before, tokenizer(" model").input_ids[-1]).strip()
    assert spell(tokenizer, before, half) == tokenizer.convert_ids_to_tokens(half)
    assert spell(tokenizer, before, 0) == "<s>"
    assert spell(tokenizer, before, len(tokenizer) + 5) == f"#{len(tokenizer) + 5}"


def test_an_encoder_writes_nothing(tiny_llama: Path, text_file: Path, tmp_path: Path) -> None:
    _, out = inspect(tiny_llama, text_file, tmp_path, architecture="BertForSequenceClassification")
    assert [path.name for path in out.iterdir()] == ["components.json"]
