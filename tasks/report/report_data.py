"""All that a run's report says, gathered before a line of it is written."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.evaluate.sampled import Samples
from tasks.models.components import Component
from tasks.quality_records import Difference, GateReport, Latency, TaskScore
from tasks.records import ArtifactRef, Record
from tasks.run_records import CorpusResult, Cost, StageResult


class ModelRow(Record):
    """A model of the run, measured on the held-out text where it was."""

    title: str
    """An export's is the export's name."""
    role: Literal["teacher", "step", "comparison", "export"]
    num_parameters: int
    num_bytes: int
    """The teacher's and the steps' at 4 bytes per parameter, an export's on disk."""
    nats_per_token: float | None = None
    perplexity: float | None = None
    tokens_per_s: float | None = None
    tasks: dict[str, TaskScore] = Field(default_factory=dict)
    task_average: float | None = None
    latency: Latency | None = None


class ExportOutcome(Record):
    name: str
    outcome: Literal["published", "unchanged", "held", "refused", "failed"]
    description: str
    """Method, format and options, in a sentence."""
    gate: GateReport | None = None
    artifact: ArtifactRef | None = None
    pull_command: str | None = None


class Comparison(Record):
    """Held-out nats/token of one model less those of another."""

    title: str
    against: str
    difference: Difference


class PruningRound(Record):
    """What one round of a prune step left of the incoming model."""

    kept: dict[str, int]
    """Units by kind, in each layer or in the whole network."""
    chosen: str
    """Whose choice it was."""
    nats_per_token: float
    """On the calibration text, repaired."""


class PruningEvidence(Record):
    """What the sweep of one prune step learned, and how well it predicts."""

    title: str
    importance: dict[str, list[list[float]]]
    """By kind of unit: [layer][unit]."""
    kept: dict[str, list[int]]
    """By kind of unit: units kept in each layer."""
    kept_units: dict[str, list[list[int]]] = Field(default_factory=dict)
    """By kind of unit: which, in each layer."""
    removed: float | None = None
    """Fraction of the parameters that went."""
    dense_nats_per_token: float | None = None
    """On the calibration text, as the candidates'."""
    candidates: dict[str, float] = Field(default_factory=dict)
    """Nats/token of each method's cut."""
    chosen: str = ""
    """The candidate that became the step's model."""
    rounds: tuple[PruningRound, ...] = ()
    """Where there was more than one."""
    num_scored: int = 0
    """Sub-models whose utility was asked for."""
    num_left_out: int = 0
    """Of these, because their utility was no finite number."""
    predicted: tuple[float, ...] = ()
    """Utility of sub-models that the regression has not seen."""
    measured: tuple[float, ...] = ()
    kendall_tau: float | None = None
    r_squared: float | None = None


class LossCurve(Record):
    title: str
    tokens: list[int]
    """Trained on so far, at each point."""
    loss: list[float]


class ModelLook(Record):
    """What a look into a model found."""

    title: str
    components: list[Component] | None
    """None where its weights are packed codes."""
    samples: Samples | None
    """None where it is no causal language model."""


class EarlierExport(Record):
    """An export of an earlier night that passed its gate, scored on the same text."""

    title: str
    started: str
    """As `ReportData.started`."""
    num_bytes: int
    nats_per_token: float


class ExportChange(Record):
    """An export beside the one of the same name in an earlier night."""

    name: str
    is_same: bool
    """One digest: the very same model."""
    bytes_before: int
    num_bytes: int
    nats: Difference | None = None
    """Of this night's less the earlier's; None where they were not scored on the same documents, or
    the evidence is gone."""
    speed: float | None = None
    """Prefill tokens/s over the earlier's; None where they were measured otherwise."""


class ValueChange(Record):
    """A key of the recipe, or a digest, that differs."""

    name: str
    before: str
    now: str


class Changes(Record):
    """A night beside the one before it that came to its end."""

    started: str
    """When that one did, as `ReportData.started`."""
    num_ended_early: int
    """Nights between the two that failed or were stopped."""
    exports: list[ExportChange]
    recipe: list[ValueChange]
    data: list[ValueChange]
    """What the recipe names: the teacher and texts, by digest."""
    other_stages: list[str]
    """Titles of stages that are other ones than in that night."""
    num_stages: int


class ReportData(Record):
    """All that the page says; most of it may be empty where a run ended early."""

    recipe_name: str
    run_id: str
    started: str
    """As it shall read: 2026-11-20 02:00 UTC."""
    seconds: float
    """Of wall time."""
    ending: Literal["deadline", "cancelled", "failed"] | None = None
    """What ended the run before its time."""
    error: str | None = None
    """The same in words."""
    unit: Literal["nats/token", "nats/row"] = "nats/token"
    """Of all held-out losses."""
    models: tuple[ModelRow, ...] = ()
    """In the order in which they were made, the teacher first."""
    stages: tuple[StageResult, ...] = ()
    exports: tuple[ExportOutcome, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    pruning: tuple[PruningEvidence, ...] = ()
    training: tuple[LossCurve, ...] = ()
    corpus: CorpusResult | None = None
    looks: tuple[ModelLook, ...] = ()
    """Into the teacher, the last student and the exports."""
    earlier: tuple[EarlierExport, ...] = ()
    """Of all nights, each model once."""
    changes: Changes | None = None
    """None where no night before this one came to its end."""
    cost: Cost | None = None
    """Of what was computed."""
    worker_hour: float | None = None
    """Price of one worker for an hour, in the cost's currency."""
    protocol: dict[str, str]
    """How the numbers were measured, by kind of number."""
    versions: dict[str, str]
    recipe_yaml: str
