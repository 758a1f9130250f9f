"""Train one net from a configuration to a test accuracy: the entry point, and the only place where the parts meet.

Heavy packages are imported inside functions, so that ``--help``, a mistake on the command line and a run that is
already complete are answered at once.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # the other imports take a second
    from sppbench.extras import MissingExtra, need
    from sppbench.interruption import catch_early_interrupt

    catch_early_interrupt()
    try:
        need("train", "benchmark")
    except MissingExtra as missing:
        print(f"sppbench: {missing}", file=sys.stderr)
        sys.exit(2)

import logging
import os
import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from sppbench.errors import UserError
from sppbench.files import config_directory, write_text
from sppbench.interruption import deferred_interrupt, exit_interrupted
from sppbench.run import help_text
from sppbench.run.assembly import Parts, build, resolve
from sppbench.run.error_text import is_full_disk, one_line
from sppbench.run.results import FINAL, Result, Status, git_state, package_versions
from sppbench.run.run_directory import RunDirectory, RunDirectoryBusy, RunDirectoryError, config_hash
from sppbench.run.validation import UsageError
from sppbench.streams import need_only_matplotlib, survive_any_text

log = logging.getLogger("sppbench.train")  # also where __name__ is "__main__"


def main() -> None:
    """Runs the command line: :func:`train` for the configuration that Hydra composes, or many of them.

    Exit status: 0 also for a diverged run and one that was stopped early, 1 for a failed one, 2 for what the user must
    fix, 130 after Ctrl-C, 143 after SIGTERM, 138 after SIGUSR1. Many runs (-m): 0 if all finished, 1 if one
    failed, 2 if they cannot be run as asked. With HYDRA_FULL_ERROR=1 the traceback of an error is shown, too.

    Example:
        $ python -m sppbench.train model=ffnn data=digits trainer=cpu
    """
    survive_any_text()
    need_only_matplotlib()
    help_text.register()
    try:
        _hydra_main()
    except KeyboardInterrupt:  # while Hydra composes the configuration
        exit_interrupted()
    except BrokenPipeError:  # the reader of --help, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python flushes once more
        sys.exit(1)
    except Exception as error:  # of --help, for which Hydra composes it and catches nothing
        _show_traceback()
        mistake = (str(error).splitlines() or [repr(error)])[0]
        print(f"sppbench: {mistake}", file=sys.stderr)
        sys.exit(2)


@hydra.main(version_base="1.3", config_path=str(config_directory()), config_name="train")
def _hydra_main(cfg: DictConfig) -> float | None:
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN:
        return _job(cfg)
    try:
        if hydra_config.sweeper.get("grids") or cfg.get("sweeps", {}).get("dry_run"):
            raise UsageError("sweeps= is for many runs: python -m sppbench.train -m sweeps=...")
        return train(cfg)
    except UserError as error:
        _show_traceback()
        print(f"sppbench: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        exit_interrupted()
    except Exception as error:
        _show_traceback()
        print(f"sppbench: failed: {one_line(error)}", file=sys.stderr)
        sys.exit(1)


def _show_traceback() -> None:
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        traceback.print_exc()


def _job(cfg: DictConfig) -> float | None:
    """One run of many; raises what went wrong for the sweeper to report, in a form that processes can send."""
    try:
        return train(cfg)
    except RunDirectoryBusy:  # of a sweep that shares the work; the sweeper comes back to it
        return None
    except Exception as error:
        _show_traceback()
        raise RuntimeError(one_line(error)) from None


def train(cfg: DictConfig) -> float | None:
    """Trains, tests and leaves the results in ``cfg.output_dir``, resuming an interrupted run that is there.

    Returns:
        The test accuracy in percent.

    Raises:
        UsageError: A bad configuration, missing data, or a checkpoint that is damaged or another run's.
        RunDirectoryError: The directory is not for this run.
        SystemExit: After a signal, with 128 plus its number; the run can be resumed.

    Example:
        >>> with hydra.initialize_config_dir(str(config_directory()), version_base="1.3"):
        ...     cfg = hydra.compose("train", ["model=ffnn", "name=ffnn", "data=digits", "output_dir=outputs/try"])
        >>> accuracy = train(cfg)
    """
    config = resolve(cfg)
    run = RunDirectory(config["output_dir"], config)
    if (earlier := run.completed()) is not None:
        return _say_completed(run, earlier)
    with deferred_interrupt():
        import torchvision  # noqa: F401
    if not _is_first_process():  # of a distributed run: the first one keeps the directory
        _follow(cfg, run)
        return None
    with run.locked():
        if (earlier := run.completed()) is not None:  # by another process, meanwhile
            return _say_completed(run, earlier)
        parts = build(cfg, run)
        resume = run.begin()
        with _logging_to(run.log_file), _cleaning_up():
            return _run(parts, run, resume)


def _say_completed(run: RunDirectory, earlier: Result) -> float | None:
    accuracy: float | None = (earlier.test or {}).get("accuracy")
    log.info(f"{run.path} is already {earlier.status}: test accuracy {accuracy} % (overwrite=true runs it again)")
    return accuracy


def _is_first_process() -> bool:
    # As Lightning reads them: a job of Slurm may set its own for the processes that Lightning starts in it.
    names = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
    return int(next((os.environ[name] for name in names if name in os.environ), 0)) == 0


def _follow(cfg: DictConfig, run: RunDirectory) -> None:
    from sppbench.run.callbacks import Interrupted

    parts = build(cfg, run)
    with parts.checkpointing.listening(), suppress(Interrupted):  # the first process reports it
        _fit_and_test(parts, run, run.resumable)


def _run(parts: Parts, run: RunDirectory, resume: bool) -> float | None:
    """Trains and tests in a claimed directory; whatever happens is recorded in result.json, if it can be written."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from sppbench.run.callbacks import Interrupted

    checkpointing = parts.checkpointing
    try:
        if resume:
            log.info(f"resuming from {run.checkpoint}")
        with checkpointing.listening():
            _fit_and_test(parts, run, resume)
        result = _result(parts, _status(parts))
        result.write(run.result_file)
    except (Interrupted, SIGTERMException, KeyboardInterrupt) as stop:
        _keep(run, _result(parts, "interrupted"))
        saved = f"step {checkpointing.saved_step}" if checkpointing.saved_step is not None else "where it began"
        log.info(f"interrupted; the same command resumes it from {saved}")
        default = signal.SIGINT if isinstance(stop, KeyboardInterrupt) else signal.SIGTERM
        sys.exit(128 + getattr(stop, "signum", default))
    except Exception as error:
        full = f"the disk is full: {run.path} cannot be written to ({one_line(error)})" if is_full_disk(error) else None
        _keep(run, _result(parts, "failed", error=full or one_line(error)), traceback.format_exc())
        if full is not None:
            raise RuntimeError(full) from error
        raise
    if result.status == "stopped_early":
        limit = f"epoch {parts.trainer.max_epochs}" if parts.trainer.max_steps == -1 else "its last step"
        log.warning(f"stopped in step {result.steps}, before the end of {limit}: no table counts this run")
    scores = result.test or {}
    if result.diverged_at is not None:
        log.info(f"diverged: the loss of step {result.diverged_at} is not finite")
    averaged = (result.averaged or {}).get("test", {}).get("accuracy")
    of_average = f", of averaged weights {averaged:.2f} %" if averaged is not None else ""
    log.info(f"test accuracy {scores['accuracy']:.2f} %{of_average}, top-5 {scores['top5']:.2f} % | {run.result_file}")
    return float(scores["accuracy"])


