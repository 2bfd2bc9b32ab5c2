"""The student starts from random weights, in the shape of the incoming model."""

from tasks.models.initializer_context import InitializerContext, Student
from tasks.models.model_kind import auto_class
from tasks.models.spreading import pick_device

NEEDS_DECODER = False


def initialize(context: InitializerContext) -> Student:
    """Draw new weights for the incoming model's configuration, in fp32, as the seed has it."""
    import torch
    from transformers import AutoConfig

    trusted = context.trust_remote_code
    config = AutoConfig.from_pretrained(context.folder, trust_remote_code=trusted)
    torch.manual_seed(context.seed)
    model = auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=trusted)
    return Student(model.to(pick_device()), {})
