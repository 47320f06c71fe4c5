"""A local adapter belongs to one release: it says which, and is not used on another.

An adapter is a change of particular weights. On weights that an update has moved it still runs and still
gives text, and nothing tells that it is no longer what was trained. So its settings name the release, by the
hash of its manifest, in PEFT's own field ``revision``; who loads one on a release asks :func:`check_bound`.

    >>> write_adapter(directory, bind(extract(model, settings), manifest))         # doctest: +SKIP
    >>> check_bound(read_adapter(directory), Manifest.read(release))               # doctest: +SKIP
"""

from __future__ import annotations

from autoglm.errors import ConfigError
from autoglm.releases import Manifest
from autoglm.training.adapter import Adapter


def bind(adapter: Adapter, base: Manifest) -> Adapter:
    """Return the adapter with the release that it was trained on in its settings."""
    names = {"base_model_name_or_path": base.folder, "revision": base.sha256}
    return Adapter(adapter.factors, {**adapter.config, **names})


def is_bound_to(adapter: Adapter, base: Manifest) -> bool:
    """Tell whether the adapter was trained on this very release."""
    return adapter.config.get("revision") == base.sha256


def check_bound(adapter: Adapter, base: Manifest) -> None:
    """Refuse an adapter on a release that it was not trained on.

    Raises:
        ConfigError: it was trained on another release, or does not say on which.
    """
    if not is_bound_to(adapter, base):
        trained = adapter.config.get("base_model_name_or_path") or "a release that it does not name"
        raise ConfigError(
            f"the adapter was trained on {str(trained)[:100]}, not on {base.folder}: train it again on this "
            "release, from its own data and starting from its present factors"
        )
