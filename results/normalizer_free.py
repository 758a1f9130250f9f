"""The blocks of docs/study/nf_efficientnet.md, and what the README says of that net, from the kept runs."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from cells import LR, accuracies_of, after_each_epoch, gained, over_seeds, train_loss, unbroken

from sppbench.evidence.runs import Run
from sppbench.evidence.selection import Evidence
from sppbench.study.claims.thresholds import read_rules
from sppbench.study.common.intervals import summarize
from sppbench.study.common.text_tables import DASH, pipes
from sppbench.study.table.formats import plus_minus

SEED, SIGMA = 868, 0.04
# The nets beside the normalizer-free one, and the epochs of its tables.
EQUAL_STEPS = "efficientnet_bn_equal_steps"
BATCH_NORMALIZED = ("efficientnet_bn", EQUAL_STEPS, "efficientnet_bn_regularized")
UNNORMALIZED = ("sn_efficientnet_nomp", "sn_efficientnet_equal_steps", "nf_efficientnet", "nf_efficientnet_variant")
BESIDE = (*BATCH_NORMALIZED, *UNNORMALIZED)
WHOLE, SHORT = (1, 8, 12, 16, 20), (1, 3, 5)


def blocks(evidence: Evidence) -> dict[str, list[str]]:
    """The lines of each block, by its name."""
    return {
        "nf": _curves(evidence, WHOLE),
        "nf_parts": _curves(evidence, SHORT),
        "nf_seeds": _seeds(evidence),
        "nf_steps": _steps(evidence),
        "nf_changes": _changes(evidence),
        "nf_rates": _rates(evidence),
        "nf_averages": _averages(evidence),
        "nf_open": _open_track(evidence),
        "better": _better(evidence),
    }


def _curves(evidence: Evidence, epochs: Sequence[int]) -> list[str]:
    """A row a run of one seed: how it learns, and what it has after the last of these epochs, best last."""
    runs = [run for run in evidence.runs if run.sweep in ("table1", "nf") and run.model in BESIDE]
    rows: dict[str, tuple[float, list[str]]] = {}
    for run in sorted(runs, key=lambda run: int(run.settings["trainer.max_epochs"])):  # the longest of a net stays
        if not run.counts or run.seed != SEED:
            continue
        by_epoch = after_each_epoch(run)
        if len(by_epoch) >= epochs[-1]:
            last = by_epoch.iloc[epochs[-1] - 1]
            curve = [f"{by_epoch['val/accuracy'][epoch - 1]:.1f}" for epoch in epochs]
            losses = [_loss(last[f"{part}/loss"]) for part in ("train", "val")]
            at_end = [train_loss(run), f"{run.accuracy:.2f}"] if epochs is WHOLE else []
            cells = [_variant(run), *curve, f"{last['train/accuracy']:.1f}", *losses, *at_end]
            rows[cells[0]] = (last["val/accuracy"], cells)
    first, *others = map(str, epochs)
    head = ["net", f"val. %, epoch {first}", *others, "train %", "train loss", "val. loss"]
    at_end = ["train loss, plain", "test %"] if epochs is WHOLE else []
    return pipes([*head, *at_end], [cells for _, cells in sorted(rows.values())])


def _loss(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0e}"


def _changes(evidence: Evidence) -> list[str]:
    """A row a changed net: its test accuracies over seeds, with last and averaged weights, beside the net as it is."""
    rules = read_rules()
    known = evidence.only({}, rules.protocol)
    rows = []
    for net in UNNORMALIZED[1:3]:
        base, changed = known.select(net, LR), dict[str, list[Run]]()
        for run in evidence.runs:
            whole = run.sweep == "nf" and run.settings["trainer.max_epochs"] == WHOLE[-1] and run.lr == LR
            if run.model == net and whole and run.variant and run.counts:
                changed.setdefault(_variant(run), []).append(run)
        for name, runs in [(net, base), *sorted(changed.items())]:
            cells = [net if runs is base else f"with {name.partition(', ')[2]}", str(len(runs))]
            for measure in (lambda run: run.accuracy, _averaged):
                ours, theirs = ([score for run in one if (score := measure(run)) is not None] for one in (runs, base))
                over = gained(ours, theirs, rules.confidence) if ours and runs is not base else DASH
                cells += [over_seeds(ours) if ours else DASH, over]
            rows.append(cells)
    head = ["net, and what is changed", "seeds", "test %", "by it [95 %]", "averaged weights", "by it [95 %]"]
    return unbroken(pipes(head, rows))


def _rates(evidence: Evidence) -> list[str]:
    """A row a learning rate and σ of the normalizer-free net: what its seeds have after the last short epoch."""
    found: dict[tuple[float, float, str], dict[int, pd.Series]] = {}
    for run in sorted(evidence.runs, key=lambda run: int(run.settings["trainer.max_epochs"])):  # the longest stays
        varied = [words for words in run.variant if words.startswith("model.") and not words.startswith("model.sigma=")]
        if run.sweep == "nf" and run.model == UNNORMALIZED[2] and run.counts and not varied:
            key = run.lr, float(run.settings["model.sigma"]), _callbacks(run)
            found.setdefault(key, {})[run.seed] = after_each_epoch(run).iloc[SHORT[-1] - 1]
    rows = []
    for (lr, sigma, callbacks), of_seeds in sorted(found.items()):
        if lr != LR or sigma == SIGMA:
            accuracies = ", ".join(f"{last['val/accuracy']:.1f}" for last in of_seeds.values())
            losses = ", ".join(_loss(last["train/loss"]) for last in of_seeds.values())
            rows.append([f"{lr:g}", f"{sigma:g}", f"{100 * lr / sigma:g} %", callbacks or DASH, accuracies, losses])
    accuracy = f"val. % after {SHORT[-1]} epochs, each seed"
    return pipes(["lr", "sigma", "lr / sigma", "with", accuracy, "train loss"], rows)


def _open_track(evidence: Evidence) -> list[str]:
    """A row a run that is beside the protocol."""
    rows = []
    for run in evidence.runs:
        if run.sweep == "open_track" and run.counts and run.result is not None and run.accuracy is not None:
            epochs, averaged = int(run.settings["trainer.max_epochs"]), _averaged(run)
            last = f"{after_each_epoch(run)['val/accuracy'].iloc[-1]:.1f}"
            scores = [f"{run.accuracy:.2f}", f"{averaged:.2f}" if averaged is not None else DASH]
            rows.append([run.model, str(epochs), last, train_loss(run), *scores])
    return pipes(["net", "epochs", "val. %", "train loss, plain", "test %", "of averaged weights"], rows)


def _callbacks(run: Run) -> str:
    """Names of what a run has besides the protocol's."""
    return ", ".join(one["_target_"].rpartition(".")[2] for one in run.settings.get("trainer.callbacks") or [])


