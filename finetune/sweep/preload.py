"""What the server of trials imports, and finds out of their networks, before it forks them.

Without collections of garbage, which would look at a million new objects again and again (they took 0.9 of 5.3 s); and
what is there then is left out of the children's, which would copy the pages they share.
"""

import gc
import importlib
import json
import os

from finetune.sweep.children import NETWORKS

gc.disable()
train = importlib.import_module("finetune.train")
train.divide_networks(json.loads(os.environ.get(NETWORKS, "[]")))
gc.freeze()
gc.enable()
