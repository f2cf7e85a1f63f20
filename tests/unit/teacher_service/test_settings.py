"""What the settings accept, what they refuse, and what they say about it."""

from __future__ import annotations

import pytest

from stillhouse.errors import ConfigurationError
from teacher_service.settings import NOT_FLAGS, TeacherSettings, load_settings


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in list(os.environ):
        if name.upper().startswith("TEACHER_"):
            monkeypatch.delenv(name)


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_MODEL", "from-environment")
    monkeypatch.setenv("TEACHER_HTTP_PORT", "1234")
    settings = load_settings({"model": "from-flag", "http_port": None})
    assert (settings.model, settings.http_port) == ("from-flag", 1234)


def test_an_unknown_variable_is_refused_with_the_nearest_known() -> None:
    with pytest.raises(ConfigurationError, match=r"TEACHER_MODELL is no setting .* did you mean TEACHER_MODEL\?"):
        load_settings({"model": "smollm2"}, environment={"TEACHER_MODELL": "x"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TEACHER_SERVICE_SERVICE_HOST", "10.0.0.1"),
        ("TEACHER_SERVICE_SERVICE_PORT_GRPC", "8001"),
        ("TEACHER_SERVICE_PORT", "tcp://10.0.0.1:8000"),
        ("TEACHER_SERVICE_PORT_8000_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_what_kubernetes_puts_into_every_container_is_no_setting(name: str, value: str) -> None:
    assert load_settings({"model": "smollm2"}, environment={name: value}).model == "smollm2"


def test_a_wrong_value_is_named_with_its_flag_and_variable() -> None:
    with pytest.raises(ConfigurationError, match=r"http_port \(--http-port, TEACHER_HTTP_PORT\): .* got '99999'"):
        load_settings({"model": "smollm2", "http_port": "99999"})


def test_the_transformers_backend_needs_a_model() -> None:
    with pytest.raises(ConfigurationError, match="model must be set, for instance --model smollm2"):
        load_settings({})


def test_a_queue_that_could_not_hold_the_largest_request_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"max_queue_tokens \(5\) must be at least max_request_tokens"):
        load_settings({"backend": "fixture", "max_queue_tokens": 5})


def test_secrets_show_neither_in_settings_nor_in_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "a-very-secret-token"
    monkeypatch.setenv("TEACHER_TOKENS", secret)
    settings = load_settings({"backend": "fixture"})
    assert settings.tokens is not None
    assert settings.tokens.get_secret_value() == secret
    assert secret not in repr(settings)


def test_the_embedded_cache_is_given_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings({"backend": "fixture"}).cache_wait_seconds == 0.5
    assert load_settings({"backend": "fixture", "cache_timeout_seconds": "0.1"}).cache_wait_seconds == 0.1
    monkeypatch.setenv("TEACHER_REDIS_URL", "redis://somewhere:6379")
    assert load_settings({"backend": "fixture"}).cache_wait_seconds == 0.02


def test_secrets_are_no_flags() -> None:
    secret = {name for name, field in TeacherSettings.model_fields.items() if "Secret" in str(field.annotation)}
    assert secret == NOT_FLAGS


def test_every_setting_explains_itself_with_an_example() -> None:
    for name, field in TeacherSettings.model_fields.items():
        assert field.description, name
        assert "Example:" in field.description, name
