"""Placeholders for two modules that the endpoint's tests import and its wheel does not contain.

Its ``tests/integration/conftest.py`` imports ``ResultQueueSubscriber`` and ``TaskQueuePublisher``
for fixtures that the tests run here do not ask for. These classes do nothing but satisfy that
import: whoever makes one of them gets an error, so that no test can pass by them. A pytest plugin
(``-p unshipped_helpers``), since it has to be there before that file is imported.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import NoReturn

_PACKAGE = "tests.integration.test_rabbit_mq"


def _placeholder(name: str) -> type:
    def refuse(self: object, *args: object, **options: object) -> NoReturn:
        raise NotImplementedError(
            f"{name} is not part of the endpoint's wheel; this is only a placeholder for it"
        )

    return type(name, (), {"__init__": refuse})


for _module, _name in (
    ("result_queue_subscriber", "ResultQueueSubscriber"),
    ("task_queue_publisher", "TaskQueuePublisher"),
):
    _placeholders = ModuleType(f"{_PACKAGE}.{_module}")
    setattr(_placeholders, _name, _placeholder(_name))
    sys.modules[_placeholders.__name__] = _placeholders
sys.modules[_PACKAGE] = ModuleType(_PACKAGE)
