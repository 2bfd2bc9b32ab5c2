"""Load a model folder as a stranger would, and say what was found.

Run alone, by path, in isolated mode: nothing of nightpress is imported, so what loads here loads
for everybody. A JSON request comes in on stdin, {folder, ids, trust_remote_code}; the last line
on stdout answers.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    request = json.load(sys.stdin)
    folder, trust = Path(request["folder"]), request["trust_remote_code"]
    model, found = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype="auto",
        trust_remote_code=trust,
        use_safetensors=True,
        output_loading_info=True,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device).eval()
    vocabulary = None
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        vocabulary = len(AutoTokenizer.from_pretrained(folder, trust_remote_code=trust))
    nats, tokens = 0.0, 0
    with torch.inference_mode():
        for row in request["ids"]:
            ids = torch.tensor([row], device=device)
            logits = model(ids).logits[0, :-1].float()
            nats += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            tokens += len(row) - 1
    answer = {
        "architecture": type(model).__name__,
        "missing": sorted(map(str, found["missing_keys"])),
        "unexpected": sorted(map(str, found["unexpected_keys"])),
        "mismatched": sorted(map(str, found["mismatched_keys"])),
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "embedding_rows": model.get_input_embeddings().weight.shape[0],
        "vocabulary": vocabulary,
        "quantized": getattr(model.config, "quantization_config", None) is not None,
        "nats_per_token": nats / tokens,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
