"""Cross-entropy with the corpus's own next tokens: hard labels, no teacher."""

from kernels.chunked_kd.naive import Term

OVER = "logits"
NEEDS_TEACHER = False
FROM_STORE = True
OUTPUTS = ("distribution",)


def loss() -> Term:
    """CE = -log p_y, p = softmax(z), y the next token; in nats."""
    return Term("cross_entropy")
