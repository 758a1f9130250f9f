"""Data modules: arguments, split, loaders, and with Lightning's Trainer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from sppbench.data import CIFAR100, DataError, Digits, ImageDataModule, Images, Synthetic, TensorLoader
from sppbench.data.datamodule import split


def tiny(**options: Any) -> Synthetic:
    sizes = {"train_size": 43, "val_size": 11, "test_size": 7, "num_classes": 4, "image_size": 8, "batch_size": 10}
    return Synthetic(**(sizes | options))


class Numbered(Synthetic):
    """Labels say which sample it is."""

    def load(self) -> Images:
        images = super().load()
        return images._replace(train_labels=torch.arange(len(images.train_labels)))


def ready(module: ImageDataModule) -> ImageDataModule:
    module.prepare_data()
    module.setup()
    return module


def labels(loader: Any) -> list[int]:
    return [int(label) for _, batch in loader for label in batch]


def test_split_is_disjoint_complete_and_from_the_seed() -> None:
    train, val = split(100, 30, 868)
    assert (len(train), len(val)) == (70, 30)
    assert sorted(train.tolist() + val.tolist()) == list(range(100))
    again, _ = split(100, 30, 868)
    other, _ = split(100, 30, 67)
    assert torch.equal(train, again)
    assert not torch.equal(train, other)


def test_split_is_uniform() -> None:
    """Each sample falls into validation equally often: a binomial share, within 5 standard deviations."""
    hits = torch.zeros(50)
    for seed in range(400):
        hits[split(50, 10, seed)[1]] += 1
    assert ((hits / 400 - 0.2).abs() < 5 * (0.2 * 0.8 / 400) ** 0.5).all()


def test_loaders_serve_the_split() -> None:
    module = ready(
        Numbered(43, 7, val_size=11, num_classes=54, image_size=8, batch_size=10, padding=0, flip=False, seed=3)
    )
    train, val = split(54, 11, 3)
    assert sorted(labels(module.train_dataloader())) == sorted(train.tolist())
    assert labels(module.train_dataloader()) != train.tolist()
    assert labels(module.val_dataloader()) == val.tolist()
    assert len(labels(module.test_dataloader())) == 7
    images = torch.cat([batch[0] for batch in module.val_dataloader()])
    expected = (module.load().train_images[val].permute(0, 3, 1, 2) / 255 - 0.5) / 0.2898
    torch.testing.assert_close(images, expected, rtol=1e-5, atol=1e-6)


def test_only_training_batches_are_augmented_and_shuffled() -> None:
    module = ready(tiny())
    assert module.train_dataloader().augmentation is not None
    assert module.train_dataloader().sampler.shuffle
    for loader in (module.val_dataloader(), module.test_dataloader()):
        assert isinstance(loader, TensorLoader)
        assert loader.augmentation is None
        assert not loader.sampler.shuffle


def test_setup_alone_is_enough_where_another_process_prepared() -> None:
    module = tiny()
    module.setup()
    assert len(module.train_dataloader()) == 5


def test_loaders_take_rank_and_device_from_the_trainer() -> None:
    module = tiny(train_size=44, val_size=12, test_size=8)
    strategy = SimpleNamespace(root_device=torch.device("meta"))
    module.trainer = cast(pl.Trainer, SimpleNamespace(strategy=strategy, global_rank=1, world_size=2))
    module.setup()
    loaders = module.train_dataloader(), module.val_dataloader(), module.test_dataloader()
    for loader in loaders:
        assert isinstance(loader, TensorLoader)
        assert (loader.rank, loader.world_size) == (1, 2)
        assert loader.images.device.type == loader.labels.device.type == "meta"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size must be at least 1, got 0"),
        ({"val_size": -1}, "data.val_size must be at least 0, got -1"),
        ({"padding": -1}, "data.padding must be at least 0, got -1"),
        ({"seed": -1}, "data.seed must be at least 0, got -1"),
        ({"num_classes": 0}, "data.num_classes must be at least 1, got 0"),
        ({"image_size": 0}, "data.image_size must be at least 1, got 0"),
        ({"train_size": 0}, "data.train_size must be at least 1, got 0"),
        ({"std": 0.0}, r"data.std must be positive, got \[0.0, 0.0, 0.0\]"),
        ({"mean": [0.5, 0.5]}, r"data.mean must be one number or 3, one for each channel, got \[0.5, 0.5\]"),
    ],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}$"):
        tiny(**options)


class Broken(Synthetic):
    """Serves what a test puts in place of parts of the images."""

    parts: dict[str, Tensor]

    def load(self) -> Images:
        return super().load()._replace(**self.parts)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"train_labels": torch.full((54,), 4)}, r"train labels must be below data.num_classes=4, got 4..4"),
        ({"test_labels": torch.full((7,), -1)}, r"test labels must be below data.num_classes=4, got -1..-1"),
        ({"train_images": torch.zeros(54, 9, 8, 3, dtype=torch.uint8)}, "54 train images must be uint8"),
        ({"test_images": torch.zeros(7, 8, 8, 1, dtype=torch.uint8)}, "7 test images must be uint8"),
        ({"train_labels": torch.zeros(53, dtype=torch.long)}, "53 train images must be uint8"),
        ({"test_labels": torch.zeros(0, dtype=torch.long)}, "the test set is empty"),
        ({}, "data.val_size=54 leaves none of the 54 training images"),
    ],
)
def test_data_that_does_not_fit_the_arguments_is_refused(parts: dict[str, Tensor], message: str) -> None:
    sizes = {"train_size": 43, "val_size": 11} if parts else {"train_size": 1, "val_size": 54}
    module = Broken(test_size=7, num_classes=4, image_size=8, **sizes)
    module.parts = parts
    if not parts:
        whole = module.load()
        module.parts = {"train_images": whole.train_images[:54], "train_labels": whole.train_labels[:54]}
    with pytest.raises(DataError, match=message):
        module.setup()


def test_digits() -> None:
    module = ready(Digits(seed=868))
    images = module.load()
    assert images.train_images.shape == (1500, 32, 32, 3)
    assert images.test_images.shape == (297, 32, 32, 3)
    assert images.train_images.amax() == 255
    assert torch.equal(images.train_images[..., 0], images.train_images[..., 2])
    assert len(labels(module.train_dataloader())) == 1200
    assert len(labels(module.val_dataloader())) == 300
    assert set(labels(module.test_dataloader())) == set(range(10))
    augmentation = module.train_dataloader().augmentation
    assert augmentation is not None
    assert not augmentation.flip
    pixels = images.train_images / 255
    assert float(pixels.mean()) == pytest.approx(module.mean[0], abs=1e-4)
    assert float(pixels.std()) == pytest.approx(module.std[0], abs=1e-4)


def test_digits_are_the_originals_enlarged() -> None:
    """Bilinear interpolation written as a matrix: pixel centres lie at (i + 1/2) / 4 - 1/2, the border is repeated."""
    from sklearn.datasets import load_digits

    place = ((torch.arange(32) + 0.5) / 4 - 0.5).clamp(0, 7)
    weights = (1 - (place[:, None] - torch.arange(8)).abs()).clamp(min=0)
    originals = torch.from_numpy(load_digits().images[:1500]).float() * 255 / 16
    expected = weights @ originals @ weights.T
    assert (Digits().load().train_images[..., 0] - expected).abs().max() <= 0.501


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 64), (4, 5)])
def test_synthetic_has_any_shape(channels: int, size: int) -> None:
    module = ready(Synthetic(20, 5, val_size=4, in_channels=channels, image_size=size, num_classes=7, seed=1))
    images, batch = next(iter(module.train_dataloader()))
    assert images.shape == (20, channels, size, size)
    assert int(batch.max()) < 7
    same, other = Synthetic(20, 5, val_size=4, image_size=size, seed=1), Synthetic(20, 5, val_size=4, seed=2)
    assert torch.equal(same.load().test_labels, same.load().test_labels)
    assert not torch.equal(same.load().train_labels, other.load().train_labels)


def test_synthetic_is_normalised() -> None:
    images = torch.cat([x for x, _ in ready(Synthetic(500, 10, val_size=0, padding=0)).train_dataloader()])
    assert float(images.mean()) == pytest.approx(0, abs=0.01)
    assert float(images.std()) == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", [CIFAR100, Digits, Synthetic])
def test_configuration_says_what_the_class_says(kind: type[ImageDataModule]) -> None:
    path = Path(__file__).parents[2] / "conf" / "data" / f"{kind.__name__.lower()}.yaml"
    config = OmegaConf.create({"seed": 7, "data": OmegaConf.load(path)})
    OmegaConf.resolve(config)
    options = {str(name): value for name, value in config.data.items()}
    assert options.pop("_target_") == f"sppbench.data.{kind.__name__}"
    root = {"root": options["root"]} if "root" in options else {}
    ours, theirs = vars(kind(**options)), vars(kind(seed=7, **root))
    public = [name for name in theirs if not name.startswith("_")]
    assert {name: ours[name] for name in public} == {name: theirs[name] for name in public}
    assert ours["seed"] == 7


class Recorder(pl.LightningModule):
    """Remembers the batches it was given, and trains a little."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8 * 8 * 3, 4)
        self.seen: list[tuple[int, float]] = []
        self.validated: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, target = batch
        self.seen.append((self.current_epoch, float(images.double().sum())))
        return torch.nn.functional.cross_entropy(self.layer(images.flatten(1)), target)

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.validated.append(float(batch[0].double().sum()))

    def test_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.validated.append(float(batch[0].double().sum()))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Saver(pl.Callback):
    """Saves a checkpoint once, in one hook, at one step."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        def save(trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == step and not trainer.sanity_checking:
                trainer.save_checkpoint(path)

        setattr(self, hook, save)


def trainer(*callbacks: pl.Callback, **options: Any) -> pl.Trainer:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    settings: dict[str, Any] = {"accelerator": "cpu", "max_epochs": 3, "num_sanity_val_steps": 1, **quiet, **options}
    return pl.Trainer(callbacks=list(callbacks), **settings)


def test_lightning_sets_the_epoch() -> None:
    model, module = Recorder(), tiny()
    trainer().fit(model, module)
    loader = module.train_dataloader()
    expected = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        expected += [(epoch, float(images.double().sum())) for images, _ in loader]
    assert model.seen == expected
    once = [float(batch[0].double().sum()) for batch in module.val_dataloader()]
    assert model.validated == once[:1] + 3 * once  # sanity check, then each epoch


def test_lightning_tests_and_runs_without_validation() -> None:
    model, module = Recorder(), tiny(val_size=0)
    run = trainer(max_epochs=1)
    run.fit(model, module)
    assert len(model.seen) == 5
    assert model.validated == []
    run.test(model, module)
    assert len(model.validated) == 1


@pytest.mark.parametrize(
    ("hook", "step"),
    [
        ("on_train_batch_end", 1),
        ("on_train_batch_end", 4),
        ("on_train_batch_end", 5),  # the last batch of epoch 0
        ("on_train_batch_end", 8),
        ("on_train_batch_end", 10),  # the last batch of epoch 1
        ("on_validation_end", 5),
        ("on_train_epoch_end", 5),
        ("on_train_epoch_end", 10),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_resumed_training_sees_exactly_the_remaining_batches(hook: str, step: int, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    whole = Recorder()
    trainer(Saver(hook, step, path)).fit(whole, tiny())
    resumed = Recorder()
    trainer().fit(resumed, tiny(), ckpt_path=path, weights_only=True)
    assert resumed.seen == whole.seen[step:]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
