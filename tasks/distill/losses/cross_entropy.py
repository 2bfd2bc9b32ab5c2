"""Cross-entropy with the corpus's own next tokens: hard labels, no teacher."""

import torch
from torch.nn import functional

NEEDS_TEACHER = False


def loss(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    """CE_i = -log softmax(z_i)[label_i], in nats.

    Args:
        student_logits: z, [num_tokens, vocab].
        labels: [num_tokens].

    Returns:
        [num_tokens], fp32 or wider.
    """
    wide = torch.promote_types(student_logits.dtype, torch.float32)
    return functional.cross_entropy(student_logits.to(wide), labels, reduction="none")
