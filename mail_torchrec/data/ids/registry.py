"""Registry of the id policies."""

from mail_torchrec.data.ids.buckets import BucketPolicy
from mail_torchrec.data.ids.hash import HashPolicy
from mail_torchrec.data.ids.managed import ManagedPolicy
from mail_torchrec.data.ids.policy import IdPolicy
from mail_torchrec.data.ids.settings import IdSettings
from mail_torchrec.data.ids.vocabulary import VocabularyPolicy

ID_POLICIES: dict[str, type[IdPolicy]] = {
    VocabularyPolicy.name: VocabularyPolicy,
    ManagedPolicy.name: ManagedPolicy,
    HashPolicy.name: HashPolicy,
    BucketPolicy.name: BucketPolicy,
}
"""Policies by their name in the configuration."""


def id_policy(table: str, settings: IdSettings) -> IdPolicy:
    """Returns the id policy of a table.

    Args:
        table: its name.
        settings: of the table; ``ids`` names the policy.
    """
    return ID_POLICIES[settings.ids](table, settings)


def known_policy(name: str) -> str:
    """Returns the name of a policy unchanged.

    Raises:
        ValueError: no policy has this name.
    """
    if name not in ID_POLICIES:
        raise ValueError(f"should be one of {', '.join(ID_POLICIES)}, received '{name}'")
    return name
