"""Filters of a corpus: what each drops, what it says, and what it must leave alone."""

import json
import random
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.corpus.context import CorpusContext
from tasks.corpus.filtering import Filter, decode_values, encode_values
from tasks.corpus.filters import (
    decontaminate,
    label_balance,
    licence,
    minhash_dedup,
    novelty,
    perplexity,
    quality,
)
from tasks.corpus.novelty import NoveltyPool, rouge_l
from tasks.corpus.rows import Row, make_row
from tasks.corpus.scoring import Scorer, load_scorer
from tasks.corpus.text import tokenize_row
from tasks.corpus.words import hash_ngrams, hash_words, split_words
from tasks.corpus_options import Task
from tasks.errors import CorpusError
from tasks.models.checkpoint import load_model

TASK = Task(instruction="Judge.", kind="classification", labels=["bad", "good"])
WORDS = [a + b for a in "bcdfgklm" for b in ("ale", "ine", "ore", "unt", "ash", "ed", "olk", "imp")]


def rows_of(*texts: str, **more: Any) -> list[Row]:
    return [make_row({"text": text} | more, "local_text", None) for text in texts]


def judge(built: Filter, rows: list[Row], state: Any = None) -> list[str | None]:
    """Judge rows as the corpus stage does, a shard of two at a time."""
    shards = [rows[start : start + 2] for start in range(0, len(rows), 2)]
    state = built.state() if state is None else state
    measured = [encode_values(built.measure(state, shard)) for shard in shards]
    return list(built.judge(value for data in measured for value in decode_values(data)))


def context(**given: Any) -> CorpusContext:
    return CorpusContext(space=cast(Any, None), seed=0, name="test", **given)


def some_words(seed: int, number: int = 60) -> list[str]:
    return random.Random(seed).choices(WORDS, k=number)


def test_ngrams_are_the_same_wherever_they_stand() -> None:
    ngrams = hash_ngrams(hash_words("a b c d a b c".split()), 3)
    assert len(ngrams) == 5 and ngrams[0] == ngrams[4] and len(set(ngrams.tolist())) == 4
    assert ngrams[0] == 0xFF0038D8AB57F00C  # on every machine
    assert len(hash_ngrams(hash_words(["a"]), 2)) == 0
    backwards = hash_ngrams(hash_words("c b a".split()), 3)
    assert backwards[0] != ngrams[0]


def test_words_have_neither_case_nor_punctuation() -> None:
    assert split_words("Don't stop, \u6771\u4eac!") == ["don", "t", "stop", "\u6771", "\u4eac"]


def test_near_duplicates_are_dropped_and_the_first_is_kept() -> None:
    words = some_words(0)
    other = [*words[:30], "inserted", *words[30:]]  # 51 of 61 5-grams in common: J = 0.84
    far = [word if i % 4 else "changed" for i, word in enumerate(words)]
    texts = [" ".join(w) for w in (words, far, other, some_words(1))]
    built = minhash_dedup.keep(context(), permutations=256)
    assert judge(built, rows_of(*texts, "", "!", "")) == [
        None,
        None,
        "near duplicate",
        *[None] * 4,
    ]


def test_a_shared_band_alone_drops_nothing() -> None:
    words = some_words(0)
    texts = [" ".join(words), " ".join([*words[:30], "inserted", *words[30:]])]  # J = 0.84
    built = minhash_dedup.keep(context(), threshold=0.9)
    signed = [built.measure(built.state(), rows_of(text))[0][128:] for text in texts]
    bands = np.frombuffer(b"".join(signed), np.uint64).reshape(2, -1)
    assert (bands[0] == bands[1]).any() and judge(built, rows_of(*texts)) == [None, None]


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 12))
def test_signatures_estimate_the_similarity_of_sets(seed: int, changes: int) -> None:
    words = some_words(seed, 200)
    other = list(words)
    for place in random.Random(seed + 1).sample(range(200), changes):
        other[place] = "changed"
    sets = [set(hash_ngrams(hash_words(w), 5).tolist()) for w in (words, other)]
    exact = len(sets[0] & sets[1]) / len(sets[0] | sets[1])
    built = minhash_dedup.keep(context(), permutations=1024)
    texts = rows_of(" ".join(words), " ".join(other))
    low = [np.frombuffer(v[:1024], np.uint8) for v in built.measure(built.state(), texts)]
    # Four standard errors of 1024 permutations are at most 0.0625.
    assert abs(minhash_dedup.estimate(low[0], low[1][None])[0] - exact) < 0.07


