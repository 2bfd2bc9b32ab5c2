from collections import Counter
from pathlib import Path

import pytest
import torch

from tasks.corpus.decoding import Writer, choose, has_stop, search
from tasks.corpus.generation import Prompt, cut_at_stop
from tasks.corpus.generators.teacher import encode_prompt, load_writer, write
from tasks.corpus.reading import read_source
from tasks.corpus.shards import read_shard
from tasks.corpus.sources import answers, continuations, rewrites
from tasks.errors import CorpusError
from tasks.models.checkpoint import describe_model
from tasks.records import RowsRef, TextRef
from tasks.stage_space import StageSpace
from tests.unit.scripted_generator import FILMS, open_context, write_seeds
from tests.unit.stage_space import make_space


@pytest.fixture(scope="module")
def writer(tiny_llama: Path) -> Writer:
    return load_writer(Path, str(tiny_llama), False)


def test_neighbours_in_a_batch_change_nothing(writer: Writer, one_thread: None) -> None:
    words = "the model learns to write short plain sentences"
    prompts = [
        Prompt(words[: 4 + 6 * i], seed=i, max_tokens=12, temperature=i % 3 / 2, raw=i % 2 == 0)
        for i in range(7)
    ]
    together = write(writer, prompts)
    assert together == [write(writer, [prompt])[0] for prompt in prompts]
    assert together == write(writer, prompts) and len({c.text for c in together}) == 7


def test_greedy_is_what_transformers_writes(writer: Writer) -> None:
    prompt = Prompt("the model", seed=0, max_tokens=10, temperature=0.0, raw=True)
    (completion,) = write(writer, [prompt])
    ids = torch.tensor([encode_prompt(writer.tokenizer, prompt)])
    out = writer.model.generate(ids, do_sample=False, max_new_tokens=10, pad_token_id=0)
    after = writer.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    assert completion.text == after


def test_beams_find_what_is_likelier_than_greedy(writer: Writer) -> None:
    prompt = Prompt("the model learns", seed=0, max_tokens=6, temperature=0.0, raw=True)
    ids = encode_prompt(writer.tokenizer, prompt)

    def nats(after: list[int]) -> float:
        logits = writer.model(torch.tensor([ids + after])).logits[0, len(ids) - 1 : -1]
        chosen = logits.log_softmax(-1)[range(len(after)), after]
        return -float(chosen.sum()) / len(after)

    wide = search(writer, ids, prompt._replace(num_beams=8))
    greedy = search(writer, ids, prompt._replace(num_beams=1))
    assert nats(wide.ids) <= nats(greedy.ids)
    (completion,) = write(writer, [prompt._replace(num_beams=8)])
    assert completion.num_completion_tokens == len(wide.ids)


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2, 0.0]])).expand(1000, 4)
    uniform = (torch.arange(1000, dtype=torch.float64)[:, None] + 0.5) / 1000
    drawn = Counter(choose(logits, torch.ones(1000, 1), uniform).flatten().tolist())
    assert drawn == {0: 500, 1: 300, 2: 200}
    assert set(choose(logits, torch.zeros(1000, 1), uniform).flatten().tolist()) == {0}


def test_a_stop_ends_a_completion(writer: Writer) -> None:
    prompt = Prompt("the model", seed=5, max_tokens=24, raw=True)
    (free,) = write(writer, [prompt])
    stop = free.text[4:6]
    (stopped,) = write(writer, [prompt._replace(stop=(stop,))])
    assert stopped.text == free.text.partition(stop)[0] and stopped.finished
    assert stopped.num_completion_tokens < free.num_completion_tokens
    assert cut_at_stop("ab##c", ("c", "##")) == "ab" and cut_at_stop("ab", ("x",)) == "ab"
    ids = writer.tokenizer("ä ö ü ###", add_special_tokens=False).input_ids
    assert has_stop(writer.tokenizer, ids, ("###",)) and not has_stop(writer.tokenizer, ids, ())


