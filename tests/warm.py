"""What the suite's server of processes has done before it forks them, so that no test's trial does it again.

One trial is trained: what is imported late, planned once a process or compiled at first use is then there. Nothing of
it reaches a result: the trials of tests are the same to the bit without it.
"""

import contextlib
import gc
import importlib
import io
import tempfile
from pathlib import Path

import torch

from finetune.compose import compose_config
from finetune.storage import faults
from finetune.trial.run import train
from tests.forked import use_warm_server
from tests.models import draw, small_network

use_warm_server()
torch.set_num_threads(1)
for _name in ("finetune.cli", "finetune.sweep.run"):
    importlib.import_module(_name)

_faults, faults._FOLDER = faults._FOLDER, None  # those that a test armed before it needed the server are not for it
with tempfile.TemporaryDirectory() as _place, contextlib.redirect_stdout(io.StringIO()):
    _images = draw(Path(_place) / "images")
    _words = [*small_network(Path(_place) / "w.pth"), f"data.root={_images}", "data.size=32", "data.batch_size=8"]
    _words += ["trainer.epochs=1", "trainer.accelerator=cpu", f"cache.dir={_place}/cache", f"out={_place}/trial"]
    train(compose_config(_words), _words)
faults._FOLDER = _faults

gc.collect()
gc.freeze()
