import pytest

from infra.redaction import redact


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted/secret+key")
    monkeypatch.setenv("NIGHTPRESS_ENDPOINT_KEY", "planted/secret+key-and-more")
    monkeypatch.setenv("HF_TOKEN", "word")
    monkeypatch.setenv("TEAM_HOOK", "https://chat.example/services/planted")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/run/secrets/ray_token")


def test_secrets_are_named_and_not_shown() -> None:
    said = redact("refused: planted/secret+key-and-more, then planted/secret+key.")
    assert said == "refused: [NIGHTPRESS_ENDPOINT_KEY], then [AWS_SECRET_ACCESS_KEY]."


def test_places_of_secrets_and_short_words_stay() -> None:
    text = "no word in /run/secrets/ray_token"
    assert redact(text) == text


def test_a_recipes_webhook_is_a_secret_by_its_name() -> None:
    text = "no answer from https://chat.example/services/planted"
    assert redact(text) == text
    assert redact(text, ["TEAM_HOOK"]) == "no answer from [TEAM_HOOK]"


def test_passwords_of_urls_go() -> None:
    url = "postgresql+asyncpg://prefect:planted@db:5432/prefect"
    assert redact(f"no answer from {url}") == "no answer from " + url.replace(
        "prefect:planted@", "[user]@"
    )
    for plain in ("http://host:8000/v1", "s3://bucket/a:b@c", "hf://datasets/a/b@0123/x", "a:b@c"):
        assert redact(plain) == plain


def test_what_a_terminal_would_obey_is_shown() -> None:
    assert redact("\x1b[2J\x00\x9b1m\n\tplain ü") == "\\x1b[2J\\x00\\x9b1m\n\tplain ü"
