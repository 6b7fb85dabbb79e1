import base64
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.compose import compose_config
from finetune.records.correct import pack, unpack
from finetune.records.layout import CORRECT, RECORD
from finetune.records.result import Result
from finetune.storage.durable import sealed, unsealed
from finetune.trial.run import train


@pytest.mark.parametrize("images", [1, 7, 8, 9, 500])
def test_what_is_packed_is_unpacked(images: int) -> None:
    epochs = np.random.default_rng(images).random((3, images)) < 0.6
    texts = [pack(epoch) for epoch in epochs]
    assert {len(base64.b64decode(text)) for text in texts} == {-(-images // 8)}
    assert np.array_equal(unpack(texts, images), epochs)


def test_bits_of_another_number_of_images_are_refused() -> None:
    with pytest.raises(ValueError, match="1 bytes are not the bits of 9 images"):
        unpack([pack(np.ones(8, np.bool_))], 9)
    with pytest.raises(ValueError, match="no base64"):
        unpack(["(-:"], 8)


def test_a_trial_records_which_images_each_epoch_got_right(small: list[str], tmp_path: Path) -> None:
    words = [*small, "trainer.epochs=3", f"out={tmp_path / 'r'}"]
    record = train(compose_config(words), words)
    correct = unpack(record.correct, record.val_images)
    assert correct.shape == (3, 12)
    assert correct.mean(1).tolist() == pytest.approx([epoch["val/acc"] for epoch in record.history])
    assert Result.load(tmp_path / "r") == record
    refit = train(compose_config([*words[:-1], "trainer.refit=true", f"out={tmp_path / 'f'}"]), words)
    assert refit.correct == []


def test_what_is_long_lies_beside_the_record(small: list[str], tmp_path: Path) -> None:
    words = [*small, "trainer.epochs=1", f"out={tmp_path / 'r'}"]
    record = train(compose_config(words), words)
    bits = np.random.default_rng(0).random((100, 10_000)) < 0.5
    many = replace(record, correct=[pack(epoch) for epoch in bits], val_images=10_000)
    many.save(tmp_path / "many")
    assert (tmp_path / "many" / RECORD).stat().st_size < 10_000
    assert Result.load(tmp_path / "many") == many
    (tmp_path / "many" / CORRECT).write_text("{}")  # the record is whole all the same
    assert Result.load(tmp_path / "many") == replace(many, correct=[])


def test_records_of_older_versions_are_read(small: list[str], tmp_path: Path) -> None:
    words = [*small, "trainer.epochs=1", f"out={tmp_path / 'r'}"]
    record = train(compose_config(words), words)
    values = unsealed((tmp_path / "r" / RECORD).read_bytes())
    del values["correct"], values["val_images"]
    (tmp_path / "r" / RECORD).write_bytes(sealed(values))
    assert Result.load(tmp_path / "r") == replace(record, correct=[], val_images=0)
