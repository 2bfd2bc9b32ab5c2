"""llama.cpp as the judge of GGUF files: what it reads, says and writes is what our models do.

It multiplies quantized weights with inputs that it rounds to 8 bits in blocks of 32, which ours do
not: hence two tolerances.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tasks.models.checkpoint import load_model, load_tokenizer
from tasks.models.folder import copy_companions
from tasks.prune.shapes.stock_config import smaller_config
from tasks.prune.units.slicing import build_sliced, slice_weights
from tasks.prune.units.units import find_sublayers
from tasks.quantize.checkpoint_tensors import read_tensors
from tasks.quantize.decoder_blocks import find_layout
from tasks.quantize.formats import gguf
from tasks.quantize.methods import absmax
from tests.integration.llama_cpp import ask_llama_cpp, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

ROOT = Path(__file__).parents[2]
TEACHER = ROOT / "configs/demo/teacher"
TEXTS = [
    "The file is read once, and  then the words are\n\n    indented; don't they'll 2024?",
    "def load(path: str) -> dict[str, int]:\n\treturn {'é': 1, '你好': 2}\n",
    "  two spaces first",
]
NUM_WINDOWS, WINDOW = 6, 128


class Tolerance(NamedTuple):
    nats: float
    """Of the mean over all windows."""
    logits: float
    """How much less than our best the logit of a token may be that llama.cpp chose."""


FLOAT, ROUNDED = Tolerance(5e-4, 0.01), Tolerance(5e-3, 0.2)
NUM_NEW = 48


class Case(NamedTuple):
    name: str
    options: dict[str, Any]
    """Of absmax; empty where nothing is quantized."""
    embeddings: str = "plain"


CASES = [
    Case("F16", {}),
    Case("Q8_0", {"bits": 8}),
    Case("Q4_0", {"bits": 4}),
    Case("Q4_1", {"bits": 4, "symmetric": False}),
    Case("Q4_0, embeddings Q8_0", {"bits": 4}, "Q8_0"),
]


def export(source: Path, out: Path, case: Case) -> Path:
    layout = find_layout(source, trust_remote_code=False)
    names = [name for block in layout.blocks for name in block]
    quantized = {
        name: absmax.round_weight(weight.float(), torch.float16, group_size=32, **case.options)
        for name, weight in read_tensors(source, names if case.options else [])
    }
    out.mkdir()
    gguf.write(source, out, quantized, layout.others, torch.float16, embeddings=case.embeddings)
    copy_companions(source, out)
    return out


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's teacher with half its neurons and 6 of its 8 heads: 128 is no multiple of 6, so
    stock code holds it as a mistral."""
    model = load_model(TEACHER)
    sublayers = find_sublayers(model)
    num_kept = {"kv_groups": 3, "ffn": 192}
    kept = [np.arange(s.num_units) < num_kept[s.kind] for s in sublayers]
    config = smaller_config(model.config, sublayers, num_kept)
    assert (config.model_type, config.num_attention_heads, config.head_dim) == ("mistral", 6, 16)
    folder = tmp_path_factory.mktemp("pruned")
    weights = slice_weights(model, sublayers, kept)
    build_sliced(config, weights, trust_remote_code=False).save_pretrained(folder)
    copy_companions(TEACHER, folder)
    return folder


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Random models of other families, with the demo's tokenizer."""

    def make(model_type: str, **overrides: Any) -> Path:
        from transformers import AutoConfig, AutoModelForCausalLM

        settings = {
            "vocab_size": 2048,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 512,
        }
        torch.manual_seed(0)
        config = AutoConfig.for_model(model_type, **(settings | overrides))
        model = AutoModelForCausalLM.from_config(config)
        for name, parameter in model.named_parameters():
            torch.nn.init.normal_(parameter, std=0.1)
            if "norm" in name and model_type != "gemma2":
                torch.nn.init.uniform_(parameter, 0.5, 1.5)
        folder = tmp_path_factory.mktemp(model_type)
        model.save_pretrained(folder)
        copy_companions(TEACHER, folder)
        return folder

    return make


