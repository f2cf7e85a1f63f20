"""Opens the backend that the settings name. Everything heavy is imported here, when it is needed."""

from __future__ import annotations

from teacher_service.backends.base import TeacherBackend
from teacher_service.settings import TeacherSettings


def open_backend(settings: TeacherSettings) -> TeacherBackend:
    """Load what the settings name; minutes for a large model.

    Raises:
        ConfigurationError: it cannot be run here; the message says what to do.
    """
    if settings.backend == "fixture":
        from teacher_service.backends.fixture import FixtureBackend

        return FixtureBackend(settings.fixture_vocabulary_size)
    import torch

    from stillhouse.models import pick_device, resolve_model, silence_transformers
    from teacher_service.backends.transformers import TransformersBackend

    silence_transformers()
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)
    device = pick_device(settings.device)
    model = settings.required_model()
    return TransformersBackend.load(
        resolve_model(model, revision=settings.revision),
        name=model,
        device=device,
        dtype=settings.dtype,
        attn_implementation=settings.attn_implementation,
        trust_remote_code=settings.trust_remote_code,
    )
