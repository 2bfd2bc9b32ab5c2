"""What is written down of a run: its stages, what they cost, its models, how exports ended."""

from typing import Literal

from pydantic import Field

from tasks.quality_records import GateReport, Metrics
from tasks.records import ArtifactRef, CorpusRef, ModelRef, Record


class CorpusStep(Record):
    """What one source, or one labeller, came to."""

    title: str
    num_rows: int
    """That it yielded; a labeller yields all rows again."""
    refused: dict[str, int]
    """Rows that it could not use, by reason."""
    spent: dict[str, int]
    """requests, prompt_tokens, completion_tokens."""


class PublishedCorpus(Record):
    """The rows of a corpus as an artifact in the store."""

    digest: str
    uri: str
    num_rows: int
    num_bytes: int
    outcome: Literal["published", "unchanged", "held"]


class CorpusResult(Record):
    """What a run's students learn from, and where it came from."""

    corpus: CorpusRef
    steps: list[CorpusStep]
    """Sources, then labellers, in the recipe's order."""
    published: PublishedCorpus | None = None
    """None where the recipe does not say `corpus.publish`."""


class Fanout(Record):
    """Units of work, or the ranks of a process group, that a stage handed to its workers."""

    group: str
    num_units: int
    """Computed by this run; ranks, of a process group."""
    num_stored: int = 0
    """Units beside them that an attempt before had left in the store."""
    num_workers: int
    """At work at a time, at the most; fewer than the run had where the stage allows no more."""
    worker_seconds: float
    """Summed over the workers: at work on units, without their start and what they loaded first."""
    in_step: bool = False
    """A process group: its ranks share one piece of work, and more of them finish it sooner."""


class Effort(Record):
    """What computing a stage took, measured where it was computed."""

    num_workers: int
    """That the run had; while the stage was computed all of them were held, at work or not."""
    fanouts: list[Fanout]
    """Empty where the driver did all of it."""
    devices: list[str]
    """Processors or GPUs that did the work, by their makers' names."""
    joules: float | None = None
    """Of the workers at work, or of the driver where they had none; None without a meter."""
    meters: tuple[str, ...] = ()
    """What measured the joules: NVML, RAPL."""


class Cost(Record):
    """What stages took when they were computed: time of workers, its price, and energy."""

    worker_hours: float
    """The stages' hours times the workers that the run held, those that wait included."""
    price: float | None
    """worker_hours at the recipe's `cost.worker_hour`; None where it states none."""
    currency: str
    energy_kwh: float
    energy_protocol: str
    """What was measured, and by what; what was estimated, and from what."""


class StageResult(Record):
    """How one stage of a run ended; the report's and the table's row."""

    title: str
    stage: str
    key: str
    outcome: Literal["cached", "computed"]
    seconds: float
    """Seconds spent when it was computed, by whichever run did."""
    nodes: list[str]
    peak_bytes: int | None = None
    """Most memory that one of its workers held then; None where it was not measured."""
    operations: float | None = None
    """Floating-point operations, by the arithmetic of `nightpress plan`; None where it has none."""
    operations_by_group: dict[str, float] = Field(default_factory=dict)
    """The same, by group of units where the groups' work grows apart; "" is all others."""
    effort: Effort | None = None
    """None where it was computed before efforts were measured."""
    cost: Cost | None = None
    """When it was computed, at this night's price."""


ModelKind = Literal["teacher", "prune", "distill", "comparison", "export"]


class EvaluatedModel(Record):
    """One model on the way from the teacher to the exports, and how good it is."""

    title: str
    """An export's is the export's name."""
    kind: ModelKind
    made_by: str | None
    """Title of the stage that made it; None for the teacher."""
    model: ModelRef
    metrics: Metrics


class ExportResult(Record):
    """How one export ended."""

    export: str
    gate: GateReport
    outcome: Literal["published", "unchanged", "held", "refused"]
    """`unchanged`: the channel serves it already. `held`: a person rolled back from it."""
    artifact: ArtifactRef | None
    """None where the gate refused it."""


class RunRecord(Record):
    """`run.json`: what happened in one night, whatever its end."""

    schema_version: int = 1
    recipe: str
    run_id: str
    started: str
    """UTC, ISO 8601."""
    seconds: float
    status: Literal["done", "unchanged", "refused", "deadline", "failed", "cancelled"]
    """`cancelled`: by a person or a signal, before its end."""
    store_uri: str
    channel: str
    stages: list[StageResult]
    models: list[EvaluatedModel]
    exports: list[ExportResult]
    corpus: CorpusResult | None = None
    """None where the run ended before it was built."""
    cost: Cost | None = None
    """Of the stages computed this night; a stored stage costs nothing again."""
    data: dict[str, str] = Field(default_factory=dict)
    """sha256 by use of what the recipe names beside the teacher; empty if the run ended early."""
    error: str | None = None
