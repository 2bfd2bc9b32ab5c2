"""What stages hand to each other: small frozen records, never tensors.

A ref is a URI, the sha256 digest of the content, and a few facts. The digest, never the URI,
enters a stage's key, so a moved store or a renamed folder changes nothing.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """Base of all records: immutable, strict about its fields, JSON both ways."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class TextRef(Record):
    """A JSONL file of rows with `text` or `messages`."""

    uri: str
    digest: str
    num_bytes: int


class DataRef(Record):
    """A file or folder of another kind than rows of text."""

    uri: str
    digest: str


class RowsRef(Record):
    """Rows of text as Parquet shards, `rows/00000.parquet` and so on below the URI."""

    uri: str
    digest: str
    num_rows: list[int]
    """Of each shard."""
    refused: dict[str, int] = {}
    """Rows that a source made or met and could not use, by reason; of labelled rows, all so far."""
    spent: dict[str, int] = {}
    """What generating them took so far: requests, prompt_tokens, completion_tokens."""


class CorpusRef(Record):
    """Packed token blocks: safetensors, `ids` and `loss_mask` [num_blocks, block_tokens].

    For a masked language model they are `ids`, with some of them hidden, `attention_mask`, and
    `labels`. For a classifier, a regression or a question-answering model each row is a block,
    padded to `block_tokens`: `ids`, `attention_mask`, `labels` and, where the model takes them,
    `token_type_ids`. Beside the blocks lie the rows that they hold, as `RowsRef` says.
    """

    uri: str
    digest: str
    num_blocks: int
    block_tokens: int
    num_documents: int
    dropped: dict[str, int]
    """Rows that a filter dropped, by reason."""
    sources: dict[str, int]
    """Rows kept, by source."""
    outputs: dict[str, int] = {}
    """Rows kept of a classification, by label."""
    licences: dict[str, int] = {}
    """Rows kept, by the licence that they are under; `unknown` where none is stated."""
    generators: dict[str, int] = {}
    """Rows kept, by the model that wrote them."""
    refused: dict[str, int] = {}
    """Rows that sources could not use, by reason."""
    spent: dict[str, int] = {}
    """What generating and labelling took, over all sources and labels."""


class ModelRef(Record):
    """A folder that `transformers` loads: config, safetensors, tokenizer."""

    uri: str
    digest: str
    architecture: str
    num_parameters: int
    """Tied parameters counted once."""
    num_bytes: int
    """Sum over the folder's files."""
    facts: dict[str, str | int | float] = {}
    """What the step that made this model wants said of it (shape, sparsity got, tau, ...)."""


class TeacherLogitsRef(Record):
    """A folder of shards with what is kept of a teacher's distributions over a corpus."""

    uri: str
    digest: str
    vocab_size: int
    """Tokens that the distributions are over: the tokenizer's, without padding."""
    num_shards: int
    num_bytes: int
    bytes_per_token: float
    """Of the corpus, learned or not."""


class TaskScore(Record):
    """What a model scored on one evaluation task."""

    score: float
    """Mean of `scores`; larger is better."""
    scores: dict[str, float]
    """By metric."""
    num_items: int
    num_cut: int = 0
    """Items of which the model saw a part only, because they are longer than the window."""
    protocol: str
    items_uri: str
    """JSON: `metrics`, a digest of the items, and of each item what is right and what was said."""


class LatencyRow(Record):
    """How long one worker takes at one batch size."""

    batch_size: int
    prefill_ms: float
    """From the prompt to the first token."""
    decode_ms: float | None
    """A step, which writes one token of each sequence; None where the model writes none."""
    peak_bytes: int
    """Memory, the weights included."""


class Latency(Record):
    rows: list[LatencyRow]
    """From the smallest batch to the largest."""
    protocol: str


class Metrics(Record):
    """The held-out quality and speed of one model, with the protocol that makes them comparable."""

    nats_per_token: float
    """Of a classifier, a regression or an answerer of questions nats/row, as `protocol` says."""
    perplexity: float
    num_tokens: int
    """Tokens scored."""
    num_documents: int
    tokens_per_s: float
    """Prefill speed, as `speed_protocol` says."""
    protocol: str
    speed_protocol: str
    documents_uri: str
    """JSON: per document the summed nats and the scored tokens, in the text's order."""
    digest: str
    tasks: dict[str, TaskScore] = {}
    """By the name of the recipe's task."""
    task_average: float | None = None
    """Mean over tasks of their scores, GLUE's macro average; None without tasks."""
    latency: Latency | None = None
    """None where the recipe states no batch sizes."""


class Difference(Record):
    """Nats/token of one model less those of another, on the same documents; or how far its score
    is below the other's, on the same items. Larger is worse."""

    figure: float
    """Sum of the documents' differences over the sum of their tokens."""
    lower: float
    upper: float
    """Ends of the two one-sided 95% intervals."""
    num_documents: int
    """Or items."""


class GateCheck(Record):
    """One limit of the gate and the evidence against it."""

    name: str
    """The limit's place in the recipe, such as `teacher.max_nats_increase`."""
    against: str
    """Digest of the teacher or champion that the candidate is held against."""
    limit: float
    figure: float
    difference: Difference | None = None
    """Where the check is statistical: the figure with its interval, whose upper end decides."""
    passed: bool
    reason: str | None = None
    """Why the check was not passed."""
    protocol: str


class GateReport(Record):
    passed: bool
    checks: list[GateCheck]
    notes: list[str]
    """What was not checked, and why."""


class ArtifactRef(Record):
    """A published, immutable export."""

    recipe: str
    export: str
    digest: str
    uri: str
    num_parameters: int
    num_bytes: int


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
    """Summed over the workers: at work on units, without their start and what they loaded."""
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
    meters: list[str] = []
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
    data: dict[str, str] = {}
    """sha256 by use of what the recipe names beside the teacher; empty where the run ended early."""
    error: str | None = None
