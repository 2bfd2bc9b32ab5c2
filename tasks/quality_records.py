"""How good and how fast a model was measured to be, and what the gate made of it."""

from pydantic import Field

from tasks.records import Record


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
    tasks: dict[str, TaskScore] = Field(default_factory=dict)
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
