import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import finetune.train
from finetune.compose import compose_config, override_values
from finetune.config import flat, trial_key
from finetune.data.batches import StoredImages
from finetune.errors import Refused
from finetune.network.backbone import build_backbone
from finetune.network.checkpoint import load_checkpoint
from finetune.records.layout import CHECKPOINT
from finetune.records.result import Result, outcome
from finetune.sharing.facts import Facts
from finetune.sharing.images import open_images
from finetune.train import _with_files
from finetune.trial.run import train
from tests.faults.invariants import PATIENCE, wait_for
from tests.forked import Command


def run(overrides: list[str], out: Path) -> Result:
    return train(compose_config([*overrides, f"out={out}"]), overrides)


def main(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["finetune.train", *words])
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return finetune.train.main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_the_record_says_what_was_found_and_what_it_cost(fast: list[str], tmp_path: Path) -> None:
    overrides = [*fast, "model.freeze_depth=14", "model.head.hidden=[16]", "seed=3"]
    result = run(overrides, tmp_path / "r")
    assert Result.load(tmp_path / "r") == result
    assert (result.status, result.freeze_depth, result.freeze_unit, result.seed) == ("complete", 14, "block", 3)
    assert result.key == trial_key(compose_config(overrides))
    assert result.params["model.head.hidden"] == [16]
    assert "out" not in result.params
    assert [epoch["epoch"] for epoch in result.history] == [0, 1]
    assert result.val_acc_best == max(epoch["val/acc"] for epoch in result.history)
    assert result.last == result.history[-1]
    assert result.classes == ["class0", "class1", "class2"]
    assert set(result.digests) == {"weights", "frozen", "dataset", "split", "augmentation"}
    assert result.config == flat(compose_config([*overrides, f"out={tmp_path / 'r'}"]))
    assert result.seconds["total"] >= result.seconds["train"] > 0
    layer4 = build_backbone("narrow_resnet50").model.layer4
    trained = sum(p.numel() for p in layer4.parameters()) + (512 + 1) * 16 + (16 + 1) * 3
    assert result.trained_parameters == trained


@pytest.mark.slow
def test_the_same_seed_gives_the_same_record_and_another_seed_another(fast: list[str], tmp_path: Path) -> None:
    overrides = [*fast, "model.freeze_depth=9", "augment=strong", "model.head.dropout=0.2"]
    first, again = (outcome(run(overrides, tmp_path / name)) for name in "ab")
    assert first == again
    assert first["history"] != outcome(run([*overrides, "seed=1"], tmp_path / "c"))["history"]


@pytest.mark.parametrize(
    "depth",
    [
        pytest.param("model.freeze_depth=all", marks=pytest.mark.slow),
        "model.freeze_depth=100 model.freeze_unit=tensor",
    ],
)
def test_a_checkpoint_on_its_weights_gives_the_exact_validation_predictions(
    fast: list[str], tmp_path: Path, depth: str
) -> None:
    overrides = [*fast, *depth.split()]
    result = run(overrides, tmp_path / "r")
    network, classes = load_checkpoint(tmp_path / "r" / CHECKPOINT)
    assert list(classes) == result.classes
    config = compose_config(overrides)
    images, weights, _ = open_images(config, Facts())
    store = images.splits["val"]
    right = 0
    for start in range(0, 12, 8):  # the batches of the run
        chosen = list(range(start, min(12, start + 8)))
        pixels, labels, _ = StoredImages([store.images], store.labels, None).__getitems__(chosen)
        x = (pixels.permute(0, 3, 1, 2).float() / 255 - torch.tensor(weights.mean).view(1, 3, 1, 1)) / torch.tensor(
            weights.std
        ).view(1, 3, 1, 1)
        with torch.no_grad():
            right += int((network(x).argmax(1) == labels).sum())
    assert right / 12 == pytest.approx(result.val_acc_best)


