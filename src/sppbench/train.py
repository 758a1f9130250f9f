"""Train one net from a configuration to a test accuracy: the entry point, and the only place where the parts meet.

Heavy packages are imported inside functions, so that ``--help``, a mistake on the command line and a run that is
already complete are answered at once.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from sppbench.results import Result, ResultError, Status, git_state, package_versions
from sppbench.run_directory import RunDirectory, RunDirectoryError, config_hash

if TYPE_CHECKING:
    from lightning import LightningDataModule, Trainer

    from sppbench.callbacks import Checkpointing, StopOnNonFiniteLoss, Stopwatch
    from sppbench.classifier import Classifier

log = logging.getLogger("sppbench.train")  # also where __name__ is "__main__"


COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


class UsageError(Exception):
    """Something that the user must mend; the message says what, in a line."""


def config_directory() -> str:
    """The folder with train.yaml: inside an installed package, or at the top of the source checkout."""
    here = Path(__file__).resolve()
    inside = here.parent / "conf"
    return str(inside if inside.is_dir() else here.parents[2] / "conf")


@hydra.main(version_base="1.3", config_path=config_directory(), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Runs :func:`train`; returns the test accuracy in percent.

    Exit status: 0 also for a diverged run, 1 for a failed one, 2 for what the user must mend, 130 after Ctrl-C, 143
    after SIGTERM. In a multirun an error is raised instead, so that Hydra goes on with the other jobs.
    """
    multirun = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        if multirun and cfg.trainer.get("devices", 1) not in (1, "1", "auto"):
            raise UsageError("a multirun cannot use trainer.devices > 1: run one configuration at a time")
        return train(cfg)
    except (UsageError, RunDirectoryError, ResultError) as error:
        if multirun:
            raise
        print(f"sppbench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("sppbench: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if multirun:
            raise
        print(f"sppbench: failed: {_one_line(error)}", file=sys.stderr)
        sys.exit(1)


def train(cfg: DictConfig) -> float | None:
    """Trains, tests and leaves the results in ``cfg.output_dir``, resuming an interrupted run that is there.

    Returns:
        The test accuracy in percent.

    Raises:
        UsageError: A bad configuration, missing data, or a damaged checkpoint.
        RunDirectoryError: The directory is not for this run.
        SystemExit: After a signal, with 128 plus its number; the run can be resumed.
    """
    config = _resolve(cfg)
    run = RunDirectory(config["output_dir"], config)
    if (earlier := run.completed()) is not None:
        return _say_completed(run, earlier)
    if not _is_first_process():  # of a distributed run: the first one keeps the directory
        _follow(cfg, run)
        return None
    with run.locked():
        if (earlier := run.completed()) is not None:  # by another process, meanwhile
            return _say_completed(run, earlier)
        parts = _build(cfg, run)
        resume = run.begin()
        with _logging_to(run.log_file), _cleaning_up():
            return _run(parts, run, resume)


def _say_completed(run: RunDirectory, earlier: Result) -> float | None:
    accuracy: float | None = (earlier.test or {}).get("accuracy")
    log.info(f"{run.path} is {earlier.status} already: test accuracy {accuracy} % (overwrite=true runs it anew)")
    return accuracy


def _is_first_process() -> bool:
    ranks = [os.environ[name] for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK") if name in os.environ]
    return not ranks or int(ranks[0]) == 0


def _follow(cfg: DictConfig, run: RunDirectory) -> None:
    from sppbench.callbacks import Interrupted

    parts = _build(cfg, run)
    with parts.checkpointing.listening(), suppress(Interrupted):  # the first process tells of it
        _fit_and_test(parts, run, run.resumable)


@dataclass
class Parts:
    """Everything that a run is made of."""

    config: dict[str, Any]
    classifier: Classifier
    data: LightningDataModule
    trainer: Trainer
    stopwatch: Stopwatch
    divergence: StopOnNonFiniteLoss
    checkpointing: Checkpointing


def _resolve(cfg: DictConfig) -> dict[str, Any]:
    try:
        config = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        if isinstance(
            cfg.get("logger"), DictConfig
        ):  # their files follow output_dir, also where the saved configuration is run again
            config["logger"] = OmegaConf.to_container(cfg.logger)  # type: ignore[index, call-overload]
    except Exception as error:
        raise UsageError(_one_line(error)) from error
    assert isinstance(config, dict)
    seed, compile_mode = config["seed"], config["compile"]
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise UsageError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    if not isinstance(config["overwrite"], bool):
        raise UsageError(f"overwrite must be true or false, got {config['overwrite']!r}")
    if not isinstance(compile_mode, bool) and compile_mode not in COMPILE_MODES:
        raise UsageError(f"compile must be true, false or one of {', '.join(COMPILE_MODES)}, got {compile_mode!r}")
    if config["trainer"].get("limit_test_batches") in (0, 0.0):
        raise UsageError("trainer.limit_test_batches=0 leaves nothing to test")
    if not isinstance(config.get("logger") or {}, dict):
        raise UsageError(f"logger must be a group of loggers, got {config['logger']!r}")
    return {str(key): value for key, value in config.items()}


def _build(cfg: DictConfig, run: RunDirectory) -> Parts:
    """Makes the parts and gets the data ready, and writes nothing to the run directory.

    Raises:
        UsageError: A part refuses its configuration, or the data cannot be had.
    """
    if "wandb" in (cfg.get("logger") or {}):
        _prepare_wandb(cfg.logger.wandb)
    import lightning
    import torch
    from hydra.utils import instantiate

    from sppbench.callbacks import Checkpointing, Progress, StopOnNonFiniteLoss, Stopwatch
    from sppbench.classifier import Classifier
    from sppbench.data import DataError
    from sppbench.loggers import CSVLogger

    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\).*")  # between Lightning and torch
    torch.set_float32_matmul_precision("highest")
    warnings.filterwarnings("ignore", message="The number of training batches .* is smaller than the logging interval")
    try:
        lightning.seed_everything(cfg.seed, verbose=False)
        data = instantiate(cfg.data)
        net = instantiate(cfg.model).to(memory_format=torch.channels_last)
        make_optimizer = instantiate(cfg.optimizer)
        make_optimizer(net.parameters())  # so that a bad value is refused now
        loggers = [_make_logger(name, node, run) for name, node in (cfg.get("logger") or {}).items()]
        stopwatch, divergence = Stopwatch(), StopOnNonFiniteLoss()
        probes = [instantiate(cfg.spp, directory=str(run.path))] if cfg.spp._target_ else []
        checkpointing = Checkpointing(run.checkpoint)
        trainer = instantiate(
            cfg.trainer,
            logger=loggers or False,
            callbacks=[stopwatch, divergence, *probes, Progress(stopwatch), checkpointing],
            default_root_dir=str(run.path),
            num_sanity_val_steps=0,
            use_distributed_sampler=False,  # the data module gives each process its share
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=True,
        )
        data.prepare_data()
        _check_fit(net, data)
        if cfg.compile:
            net.compile(mode=None if cfg.compile is True else cfg.compile)
        classifier = Classifier(net, make_optimizer, cfg.data.num_classes)
        if run.resumable:
            step = _check_checkpoint(run.checkpoint)
            for logger in loggers:
                if isinstance(logger, CSVLogger):
                    logger.resume(step)
    except (UsageError, DataError) as error:
        raise UsageError(str(error)) from error
    except Exception as error:
        raise UsageError(_one_line(error)) from error
    return Parts(run.config, classifier, data, trainer, stopwatch, divergence, checkpointing)


def _check_fit(net: Any, data: Any) -> None:
    """Lets two images through, without gradients or any other trace, to see that net and data fit."""
    import torch

    shape = (2, data.in_channels, data.image_size, data.image_size)
    with torch.no_grad():
        try:
            logits = net.eval()(torch.zeros(shape))
        except RuntimeError as error:
            raise UsageError(f"model and data do not fit: images {shape} give: {_one_line(error)}") from error
        finally:
            net.train()
    if logits.shape != (2, data.num_classes):
        raise UsageError(f"model and data do not fit: logits {tuple(logits.shape)} for {data.num_classes} classes")


def _make_logger(name: str, node: DictConfig, run: RunDirectory) -> Any:
    from hydra.utils import instantiate

    # The same W&B run for all parts of an interrupted one; it shows the whole configuration.
    make = instantiate(node, _partial_=True)
    if name != "wandb":
        return make()
    logger = make(id=run.run_id, config=run.config)
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it always, and W&B warns of it always
    return logger


def _prepare_wandb(node: DictConfig) -> None:
    import wandb
    from wandb.errors import UsageError as WandbUsageError

    os.environ.setdefault("WANDB_SILENT", "true")
    if node.mode not in ("online", "offline", "disabled", "shared"):
        raise UsageError(f"logger.wandb.mode (or WANDB_MODE) must be online, offline or disabled, got {node.mode!r}")
    if node.mode == "online":
        try:
            known = wandb.login()
        except WandbUsageError:
            known = False
        if not known:
            raise UsageError("W&B cannot go online: no API key is known (wandb login), or WANDB_MODE forbids it")


def _check_checkpoint(path: Path) -> int:
    """Reads a checkpoint through and returns its step, so that a damaged one is found before anything is changed.

    Raises:
        UsageError: It is damaged.
    """
    import zipfile

    import torch

    try:
        with zipfile.ZipFile(path) as archive:  # torch.load itself does not compare the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"checksum of {damaged} does not match")
        step: int = torch.load(path, map_location="cpu", weights_only=True)["global_step"]
    except Exception as error:
        raise UsageError(
            f"checkpoint {path} is damaged ({_one_line(error)}): "
            "put a whole one in its place, or begin anew with overwrite=true"
        ) from error
    return step


def _run(parts: Parts, run: RunDirectory, resume: bool) -> float | None:
    """Trains and tests in a claimed directory; whatever happens, result.json says it."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from sppbench.callbacks import Interrupted

    checkpointing = parts.checkpointing
    try:
        if resume:
            log.info(f"resuming from {run.checkpoint}")
        with checkpointing.listening():
            _fit_and_test(parts, run, resume)
        result = _result(parts, "completed" if parts.divergence.step is None else "diverged")
        result.write(run.result_file)
    except (Interrupted, SIGTERMException, KeyboardInterrupt) as stop:
        _result(parts, "interrupted").write(run.result_file)
        saved = f"step {checkpointing.saved_step}" if checkpointing.saved_step is not None else "where it began"
        log.info(f"interrupted; the same command resumes it from {saved}")
        default = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        sys.exit(128 + getattr(stop, "signum", default))
    except Exception as error:
        run.traceback_file.write_text(traceback.format_exc(), encoding="utf-8")
        _result(parts, "failed", error=_one_line(error)).write(run.result_file)
        log.error(f"failed; see {run.traceback_file}")
        raise
    scores = result.test or {}
    if result.diverged_at is not None:
        log.info(f"diverged: the loss of step {result.diverged_at} is not finite")
    log.info(f"test accuracy {scores['accuracy']:.2f} %, top-5 {scores['top5']:.2f} % | {run.result_file}")
    return float(scores["accuracy"])


def _fit_and_test(parts: Parts, run: RunDirectory, resume: bool) -> None:
    checkpoint = str(run.checkpoint) if resume else None
    parts.trainer.fit(parts.classifier, datamodule=parts.data, ckpt_path=checkpoint, weights_only=True)
    parts.trainer.test(parts.classifier, datamodule=parts.data, verbose=False)


def _result(parts: Parts, status: Status, error: str | None = None) -> Result:
    import torch

    config, trainer, finished = parts.config, parts.trainer, status in ("completed", "diverged")
    device = parts.classifier.device
    return Result(
        status=status,
        model=config["name"],
        data=config["data"]["_target_"].rpartition(".")[2],
        optimizer=config["optimizer"]["_target_"].rpartition(".")[2],
        lr=config["optimizer"]["lr"],
        seed=config["seed"],
        epochs=parts.stopwatch.epochs,
        steps=trainer.global_step,
        test=parts.classifier.test_scores if finished else None,
        val=parts.classifier.val_scores,
        diverged_at=parts.divergence.step,
        error=error,
        images_per_second=parts.stopwatch.images_per_second,
        wall_seconds=parts.stopwatch.wall_seconds,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        threads=torch.get_num_threads(),
        versions=package_versions(),
        git=git_state(),
        config_hash=config_hash(config),
    )


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger("sppbench").setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """All jobs of a basic multirun share a process: what one leaves behind, the next would inherit."""
    try:
        yield
    finally:
        if "wandb" in sys.modules:
            import wandb

            wandb.finish(exit_code=0 if sys.exc_info()[0] is None else 1)
        import torch

        torch.use_deterministic_algorithms(False)
        torch.cuda.empty_cache()


def _one_line(error: BaseException) -> str:
    """The message that names the cause, without the lines that Hydra puts around it."""
    from hydra.errors import InstantiationException

    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return f"{getattr(error, 'full_key', '')}{_one_line(error.__cause__)}"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


if __name__ == "__main__":
    main()
