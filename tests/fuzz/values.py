"""Values that no reader expects, and how they get into JSON."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from random import Random
from typing import Any

LONG = 5000  # characters; a message must not repeat them
_DEEP = json.loads("[" * 60 + "]" * 60)
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 1.5, 10**6, 10**9, 10**12, 2**63, 10**30, 10**400, -(10**18)),
    *(1e30, -1e30, 1e-300, float("inf"), float("-inf"), float("nan")),
    *(
        "",
        "x",
        "1",
        "0001",
        "cam1",
        "rgb",
        "fp16",
        "epsilon",
        "\x00",
        "a\nb",
        "\ud800",
        "小明",
        "..",
        "../../x",
        "/etc",
    ),
    *("x" * LONG, "9" * LONG, "con", "a/b", "<x>", "{token}", "{", "%s", "-1", "1e400", "💥"),
    *([], {}, [1], [None], {"a": 1}, [[[]]], ["x"] * 200, [0] * 3, [10**6], {"x" * LONG: 1}, _DEEP),
)


def json_text(value: Any) -> bytes:
    """JSON as any program may write it: whole numbers of any size, NaN, infinity and halves of characters too."""
    return re.sub(rf'"(9{{{LONG}}})"', r"\1", json.dumps(value)).encode()


def mutate_value(value: Any, random: Random) -> Any:
    """A copy with one change at a random place."""
    value = copy.deepcopy(value)
    found = list(places(value))
    holder, key = random.choice(found) if found else (None, 0)
    if holder is None or random.random() < 0.03:
        return copy.deepcopy(random.choice(VALUES))
    match random.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[random.choice(("x", "y", "__proto__", "x" * LONG))] = copy.deepcopy(random.choice(VALUES))
        case 1 if isinstance(holder, list):
            holder.append(copy.deepcopy(holder[key]))
        case 2 if isinstance(holder[key], int | float):
            holder[key] = holder[key] * random.choice((-1, 10, 1000, 0.5))
        case 3 if isinstance(holder, dict):
            holder[random.choice(list(holder))] = holder[key]
        case 4 if isinstance(holder[key], str) and holder[key]:
            at = random.randrange(len(holder[key]))
            holder[key] = holder[key][:at] + random.choice(("x", "", "/", "\x00", ".")) + holder[key][at + 1 :]
        case _:
            holder[key] = copy.deepcopy(random.choice(VALUES))
    return value


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (dictionary or list, key) in a value; of long lists the first ones."""
    keys: Any = value if isinstance(value, dict) else range(min(len(value), 20)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])
