"""One line for each input that must be refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dive_fast.types import DiveError, InputError


def refused(
    message: str,
    call: Callable[..., object],
    /,
    *arguments: object,
    error: type[DiveError] = InputError,
    **options: object,
) -> None:
    """`call` with these arguments raises `error`, whose message matches `message`."""
    with pytest.raises(error, match=message):
        call(*arguments, **options)
