"""The adapter and the encoder that a study or the demo starts from: neither may know what is to be found out."""

from __future__ import annotations

from dive_fast.encoder.folder import Encoder, check_onto, load_encoder
from dive_fast.experiments.config import StudyConfig
from dive_fast.models import Adapter, load_adapter
from dive_fast.types import InputError
from dive_fast.world.config import WorldSpec

SEEN = "infrared_identities"


def open_networks(config: StudyConfig, strangers: bool = False) -> tuple[Adapter | None, Encoder | None]:
    """Returns the given adapter, and the encoder of the identities that it lacks; None for what is not used.

    Raises `InputError` as `check_adapter` and `used_encoder`.
    """
    if config.adapter is None:
        return None, None
    adapter = load_adapter(config.adapter)
    check_adapter(adapter, config.adapter, config.world, strangers)
    return adapter, used_encoder(config, adapter)


def check_adapter(adapter: Adapter, name: str, spec: WorldSpec, strangers: bool = False) -> None:
    """Raises `InputError` unless the adapter records whose infrared photos it has seen, all of paired identities.

    With `strangers`, of identities that are not in the world too.
    """
    remedy = "give --adapter none, which trains one on the paired people of the study"
    seen = adapter.metadata.get(SEEN)
    if not isinstance(seen, list):
        raise InputError(f"adapter {name} does not record whose infrared photos it has learned from; {remedy}")
    groups = {"external": spec.external_pids, "test": spec.test_pids}
    group_of = {f"{pid:04d}": group for group, pids in groups.items() for pid in pids}
    others = sorted(set(map(str, seen)) - {f"{pid:04d}" for pid in spec.paired_pids})
    if strangers:
        others = [pid for pid in others if pid in group_of]
    if others:
        first = ", ".join(f"{pid} ({group_of.get(pid, 'not in this world')})" for pid in others[:5])
        raise InputError(
            f"adapter {name} has learned from infrared photos of {len(others)} people that are not the paired ones of the"
            f" study, first {first}; {remedy}"
        )


def used_encoder(config: StudyConfig, adapter: Adapter) -> Encoder | None:
    """Returns the encoder of a study, if its adapter lacks external identities and it encodes them.

    Raises `InputError` for one of another base, and for one that was trained on the study's external or test identities.
    """
    external, test = ([f"{pid:04d}" for pid in pids] for pids in (config.world.external_pids, config.world.test_pids))
    if config.encoder is None or {identity.pid for identity in adapter.identities}.issuperset(external):
        return None
    encoder = load_encoder(config.encoder)
    check_onto(encoder, adapter, str(config.adapter))
    seen = encoder.known([*external, *test])
    if seen:
        raise InputError(
            f"encoder {config.encoder} was trained on {len(seen):,} people of this study, first {seen[0]}; give one that was"
            " trained on others, or --encoder none, which learns them"
        )
    return encoder
