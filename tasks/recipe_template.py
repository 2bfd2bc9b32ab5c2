"""The commented recipe that `nightpress init` writes."""

TEMPLATE = """\
# A nightpress recipe: corpus -> steps -> exports -> gate -> publish.
# `nightpress schema recipe` prints every key; relative paths are relative to this file.
name: my-model            # lower case, digits, dots, dashes
seed: 0

# A folder, a hub id (resolved to a commit) or an s3:// URI. Safetensors only.
teacher: {model: ./teacher}

# JSONL files, one row a line: {"text": "..."} or {"messages": [{"role": ..., "content": ...}]}.
calibration: {text: calibration.jsonl, num_windows: 128, window: 256}
evaluation: {text: heldout.jsonl, window: 256}   # never train on this one

corpus:
  sources:
    - {name: teacher_samples, options: {num_tokens: 1_000_000}}  # text the teacher writes
    - {name: local_text, options: {path: train.jsonl}}           # text of your own
  filters: [{name: exact_dedup}]
  block_tokens: 256

steps:
  # sparsity is the fraction removed; one number, or one per kind of unit. In its place,
  # budget: {num_parameters: 40_000_000} (or bytes, or latency_ms) is solved for the best shape.
  - prune: {sparsity: {ffn: 0.5, kv_groups: 0.5}}
  - distill:
      losses:
        - {name: forward_kl, weight: 0.8, options: {temperature: 2.0}}
        - {name: cross_entropy, weight: 0.2}
      num_tokens: 10_000_000
      learning_rate: 1.0e-3

exports:   # every group_size must divide the pruned widths; the prune step sees to it
  - {name: int4, method: gptq, format: compressed-tensors, options: {bits: 4, group_size: 64}}
  - {name: full, method: none, format: safetensors, dtype: bfloat16}

gate:      # an export that misses a limit is not published
  teacher: {max_nats_increase: 0.30, max_bytes_ratio: 0.30}
  champion: {max_nats_increase: 0.01}

publish: {channel: nightly}             # store: s3://bucket/prefix or $NIGHTPRESS_STORE
cluster: {ray: local, workers: 2, gpus_per_worker: 0}
# notify: [{webhook_env: TEAM_HOOK, on: [failed, refused, deadline, published]}] # a URL
"""
