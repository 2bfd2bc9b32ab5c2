"""How much is measured: all of it, or just enough to see that the benchmark runs."""

from __future__ import annotations

from typing import NamedTuple


class Scale(NamedTuple):
    name: str
    loss_tokens: int
    loss_vocab: int
    loss_width: int
    """Of both hidden states."""
    loss_repeats: int
    recovered_tokens: int
    """That a pruned student learns from."""
    throughput_steps: int
    throughput_layers: int
    """Of a random teacher."""
    recovered_windows: int
    """Of calibration text, for pruning."""
    distilbert_teacher_rows: int
    """That the encoder is fine-tuned on, once each."""
    distilbert_rows: int
    """That a student learns from."""
    distilbert_passes: int
    """Over these rows."""
    distilbert_pilot_rows: int
    """In their place where a learning rate is tried."""
    distilbert_held_out_rows: int
    """That the learning rate is chosen by."""
    distilbert_dev_rows: int | None
    """None: all."""


FULL = Scale(
    name="full",
    loss_tokens=2048,
    loss_vocab=2**17,
    loss_width=1024,
    loss_repeats=3,
    recovered_tokens=1_000_000,
    throughput_steps=20,
    throughput_layers=24,
    recovered_windows=280,
    distilbert_teacher_rows=24_000,
    distilbert_rows=20_000,
    distilbert_passes=1,
    distilbert_pilot_rows=5_000,
    distilbert_held_out_rows=2_000,
    distilbert_dev_rows=None,
)

SMOKE = Scale(
    name="smoke",
    loss_tokens=256,
    loss_vocab=2**13,
    loss_width=64,
    loss_repeats=1,
    recovered_tokens=8_192,
    throughput_steps=2,
    throughput_layers=2,
    recovered_windows=8,
    distilbert_teacher_rows=1_000,
    distilbert_rows=320,
    distilbert_passes=1,
    distilbert_pilot_rows=160,
    distilbert_held_out_rows=100,
    distilbert_dev_rows=100,
)
