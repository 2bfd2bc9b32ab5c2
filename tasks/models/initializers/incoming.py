"""The student starts from the weights of the step before: pruned, or distilled already."""

from tasks.models.checkpoint import load_model
from tasks.models.initializer_context import InitializerContext, Student

NEEDS_DECODER = False


def initialize(context: InitializerContext) -> Student:
    """Load the incoming model, in fp32."""
    trusted = context.trust_remote_code
    return Student(load_model(context.folder, trust_remote_code=trusted, spread=False), {})
