"""What stages hand to each other: small frozen records, never tensors.

A ref is a URI, the sha256 digest of the content, and a few facts. The digest, never the URI,
enters a stage's key, so a moved store or a renamed folder changes nothing.
"""

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


class ArtifactRef(Record):
    """A published, immutable export."""

    recipe: str
    export: str
    digest: str
    uri: str
    num_parameters: int
    num_bytes: int
