"""Networks divided once, before the trials that use them are forked: none of these traces its own then."""

import contextlib

from finetune.config import Config
from finetune.network.backbone import backbone_shapes, divides_without_values
from finetune.network.catalog import is_public, with_input


def divide_network(config: Config) -> None:
    """Find out where the network of a trial can be cut, for this process and those forked from it.

    What is wrong with it is not said here: its trials say it. Left to them are also networks of a user's own, whose
    code need not be fit to be forked, and those that compute with values, which would start threads.

    >>> divide_network(Config())

    Args:
        config: The trial's.
    """
    if not is_public(config.model.backbone):
        return

    with contextlib.suppress(Exception):
        config = with_input(config)
        network = config.model.backbone, config.data.size
        if divides_without_values(*network):
            backbone_shapes(*network)