def test_bands_find_a_pair_at_the_threshold() -> None:
    for threshold in (0.5, 0.7, 0.8, 0.95):
        size = minhash_dedup.choose_band_size(threshold, 128)
        share = [1 - (1 - threshold**s) ** (128 // s) for s in (size, size + 1)]
        assert share[0] >= 0.95 > share[1]


PROSE = (
    "The press ran through the night and the men that had set the type went home to sleep. "
    "With the first light a boy came to carry bundles of paper down to the harbour, where "
    "ships of many nations lay and the captains waited to have the news of the day, be it "
    "good or bad. Nobody in the whole town knew at that hour what had been printed."
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (PROSE, None),
        ("Too short to be a page.", "fewer than 50 words"),
        ("a b c d e " * 12, "mean word length outside 3 to 10"),
        (PROSE.replace(" ", " #tag "), "more than 0.1 hash signs a word"),
        (PROSE.replace(" the ", " the... "), "more than 0.1 ellipses a word"),
        (PROSE + " 1234567" * 30, "fewer than 80% of words with a letter"),
        (" ".join(some_words(3)), "fewer than 2 stop words"),
        (PROSE + " Lorem ipsum dolor.", "lorem ipsum"),
        (PROSE + " if (x) { y }", "curly brackets"),
        ("- " + PROSE.replace(". ", ".\n- "), "more than 90% of lines begin with a bullet"),
        (PROSE.replace(". ", "...\n"), "more than 30% of lines end with an ellipsis"),
        (PROSE + "\n" + "Home | News | About\n" * 3, "more than 30% of lines repeated"),
        (f"{PROSE}\nOne.\nTwo.\nSix.\n{PROSE}", "more than 20% of characters in repeated lines"),
        (PROSE + " of the men" * 12, "more than 20% of characters in one 2-gram"),
        (PROSE + " " + PROSE[20:], "more than 15% of characters in repeated 5-grams"),
    ],
)
def test_quality_names_the_rule(text: str, reason: str | None) -> None:
    found = judge(quality.keep(context()), rows_of(text))
    assert found == [reason and f"quality: {reason}"]


def test_quality_may_be_told_what_to_expect() -> None:
    built = quality.keep(context(), min_words=2, min_stop_words=0, code=True)
    assert judge(built, rows_of("schlicht {aber} gut", "kurz", "")) == [
        None,
        *["quality: fewer than 2 words"] * 2,
    ]


def test_repeated_ngrams_are_counted_once() -> None:
    words = [f"word{i}" for i in range(100)]
    words[60:69] = words[20:29]  # 9 of 100 words were there before
    assert not list(quality.repetition_faults(words))
    words[69:76] = words[29:36]  # 16
    assert next(quality.repetition_faults(words)).endswith("repeated 5-grams")


@pytest.fixture(scope="module")
def scorer(tiny_llama: Path) -> Scorer:
    return load_scorer(lambda uri: Path(uri), str(tiny_llama), False)


def test_perplexity_is_the_models_own_loss(
    scorer: Scorer, tiny_llama: Path, texts: list[str]
) -> None:
    ids = torch.tensor([tokenize_row({"text": texts[0]}, scorer.tokenizer).ids[:20]])
    expected = load_model(tiny_llama)(input_ids=ids, labels=ids).loss
    (found,) = perplexity.measure_nats(scorer, rows_of(texts[0]), window=20)
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_perplexity_window_has_two_sides(scorer: Scorer, texts: list[str]) -> None:
    rows = rows_of(*texts[:6], "")
    nats = perplexity.measure_nats(scorer, rows, window=32)
    least, *_, most = sorted(n for n in nats if n is not None)
    reasons = perplexity.judge(nats, min_nats=least + 1e-6, max_nats=most - 1e-6)
    assert sorted(str(reason).split(" ")[1] for reason in reasons if reason) == [
        "above",
        "below",
        "no",
    ]
    with pytest.raises(ValueError, match="expected min_nats, max_nats or both"):
        perplexity.keep(context())


def test_novelty_is_rouge_l_below_the_limit() -> None:
    texts = ["write a poem about the sea", "write a poem about the moon", "sort these numbers", ""]
    assert rouge_l(texts[0], texts[1]) == pytest.approx(5 / 6)
    stale = "novelty: ROUGE-L of 0.7 or more"
    rows = rows_of(*texts, texts[2], "")
    assert judge(novelty.keep(context()), rows) == [None, stale, None, None, stale, stale]
    assert judge(novelty.keep(context(), max_similarity=0.9), rows)[:2] == [None, None]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.3, 0.5, 0.7, 0.75, 0.9, 1.0]))
def test_looking_at_prefixes_alone_misses_nothing(seed: int, most: float) -> None:
    rng = random.Random(seed)
    texts = [" ".join(rng.choices("a bb ccc d ee".split(), k=rng.randrange(9))) for _ in range(40)]
    pool = NoveltyPool([], most)
    kept: list[str] = []
    for text in texts:
        is_new = all(rouge_l(text, other) < most for other in kept)
        assert pool.admit(text) is is_new
        kept += [text] * is_new
    assert all(rouge_l(a, b) < most for a, b in combinations(kept, 2))