def test_a_checkpoint_on_other_weights_is_refused(fast: list[str], tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save(build_backbone("narrow_resnet50").model.state_dict(), path)
    run([*fast, f"model.weights={path}", "model.freeze_depth=5"], tmp_path / "r")
    torch.save(build_backbone("narrow_resnet50").model.state_dict(), path)
    with pytest.raises(Refused, match=r"was trained on frozen weights \w{12}, but model.weights=.* gives \w{12}"):
        load_checkpoint(tmp_path / "r" / CHECKPOINT)


def test_a_checkpoint_holds_only_what_was_trained(fast: list[str], tmp_path: Path) -> None:
    run([*fast, "model.freeze_depth=all"], tmp_path / "all")
    run([*fast, "model.freeze_depth=0"], tmp_path / "none")
    sizes = [(tmp_path / name / CHECKPOINT).stat().st_size for name in ("all", "none")]
    assert sizes[0] < 4 * (512 + 1) * 3 + 2000
    assert sizes[1] > 4 * 1_400_000


def test_rest_from_scratch_keeps_the_frozen_part_and_forgets_the_rest(fast: list[str], tmp_path: Path) -> None:
    overrides = [*fast, "model.freeze_depth=100", "model.freeze_unit=tensor", "optim.lr=1e-9", "optim.weight_decay=0"]
    kept = run(overrides, tmp_path / "kept")
    scratch = run([*overrides, "model.rest=scratch"], tmp_path / "scratch")
    assert kept.digests == scratch.digests
    states = {}
    for name in ("kept", "scratch"):
        network, _ = load_checkpoint(tmp_path / name / CHECKPOINT)
        states[name] = network.suffix.state_dict()
    last = next(name for name in reversed(states["kept"]) if name.endswith("conv3.weight"))
    assert not torch.allclose(states["kept"][last], states["scratch"][last], atol=1e-3)


def test_the_baseline_trains_from_scratch(fast: list[str], tmp_path: Path) -> None:
    overrides = [word for word in fast if not word.startswith("model=")]
    result = run(["experiment=cnn_baseline", *overrides], tmp_path / "r")
    assert (result.freeze_depth, result.digests["weights"]) == (0, "none")
    assert result.val_acc_best > 0.5  # three colours


def test_early_stopping_ends_when_accuracy_does_not_rise(small: list[str], tmp_path: Path) -> None:
    result = run([*small, "trainer.epochs=9", "trainer.patience=1", "optim.lr=1e-12"], tmp_path / "r")
    assert len(result.history) == 2


CLIP = "trainer.grad_clip=0.1"


@pytest.mark.parametrize("extra", [["optim=sgd"], [CLIP], [CLIP, "trainer.precision=bf16"], ["data.resize=pad"]])
def test_every_way_of_training_ends(small: list[str], tmp_path: Path, extra: list[str]) -> None:
    assert run([*small, *extra, "trainer.epochs=1"], tmp_path / "r").status == "complete"


def test_the_record_of_another_trial_is_not_overwritten(fast: list[str], tmp_path: Path) -> None:
    first = run([*fast, "trainer.epochs=1"], tmp_path / "r")
    with pytest.raises(Refused, match=f"holds the record of another trial, {first.key}; give another folder"):
        run([*fast, "trainer.epochs=1", "optim.lr=0.5"], tmp_path / "r")
    assert Result.load(tmp_path / "r") == first
    assert run([*fast, "trainer.epochs=1"], tmp_path / "r").key == first.key  # its own may be made anew


@pytest.mark.slow
def test_the_test_set_is_judged_once_with_the_best_epoch(fast: list[str], images: Path, tmp_path: Path) -> None:
    overrides = [*fast, "data.use_val_as=test", "data.val_fraction=0.25"]
    result = run(overrides, tmp_path / "r")
    assert 0 <= result.last["test/acc"] <= 1
    given = run(fast, tmp_path / "given")
    assert result.digests["split"] != given.digests["split"]
    assert len(result.digests["dataset"].split("-")) == 3


def test_csv_logger_has_the_contracts_columns(fast: list[str], tmp_path: Path) -> None:
    run([*fast, "logger=csv"], tmp_path / "r")
    header = (tmp_path / "r" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "val/acc_best", "lr"} <= set(header)


def test_a_diverging_trial_is_recorded_as_failed_with_its_reason(
    fast: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*fast, "model.freeze_depth=0", "optim.lr=1e30", f"out={tmp_path / 'r'}"]
    assert main(monkeypatch, *words) == 1
    result = Result.load(tmp_path / "r")
    assert result.status == "failed"
    assert result.reason.startswith("FloatingPointError: train/loss became nan in epoch 0; lower optim.lr")
    assert "lower optim.lr" in capsys.readouterr().err
    assert not (tmp_path / "r" / CHECKPOINT).exists()


BAD = {
    "model.freze_depth=3": "no key 'model.freze_depth'; did you mean model.freeze_depth?",
    "model.freeze_depth=18": r"freeze_depth=18 is out of range for narrow_resnet50 in blocks; give 0..17",
    "+typo=1": "there is no key 'typo'",
    "optim.lr=fast": "optim.lr=fast: value 'fast' of type 'str' could not be converted to Float",
    "optim.lr=-1": "optim.lr=-1.0 is out of range; it must be above 0",
    "model=resnet5": "conf/model has no 'resnet5'; did you mean resnet50?",
    "data.interpolation=bilinaer": "data.interpolation=bilinaer is not known; did you mean bilinear?",
    "data.root=/no/such/folder": "data.root=/no/such/folder is not a folder",
    "model.weights=/no/such.pth": "there is no such file",
    "model.weights=none": "would freeze random layers",
    "data.root=null": "data.root is not set",
    "data.batch_size=1": "take their statistics from a single image; set data.batch_size=2 or more, or model",
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_settings_get_one_line_and_exit_code_2_and_leave_nothing(
    fast: list[str], tmp_path: Path, bad: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.iterdir())
    assert main(monkeypatch, *fast, "model.freeze_depth=16", bad, "out=r") == 2
    error = capsys.readouterr().err
    assert BAD[bad] in error
    assert error.startswith("refused: ")
    assert error.count("\n") == 1
    assert set(tmp_path.iterdir()) == before, "images were decoded first"


def test_batches_of_one_image_train_a_head(small: list[str], tmp_path: Path) -> None:
    words = [*small, "model.freeze_depth=all", "data.batch_size=1", f"out={tmp_path / 'r'}"]
    assert train(compose_config(words), words).status == "complete"


def test_all_unreadable_images_are_named_before_training(
    fast: list[str], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "train/class0/empty.jpg").touch()
    (images / "train/class1/text.jpg").write_text("not an image")
    whole = images / "train/class2/0.png"
    (images / "train/class2/cut.png").write_bytes(whole.read_bytes()[:-500])
    assert main(monkeypatch, *fast, f"out={tmp_path / 'r'}") == 2
    error = capsys.readouterr().err
    for name in ("empty.jpg (empty)", "text.jpg (not an image)", "cut.png", "data.on_bad=skip"):
        assert name in error
    assert not (tmp_path / "r").exists()
    assert main(monkeypatch, *fast, "data.on_bad=skip", f"out={tmp_path / 'r'}") == 0
    assert any("left out 3 unreadable images" in text for text in Result.load(tmp_path / "r").warnings)


def test_the_pixels_do_not_move_between_trials(small: list[str], images: Path, tmp_path: Path) -> None:
    flat_folder = tmp_path / "flat"
    (images / "train").rename(flat_folder)
    overrides = [*small, f"data.root={flat_folder}", "trainer.epochs=1"]
    first = run(overrides, tmp_path / "a")
    second = run([*overrides, "seed=5", "optim.lr=0.01", "model.freeze_depth=1"], tmp_path / "b")
    assert first.digests["split"] == second.digests["split"]
    assert first.digests["dataset"] == second.digests["dataset"]
    assert run([*overrides, "data.split_seed=1"], tmp_path / "c").digests["split"] != first.digests["split"]
    Image.new("RGB", (40, 32)).save(flat_folder / "class0" / "0.png")
    assert run(overrides, tmp_path / "d").digests["dataset"] != first.digests["dataset"]


@pytest.mark.slow
def test_sigterm_stops_a_run_with_143_and_a_record(small: list[str], tmp_path: Path) -> None:
    words = [*small, "trainer.epochs=100000", f"out={tmp_path / 'r'}"]
    process = Command("finetune.train", words, tmp_path, os.environ)
    wait_for(lambda: (tmp_path / "r" / "progress.json").exists() or process.poll() is not None)
    process.terminate()
    said, _ = process.communicate(PATIENCE)
    assert process.returncode == 143, said
    result = Result.load(tmp_path / "r")
    assert (result.status, result.reason) == ("interrupted", "stopped by a signal (exit 143)")
    assert json.loads((tmp_path / "r" / "result.json").read_text())["history"]


def test_a_stop_meant_for_an_earlier_attempt_stops_no_other(fast: list[str], tmp_path: Path) -> None:
    words = [*fast, f"out={tmp_path / 'r'}"]
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "stop").write_text("stopped by W&B")
    assert train(compose_config(words), words).status == "complete"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.root=x", "--cfg", "job"], "root: x"),
        (["/usr"], "/usr is no setting; did you mean data.root=/usr?"),
        (["data.root=x", "out=/proc/nowhere/x"], "the folder /proc/nowhere/x cannot be written (/proc: "),
        (["lr"], "lr is no setting; settings are given as KEY=VALUE, such as optim.lr=0.01"),
    ],
)
def test_what_a_trial_cannot_take_gets_one_sentence_and_hydras_own_flags_work(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, *words) == (0 if "--cfg" in words else 2)
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