def test_a_prompt_longer_than_the_context_is_refused(writer: Writer) -> None:
    long = Prompt("numbers " * 200, seed=0, max_tokens=8)
    short = Prompt("the model", seed=0, max_tokens=8)
    refused, written = write(writer, [long, short])
    assert refused.refused == "prompt and max_tokens exceed the model's context of 128"
    assert written == write(writer, [short])[0] and written.refused is None


def test_continuations_begin_as_their_seeds(tmp_path: Path) -> None:
    seeds = write_seeds(
        tmp_path,
        [
            {"text": "one two\n three four", "licence": "MIT"},
            {"text": "five"},
            {"messages": []},
            {"text": " "},
        ],
    )
    context = open_context(tmp_path, lambda prompt, seed: f" and {seed}", None)
    rows = list(continuations.read(context, seeds=seeds, num_words=3, per_seed=2))
    assert [row["text"].partition(" and ")[0] for row in rows] == ["one two\n three"] * 2 + [
        "five"
    ] * 2
    assert len({row["text"] for row in rows}) == 4
    assert [row["licence"] for row in rows] == ["MIT", "MIT", None, None]
    assert context.refused == {"a seed that is a chat": 1, "a seed without text": 1}


def test_rewrites_keep_outputs_and_refuse_copies(tmp_path: Path) -> None:
    texts = ["a fine old film about the sea", "nothing works in this story"]
    seeds = write_seeds(tmp_path, [{"text": text, "output": "good"} for text in texts])

    def writes(prompt: str, seed: int) -> str:
        return f" {texts[0]}!" if texts[0] in prompt else " none of it holds together"

    context = open_context(tmp_path, writes, FILMS)
    (row,) = rewrites.read(context, seeds=seeds)
    assert (row["text"], row["output"]) == ("none of it holds together", "good")
    assert context.refused == {"a copy of its seed": 1}


def test_answers_replace_outputs(tmp_path: Path) -> None:
    inputs = write_seeds(tmp_path, [{"text": "fine", "output": "bad"}, {"text": "so so"}])

    def writes(prompt: str, seed: int) -> str:
        return " Good" if prompt.endswith("Input: fine\nOutput:") else " neither"

    context = open_context(tmp_path, writes, FILMS)
    (row,) = answers.read(context, inputs=inputs)
    assert (row["text"], row["output"]) == ("fine", "good")
    assert context.refused == {"label outside the set": 1}
    with pytest.raises(ValueError, match="beam needs the generator teacher"):
        next(answers.read(context, inputs=inputs, decoding="beam"))


def read_as_stage(space: StageSpace, name: str, teacher: Path, **texts: Path) -> RowsRef:
    """Read a source of three rows with the teacher as its generator."""
    limit = "max_seeds" if "seeds" in texts else "max_inputs"
    options = {
        "name": name,
        "options": {limit: 3, "max_tokens": 8},
        "generator": {"name": "teacher", "options": {"batch_prompts": 2}},
        "task": None,
        "head": "causal_lm",
        "trust_remote_code": False,
        "seed": 1,
    }
    refs = {key: TextRef(uri=str(path), digest="", num_bytes=0) for key, path in texts.items()}
    return read_source(space, options, teacher=describe_model(teacher, str(teacher)), **refs)


def test_the_teacher_writes_in_a_stage(tiny_llama: Path, text_file: Path, tmp_path: Path) -> None:
    spaces = [make_space(tmp_path / name, tmp_path / name) for name in ("a", "b")]
    first, again = (
        read_as_stage(space, "continuations", tiny_llama, seeds=text_file) for space in spaces
    )
    assert first.digest == again.digest
    assert first.num_rows == [3] and first.spent["requests"] == 3
    found = read_shard(spaces[0].out / "rows/00000.parquet")
    digest = describe_model(tiny_llama, "").digest
    assert {row["generator"] for row in found} == {f"LlamaForCausalLM {digest[:12]}"}


def test_an_answer_that_is_cut_off_teaches_nothing(
    tiny_llama: Path, text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(CorpusError, match="'cut off at max_tokens': 3"):
        read_as_stage(make_space(tmp_path, tmp_path), "answers", tiny_llama, inputs=text_file)
