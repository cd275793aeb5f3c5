"""A loader whose argument compares by identity."""

from __future__ import annotations

from gc_warm import warm


class Settings:
    def __init__(self, path: str) -> None:
        self.path = path


@warm
def model(settings: Settings) -> list[str]:
    return [settings.path]


def predict(settings: Settings) -> str:
    from identity_keys import model

    return model(settings)[0]
