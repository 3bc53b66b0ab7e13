"""One line for each input that must be refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from dive_fast.types import InputError


def refused(
    message: str | Sequence[str],
    call: Callable[..., object],
    /,
    *arguments: object,
    error: type[Exception] = InputError,
    **options: object,
) -> None:
    """`call` with these arguments raises `error`, whose message matches `message`, or holds every text of several."""
    with pytest.raises(error, match=message if isinstance(message, str) else None) as caught:
        call(*arguments, **options)
    for part in () if isinstance(message, str) else message:
        assert part in str(caught.value)
