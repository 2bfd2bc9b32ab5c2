"""Load a model folder as a stranger would, and say what was found.

Run alone, by path, in isolated mode: nothing of nightpress is imported, so what loads here loads
for everybody. The exception is nightpress's own layout, which nobody else reads; the answer's
`loader` says so. Each line on stdin is a request in JSON, {folder, ids, token_type_ids,
trust_remote_code}; a line on stdout answers it: of a causal language model with its loss, of any
other head with its logits. What libraries print goes to stderr.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

HEADS = {
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}
"""By the end of the architecture's name."""
CAUSAL = "AutoModelForCausalLM"
"""All other architectures are."""
KINDS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def load(folder: Path, trust: bool) -> tuple[str, Any, dict[str, Any]]:
    """Return the loader's name, the model, and the names of the weights that do not fit."""
    if (folder / "nightpress.json").is_file():
        sys.path.insert(0, str(Path(__file__).parents[2]))
        from tasks.models.packed_checkpoint import load_packed

        return "nightpress", load_packed(folder, "auto", trust), dict.fromkeys(KINDS, ())
    if (folder / "model.gguf").is_file():
        from gguf import GGUFReader

        config = AutoConfig.from_pretrained(folder)
        fields = GGUFReader(folder / "model.gguf").fields
        config.model_type = fields["general.architecture"].contents()  # a mistral is a llama there
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file="model.gguf",
            config=config,
            dtype=config.dtype,
            output_loading_info=True,
        )
        return "transformers, from GGUF", model, found
    auto: Any = getattr(transformers, name_auto_class(folder))
    model, found = auto.from_pretrained(
        folder,
        dtype="auto",
        trust_remote_code=trust,
        use_safetensors=True,
        output_loading_info=True,
    )
    return "transformers", model, found


def name_auto_class(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = (config.get("architectures") or [""])[0]
    return next((auto for end, auto in HEADS.items() if named.endswith(end)), CAUSAL)


def mean_nats(model: Any, rows: list[list[int]]) -> float:
    """Return a causal language model's nats/token, the first token of each row left out."""
    nats, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([row], device=model.device)
        logits = model(ids).logits[0, :-1].float()
        nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
        tokens += len(row) - 1
    return nats / tokens


def list_logits(
    model: Any, rows: list[list[int]], token_types: list[list[int]]
) -> list[list[float]]:
    """Return each row's logits; where they start and end an answer, one after the other."""
    found = []
    for place, row in enumerate(rows):
        inputs = {"input_ids": torch.tensor([row], device=model.device)}
        if token_types:
            inputs["token_type_ids"] = torch.tensor([token_types[place]], device=model.device)
        output = model(**inputs)
        parts = [output[key] for key in ("logits", "start_logits", "end_logits") if key in output]
        found.append(torch.cat([part.float().flatten() for part in parts]).tolist())
    return found


def describe(request: dict[str, Any]) -> dict[str, Any]:
    """Load what a request names and return the answer."""
    folder, trust = Path(request["folder"]), request["trust_remote_code"]
    loader, model, found = load(folder, trust)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    vocabulary = None
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        vocabulary = len(AutoTokenizer.from_pretrained(folder, trust_remote_code=trust))
    rows: list[list[int]] = request["ids"]
    with torch.inference_mode():
        made: dict[str, Any] = (
            {"nats_per_token": mean_nats(model, rows)}
            if name_auto_class(folder) == CAUSAL
            else {"logits": list_logits(model, rows, request["token_type_ids"])}
        )
    return {
        "loader": loader,
        "architecture": type(model).__name__,
        "missing": sorted(map(str, found["missing_keys"])),
        "unexpected": sorted(map(str, found["unexpected_keys"])),
        "mismatched": sorted(map(str, found["mismatched_keys"])),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "embedding_rows": model.get_input_embeddings().weight.shape[0],
        "vocabulary": vocabulary,
        "quantized": loader == "nightpress"
        or getattr(model.config, "quantization_config", None) is not None,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    } | made


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(describe(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