def labelled(**counts: int) -> list[Row]:
    names = [name for name, count in counts.items() for _ in range(count)]
    random.Random(0).shuffle(names)
    return [make_row({"text": str(i), "output": n}, "s", TASK) for i, n in enumerate(names)]


def test_labels_are_balanced_by_the_seed() -> None:
    rows = labelled(bad=30, good=10)
    built = label_balance.keep(context(task=TASK), ratio=1.5)
    reasons = judge(built, rows)
    kept = [row["output"] for row, reason in zip(rows, reasons, strict=True) if not reason]
    assert (kept.count("bad"), kept.count("good")) == (15, 10)
    assert {r for r in reasons if r} == {"label balance: more than 15 rows are bad"}
    assert judge(built, rows) == reasons
    other = CorpusContext(space=cast(Any, None), seed=1, name="test", task=TASK)
    assert judge(label_balance.keep(other, ratio=1.5), rows) != reasons


def test_balance_needs_labels() -> None:
    with pytest.raises(ValueError, match=r"expected task\.kind"):
        label_balance.keep(context())
    with pytest.raises(CorpusError, match="no row has the label 'good'"):
        judge(label_balance.keep(context(task=TASK)), labelled(bad=3))
    built = label_balance.keep(context(task=TASK), ratio=None, max_per_label=2)
    assert sum(not reason for reason in judge(built, labelled(bad=3))) == 2


ITEM = "the quick brown fox jumps over the lazy dog while seven wizards quietly watch from afar"
SHORT_ITEM = "a quick fox watches the lazy dog sleep"  # 8 words
TINY_ITEM = "an awful film"


@pytest.fixture
def items(tmp_path: Path) -> decontaminate.Items:
    path = tmp_path / "evaluation.jsonl"
    chat = [{"role": "user", "content": "what " + ITEM}, {"role": "assistant", "content": "yes"}]
    rows = [{"text": ITEM}, {"text": SHORT_ITEM}, {"text": TINY_ITEM, "label": 0}]
    path.write_text("".join(json.dumps(r) + "\n" for r in [*rows, {"messages": chat}]))
    return decontaminate.load_items(lambda uri: Path(uri), str(path), 13)


def test_planted_items_are_dropped_and_others_stay(items: decontaminate.Items) -> None:
    planted = [
        ITEM,
        f"As they say: {ITEM.upper().replace(' over', ', over')}!",
        "before " + " ".join(ITEM.split()[1:14]) + " after",
        f"x {SHORT_ITEM} y",
        "An awful film.",
        "prompt",
    ]
    clean = [
        " ".join(ITEM.split()[1:13]),  # 12 words
        " ".join(SHORT_ITEM.split()[:7]),
        "not an awful film at all",
        " ".join(reversed(ITEM.split())),
        "yes",
        "",
    ]
    rows = rows_of(*planted, *clean)
    rows[5]["output"] = ITEM
    found = decontaminate.find_contaminated(items, rows)
    assert found == ["contaminated: in the evaluation text"] * 6 + [None] * 6


def test_forbidden_licences() -> None:
    built = licence.keep(context(), forbid="gpl-3.0, unknown")
    rows = [*rows_of("a", licence="GPL-3.0"), *rows_of("b", licence="MIT"), *rows_of("c")]
    reasons = judge(built, rows)
    assert reasons == ["licence GPL-3.0 is forbidden", None, "licence unknown is forbidden"]
    with pytest.raises(ValueError, match="expected licences"):
        licence.keep(context(), forbid=" , ")


def test_a_corpus_is_filtered_on_workers_and_accounted_for(
    recipe_file: Path, text_file: Path, texts: list[str], tmp_path: Path
) -> None:
    from tests.unit.test_corpus import build

    rows = tmp_path / "rows.jsonl"
    clean = [" ".join(some_words(seed)) for seed in range(12)]
    planted = [f"before {texts[7].upper()} after", clean[3] + " again"]
    lines = [{"text": text, "licence": "MIT"} for text in [*clean, *planted]]
    rows.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"text": "bare"}]))
    filters = [
        {"name": "licence", "options": {"forbid": "unknown"}},
        {"name": "decontaminate"},
        {"name": "minhash_dedup"},
        {"name": "perplexity", "options": {"max_nats": 1000.0}},
    ]
    corpus = build(
        recipe_file,
        tmp_path / "store",
        f"evaluation.text={text_file}",
        f"corpus.sources=[{{name: local_text, options: {{path: {rows}}}}}]",
        f"corpus.filters={json.dumps(filters)}",
    ).corpus
    assert corpus.num_documents == 12 and corpus.dropped == {
        "contaminated: in the evaluation text": 1,
        "licence unknown is forbidden": 1,
        "near duplicate": 1,
    }