def _averaged(run: Run) -> float | None:
    """Test accuracy of the average of a run's weights; old runs have none."""
    averaged = run.result.averaged if run.result is not None else None
    return averaged["test"]["accuracy"] if averaged else None


def _variant(run: Run) -> str:
    """A net and what is changed in it."""
    changed = [words.removeprefix("model.") for words in run.variant if words.startswith("model.")]
    rate = [f"lr={run.lr:g}"] if run.lr != LR else []
    callbacks = [names] if (names := _callbacks(run)) else []
    return ", ".join([run.model, *changed, *rate, *callbacks])


def _seeds(evidence: Evidence) -> list[str]:
    """A row a net and learning rate: test accuracies over seeds, and the difference from batch normalization."""
    rules = read_rules()
    known = evidence.only({}, rules.protocol)
    rows = []
    for lr in (0.001, 0.01, 0.1):
        found = {net: accuracies_of(known, net, lr) for net in BESIDE}
        for net, accuracies in found.items():
            if not accuracies:
                continue
            against = found[BATCH_NORMALIZED[0]] if net != BATCH_NORMALIZED[0] else []
            over = gained(accuracies, against, rules.confidence) if against else DASH
            rows.append([f"{lr:g}", net, over_seeds(accuracies), str(len(accuracies)), over])
    head = ["lr", "net", "test %", "seeds", f"over {BATCH_NORMALIZED[0]} [95 %]"]
    return unbroken(pipes(head, rows))


def _steps(evidence: Evidence) -> list[str]:
    """What steps of one size add with batch normalization and without, and what that adds: two rows, two columns."""
    rules = read_rules()
    known = evidence.only({}, rules.protocol)
    nets = (("sn_efficientnet_nomp", "sn_efficientnet_equal_steps"), (BATCH_NORMALIZED[0], EQUAL_STEPS))
    without, with_it = ([accuracies_of(known, net) for net in pair] for pair in nets)
    rows = [
        [name, *map(over_seeds, pair), gained(pair[1], pair[0], rules.confidence)]
        for name, pair in (("without batch normalization", without), ("with it", with_it))
    ]
    columns = zip(with_it, without, strict=True)
    rows.append(["batch normalization adds [95 %]", *(gained(*pair, rules.confidence) for pair in columns), DASH])
    head = ["test %", "initial weights of the study", "of one size", "one size adds [95 %]"]
    return unbroken(pipes(head, rows))


def _averages(evidence: Evidence) -> list[str]:
    """A row a net: what averaging the weights adds, and the difference from batch normalization with equal steps."""
    rules = read_rules()
    known, rows = evidence.only({}, rules.protocol), []
    found = {net: [run for run in known.select(net, LR) if _averaged(run) is not None] for net in BESIDE}
    scores = {net: [score for run in runs if (score := _averaged(run)) is not None] for net, runs in found.items()}
    for net, runs in found.items():
        if runs:
            added = [score - run.accuracy for score, run in zip(scores[net], runs, strict=True) if run.accuracy]
            over = gained(scores[net], scores[EQUAL_STEPS], rules.confidence) if net != EQUAL_STEPS else DASH
            rows.append([net, over_seeds(scores[net]), over_seeds(added), str(len(runs)), over])
    head = ["net", "test %", "over last weights", "seeds", f"over {EQUAL_STEPS} [95 %]"]
    return unbroken(pipes(head, rows))


def _better(evidence: Evidence) -> list[str]:
    """A sentence: the normalizer-free net beside batch normalization, and that with steps of one size."""
    rules = read_rules()
    known, rule = evidence.only({}, rules.protocol), rules.claims.C7
    nets = (rule.net, rule.better, EQUAL_STEPS)
    found = [accuracies_of(known, net) for net in nets]
    over = gained(found[0], found[1], rules.confidence)
    means = [f"`{net}` {plus_minus(summarize(one), digits=2)} %" for net, one in zip(nets, found, strict=True)]
    return [f"{means[0]}, {means[1]}: {over} points; {means[2]}."]