def judge(folder: Path, case: Case) -> None:
    """Hold llama.cpp's tokens, nats/token and greedy text against ours, from the same file."""
    tokenizer, model = load_tokenizer(folder), load_model(folder, "float32")
    ids = tokenizer((ROOT / "README.md").read_text()).input_ids
    windows = [ids[WINDOW * i : WINDOW * (i + 1)] for i in range(NUM_WINDOWS)]
    prompt = ids[:16]
    answer = ask_llama_cpp(
        folder / "model.gguf", texts=TEXTS, windows=windows, prompt=prompt, num_new=NUM_NEW
    )
    for text, tokens in zip(TEXTS, answer["tokens"], strict=True):
        assert tokens == tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(windows)).logits[:, :-1]
        nats = float(F.cross_entropy(logits.flatten(0, 1), torch.tensor(windows)[:, 1:].flatten()))
        whole = torch.tensor([prompt + answer["generated"]])
        choices = model(input_ids=whole).logits[0, len(prompt) - 1 : -1]
    theirs = sum(answer["nats"]) / (NUM_WINDOWS * (WINDOW - 1))
    assert len(answer["generated"]) == NUM_NEW
    chosen = choices.gather(1, whole[0, len(prompt) :, None])[:, 0]
    below = choices.amax(dim=1) - chosen
    print(
        f"{model.config.model_type} {case.name}: {nats:.4f} nats/token, llama.cpp {theirs:.4f}; "
        f"{int((below == 0).sum())} of {NUM_NEW} tokens are our best, "
        f"the others {float(below.max()):.3f} below"
    )
    tolerance = ROUNDED if case.options else FLOAT
    assert theirs == pytest.approx(nats, abs=tolerance.nats)
    assert float(below.max()) <= tolerance.logits


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_trained_model(case: Case, tmp_path: Path) -> None:
    judge(export(TEACHER, tmp_path / case.name, case), case)


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.name)
def test_a_pruned_model(case: Case, pruned: Path, tmp_path: Path) -> None:
    judge(export(pruned, tmp_path / case.name, case), case)


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 10000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 64,
                }
            },
        ),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        ("qwen2", {"tie_word_embeddings": True, "head_dim": 16}),
        ("qwen2", {"num_attention_heads": 6}),
        ("qwen3", {}),
        ("gemma2", {"query_pre_attn_scalar": 32, "sliding_window": 32}),
    ],
    ids=[
        "llama with biases",
        "llama3 rope",
        "linear rope",
        "qwen2",
        "qwen2 with fewer heads",
        "qwen3",
        "gemma2",
    ],
)
def test_families(
    model_type: str, overrides: dict[str, Any], families: Callable[..., Path], tmp_path: Path
) -> None:
    source = families(model_type, **overrides)
    judge(export(source, tmp_path / "F16", CASES[0]), CASES[0])


def test_sentencepiece_text_is_cut_the_same(tmp_path: Path, texts: list[str]) -> None:
    """BPE over characters, spaces as \u2581, bytes for what is unknown: as a Llama 2 has it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    marks = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    trained.normalizer = marks
    trained.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    vocabulary = trained.get_vocab()
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])[len(special) :]
    merges = [  # every way to split a token, as SentencePiece merges whatever makes one
        (token[:cut], token[cut:])
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    bpe = Tokenizer(
        models.BPE(
            vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
        )
    )
    bpe.normalizer = marks
    bpe.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    bpe.add_special_tokens(["<unk>", "<s>", "</s>"])
    source = tmp_path / "source"
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(source)
    PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(source)
    folder = export(source, tmp_path / "out", CASES[0])
    asked = [*TEXTS, *texts[:4]]
    answer = ask_llama_cpp(folder / "model.gguf", texts=asked)
    tokenizer = load_tokenizer(folder)
    for text, found in zip(asked, answer["tokens"], strict=True):
        assert found == tokenizer(text, add_special_tokens=False).input_ids
