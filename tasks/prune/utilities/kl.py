"""How close a sub-model's next-token distribution is to the dense model's.

It needs no right answers, and tells sub-models apart by all of the vocabulary.
"""

import torch


def measure(logits_NSV: torch.Tensor, ids_NS: torch.Tensor, dense_NSV: torch.Tensor) -> float:
    """Return the negative KL(dense || sub-model) in nats/token, over the tokens that count as loss.

    Reference: Kullback and Leibler 1951, Annals of Mathematical Statistics 22.
    """
    total = 0.0
    for logits_SV, dense_SV in zip(logits_NSV[:, :-1], dense_NSV[:, :-1], strict=True):
        log_q, log_p = logits_SV.float().log_softmax(-1), dense_SV.float().log_softmax(-1)
        total += float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    return -total / len(ids_NS)