def test_settings_come_from_a_json_file_as_wandbs_agent_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "config-1.json"
    file.write_text(json.dumps({"optim.lr": 0.01, "model.head.hidden": [8], "data.root": "a, b"}))
    words = _with_files(["model.freeze_depth=3", str(file)])
    assert words[0] == "model.freeze_depth=3"
    assert override_values(words) == {
        "model.freeze_depth": 3,
        "optim.lr": 0.01,
        "model.head.hidden": [8],
        "data.root": "a, b",
    }
    with pytest.raises(Refused, match=r"cannot be read .* give a JSON file of settings, or KEY=VALUE"):
        _with_files([str(tmp_path / "other.json")])
    file.write_text("[1]")
    with pytest.raises(Refused, match="holds no settings; give a JSON file such as"):
        _with_files([str(file)])


def test_a_trial_alone_computes_in_what_was_measured_and_keeps_its_key(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune.train, "format_of", lambda config, sweep: "bf16" if sweep is None else "32")
    for name, expected in (("alone", "bf16"), ("agents", "32")):
        if name == "agents":
            monkeypatch.setenv("WANDB_SWEEP_ID", "s")
        assert main(monkeypatch, *small, "logger=none", f"out={tmp_path / name}") == 0
        result = Result.load(tmp_path / name)
        assert (result.precision, result.config["trainer.precision"]) == (expected, "auto")
        assert result.key == trial_key(compose_config(small))


def test_a_trial_of_a_sweep_follows_what_was_decided_for_all(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune.train, "format_of", lambda config, sweep: sweep.read_text())
    words = [*small, "model.freeze_depth=3", "cache.mode=on", "trainer.epochs=1", f"cache.dir={tmp_path / 'c'}"]
    shared = finetune.train.prepare([(words, 1)], True, lambda *_: None, precision="bf16")
    prepared = set((tmp_path / "c" / "activations").iterdir())
    (tmp_path / "decided").write_text("bf16")

    def format_in(name: str, facts: Facts, file: Path | None = None) -> str:
        out = f"out={tmp_path / name}"
        assert finetune.train.run_trial([*words, out], facts.to_text(), listen=False, precision=file) == 0
        return Result.load(tmp_path / name).precision

    assert format_in("agents", shared) == "bf16"
    assert format_in("job", Facts(), tmp_path / "decided") == "bf16"
    assert set((tmp_path / "c" / "activations").iterdir()) == prepared  # stores of the format that was decided
    assert format_in("ours", Facts()) == "32"