def _keep(run: RunDirectory, result: Result, traceback: str | None = None) -> None:
    """Writes how a run that did not finish ended. A full disk must not hide why."""
    try:
        result.write(run.result_file)
        if traceback is not None:
            write_text(run.traceback_file, traceback)
            log.error(f"failed; see {run.traceback_file}")
    except OSError as error:
        log.error(f"cannot write to {run.path}: {error.strerror or error}")


def _status(parts: Parts) -> Status:
    """How a run that was trained and tested ended."""
    trainer = parts.trainer
    if parts.divergence.step is not None:
        return "diverged"
    last_step = trainer.max_steps != -1 and trainer.global_step >= trainer.max_steps
    last_epoch = trainer.max_epochs not in (None, -1) and parts.stopwatch.epochs >= trainer.max_epochs
    # Of a trial run each limit is 1: it reaches them, but they are not those of the configuration.
    return "completed" if (last_step or last_epoch) and not getattr(trainer, "fast_dev_run", 0) else "stopped_early"


def _fit_and_test(parts: Parts, run: RunDirectory, resume: bool) -> None:
    checkpoint = str(run.checkpoint) if resume else None
    parts.trainer.fit(parts.classifier, datamodule=parts.data, ckpt_path=checkpoint, weights_only=True)
    parts.trainer.test(parts.classifier, datamodule=parts.data, verbose=False)


def _result(parts: Parts, status: Status, error: str | None = None) -> Result:
    import torch

    config, trainer, finished = parts.config, parts.trainer, status in FINAL
    device = parts.classifier.device
    return Result(
        status=status,
        model=str(config["name"]),
        data=config["data"]["_target_"].rpartition(".")[2],
        optimizer=config["optimizer"]["_target_"].rpartition(".")[2],
        lr=config["optimizer"]["lr"],
        seed=config["seed"],
        epochs=parts.stopwatch.epochs,
        steps=trainer.global_step,
        test=parts.classifier.test_scores if finished else None,
        val=parts.classifier.val_scores,
        train=parts.classifier.training_scores if finished else None,
        averaged=parts.average.scores if finished else None,
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


class _LogFile(logging.FileHandler):
    """Once it cannot be written, as on a full disk, it says so in a line. Whatever ends the run is said elsewhere."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._failed:
            self._failed = True
            print(f"sppbench: cannot write {self.baseFilename}: {error.strerror or error}", file=sys.stderr)

    def close(self) -> None:
        with suppress(OSError):  # it tries once more to write what it could not
            super().close()


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    try:
        handler = _LogFile(path, encoding="utf-8")
    except OSError as error:
        raise RunDirectoryError(f"cannot write {path}: {error.strerror or error}") from error
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
        torch.set_flush_denormal(False)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
