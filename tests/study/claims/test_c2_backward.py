"""C2 on gradients with known ratios."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sppbench.evidence.epochs import batchnorm_epochs
from sppbench.evidence.keep import write_compact
from sppbench.evidence.selection import read_evidence
from tests.fabricate.claims import T2, gains, gradients, judged, part, rules
from tests.fabricate.runs import SEEDS, reconfigure

THREE = SEEDS[:3]
# log of the ratio is off by so much in each of the three seeds: its sample variance is 0.04, its mean 0
OFFSETS = dict(zip(THREE, (-0.2, 0.0, 0.2), strict=True))
# and by so much in each epoch, which the mean over epochs takes out
DRIFT = {0: -0.5, 9: 0.0, 19: 0.5}


def pair(directory: Path, h: int, log_ratio: float, seeds: tuple[int, ...] = THREE, width: float = 1.0) -> list[Path]:
    """Affine on and off at one width; their ratio is exp(log_ratio) up to OFFSETS and DRIFT."""
    suffix = "" if h == 512 else f"_h{h}"
    gradients(directory, f"ffnn_bn_noaffine{suffix}", seeds, lambda seed, epoch: width)
    size = lambda seed, epoch: width * math.exp(log_ratio + OFFSETS.get(seed, 0.0) + DRIFT[epoch])  # noqa: E731
    return gradients(directory, f"ffnn_bn{suffix}", seeds, size)


def test_a_true_effect_holds_with_its_interval(tmp_path: Path) -> None:
    pair(tmp_path, 100, -1.5)
    pair(tmp_path, 512, -2.0)
    claim = judged(tmp_path, "C2")
    assert claim.verdict == "holds"
    assert [one.name for one in claim.parts if one.decides] == ["affine on / off, h = 100", "affine on / off, h = 512"]
    half = T2 * math.sqrt(0.04 / 3)
    for name, log in (("affine on / off, h = 100", -1.5), ("affine on / off, h = 512", -2.0)):
        one = part(claim, name)
        assert (one.verdict, one.n, one.missing) == ("holds", 3, "")
        assert one.value == pytest.approx(math.exp(log), rel=1e-5)
        assert one.interval == pytest.approx((math.exp(log - half), math.exp(log + half)), rel=1e-5)


def test_each_epoch_alone_is_context(tmp_path: Path) -> None:
    pair(tmp_path, 512, -2.0)
    claim = judged(tmp_path, "C2")
    for epoch, drift in DRIFT.items():
        one = part(claim, f"affine on / off, h = 512, epoch {epoch}")
        assert not one.decides
        assert one.value == pytest.approx(math.exp(-2.0 + drift), rel=1e-5)


def test_no_effect_fails(tmp_path: Path) -> None:
    pair(tmp_path, 100, 0.0)
    pair(tmp_path, 512, 0.0)
    claim = judged(tmp_path, "C2")
    assert claim.verdict == "fails"
    assert {one.verdict for one in claim.parts if one.decides} == {"fails"}


def test_an_effect_at_one_width_alone_fails(tmp_path: Path) -> None:
    pair(tmp_path, 100, 0.0)
    pair(tmp_path, 512, -2.0)
    assert judged(tmp_path, "C2").verdict == "fails"


def test_a_wide_interval_leaves_it_undecided(tmp_path: Path) -> None:
    pair(tmp_path, 512, math.log(0.55))  # ± 0.5 in the logarithm: from 0.34 to 0.9
    one = part(judged(tmp_path, "C2"), "affine on / off, h = 512")
    assert one.verdict == "undecided"
    assert "the interval is too wide" in one.missing
    assert "model=ffnn_bn,ffnn_bn_noaffine optimizer.lr=0.001 seed=362,970" in one.missing


def test_width_is_no_effect_of_the_scale(tmp_path: Path) -> None:
    """As the study compared them: off at h = 100, on at h = 512."""
    pair(tmp_path, 100, 0.0, width=5.0)
    pair(tmp_path, 512, 0.0)
    claim = judged(tmp_path, "C2")
    assert claim.verdict == "fails"
    study = part(claim, "as the study: off, h = 100 / on, h = 512")
    half = T2 * math.sqrt(0.04 / 3)
    assert (study.verdict, study.decides) == ("holds", False)
    assert study.value == pytest.approx(5.0, rel=1e-5)
    assert study.interval == pytest.approx((5 * math.exp(-half), 5 * math.exp(half)), rel=1e-5)
    off = part(claim, "h = 100 / h = 512, affine off")
    assert (off.verdict, off.interval) == ("holds", (pytest.approx(5.0, rel=1e-5), pytest.approx(5.0, rel=1e-5)))


def test_equal_widths_are_told(tmp_path: Path) -> None:
    pair(tmp_path, 100, -2.0, width=1.1)
    pair(tmp_path, 512, -2.0)
    claim = judged(tmp_path, "C2")
    assert part(claim, "h = 100 / h = 512, affine off").verdict == "fails"
    assert part(claim, "as the study: off, h = 100 / on, h = 512").verdict == "holds"


def test_interventions(tmp_path: Path) -> None:
    pair(tmp_path, 512, -2.0)
    gradients(tmp_path, "ffnn_bn_scale", THREE, lambda seed, epoch: 0.25)
    gradients(tmp_path, "ffnn_bn_shift", THREE, lambda seed, epoch: 1.0)
    claim = judged(tmp_path, "C2")
    scale, shift = (part(claim, f"{name} alone / affine off, h = 512") for name in ("scale", "shift"))
    assert (scale.verdict, scale.value, scale.n) == ("holds", pytest.approx(0.25, rel=1e-5), 3)
    assert (shift.verdict, shift.value, shift.decides) == ("fails", pytest.approx(1.0, rel=1e-5), False)


def test_too_few_seeds_decide_nothing_but_are_shown(tmp_path: Path) -> None:
    pair(tmp_path, 512, -2.0, THREE[:2])
    one = part(judged(tmp_path, "C2"), "affine on / off, h = 512")
    assert (one.verdict, one.n) == ("undecided", 2)
    assert one.value == pytest.approx(math.exp(-2.1), rel=1e-5)
    assert one.interval is not None
    assert one.missing == (
        "needs ffnn_bn and ffnn_bn_noaffine at lr 0.001, seed 472: python -m sppbench.train -m "
        "model=ffnn_bn,ffnn_bn_noaffine optimizer.lr=0.001 seed=472"
    )
    assert judged(tmp_path, "C2", rules(tmp_path / "two.yaml", seeds=2)).parts[1].verdict != "undecided"


def test_one_pair_has_no_interval(tmp_path: Path) -> None:
    pair(tmp_path, 512, -2.0, THREE[:1])
    one = part(judged(tmp_path, "C2"), "affine on / off, h = 512")
    assert (one.verdict, one.n, one.interval) == ("undecided", 1, None)


def test_only_pairs_of_a_seed_count_and_the_other_half_is_asked_for(tmp_path: Path) -> None:
    gradients(tmp_path, "ffnn_bn", [868, 67], lambda seed, epoch: 1.0)
    gradients(tmp_path, "ffnn_bn_noaffine", [868, 362], lambda seed, epoch: 1.0)
    one = part(judged(tmp_path, "C2"), "affine on / off, h = 512")
    assert one.n == 1
    assert "needs ffnn_bn at lr 0.001, seed 362:" in one.missing
    assert "ffnn_bn_noaffine at lr 0.001, seed 67:" in one.missing


def test_no_runs_at_all(tmp_path: Path) -> None:
    claim = judged(tmp_path, "C2")
    assert claim.verdict == "undecided"
    assert all(one.value is None and one.missing for one in claim.parts)


@pytest.mark.parametrize("bad", [math.nan, math.inf, 0.0])
def test_a_run_that_is_not_finite_is_left_out_and_another_seed_asked_for(tmp_path: Path, bad: float) -> None:
    gradients(tmp_path, "ffnn_bn_noaffine", THREE, lambda seed, epoch: 1.0)
    gradients(tmp_path, "ffnn_bn", THREE, lambda seed, epoch: bad if (seed, epoch) == (67, 9) else 0.1)
    one = part(judged(tmp_path, "C2"), "affine on / off, h = 512")
    assert (one.verdict, one.n) == ("undecided", 2)
    assert one.value == pytest.approx(0.1, rel=1e-5)
    assert "seed=362" in one.missing
    assert any("left out" in detail and "seed=67" in detail for detail in one.details)


def test_a_run_off_the_protocol_does_not_count(tmp_path: Path) -> None:
    pair(tmp_path, 512, -2.0)
    for path in (tmp_path / "ffnn_bn").rglob("config.yaml"):
        reconfigure(path.parent, "max_epochs: 20", "max_epochs: 21")
    one = part(judged(tmp_path, "C2"), "affine on / off, h = 512")
    assert (one.verdict, one.n) == ("undecided", 0)
    assert "trainer.max_epochs is 21" in one.missing


@pytest.mark.parametrize(("ratio", "verdict"), [(0.5, "holds"), (0.05, "fails")])
def test_the_threshold_is_the_rules_(tmp_path: Path, ratio: float, verdict: str) -> None:
    pair(tmp_path, 512, -2.0)
    file = rules(tmp_path / "rules.yaml", claims__C2__ratio=ratio)
    assert part(judged(tmp_path, "C2", file), "affine on / off, h = 512").verdict == verdict


NAME = "\N{GREEK SMALL LETTER GAMMA}² in the change of the gain, h = 512"


@pytest.mark.parametrize(
    ("factors", "share", "verdict"),
    [
        (lambda epoch: (2.0 ** (-epoch / 19 * 3), 2.0 ** (-epoch / 19), 1.0), 0.75, "holds"),
        (lambda epoch: (1.0, 2.0 ** (-epoch / 19), 0.5), 0.0, "fails"),
        (lambda epoch: (2.0 ** (epoch / 19), 2.0 ** (-epoch / 19 * 3), 1.0), -0.5, "fails"),
        (lambda epoch: (2.0, 1.0, 1.0), None, "undecided"),
    ],
)
def test_the_share_of_the_scale_in_the_change_of_the_gain(
    tmp_path: Path, factors: Callable[[int], tuple[float, float, float]], share: float | None, verdict: str
) -> None:
    runs = pair(tmp_path, 512, 0.0)
    gains(runs, factors)
    one = part(judged(tmp_path, "C2"), NAME)
    assert (one.verdict, one.decides, one.n) == (verdict, False, 3)
    assert one.value == (None if share is None else pytest.approx(share, abs=1e-5))
    changes = [math.log2(end / start) for start, end in zip(factors(0), factors(19), strict=True)]
    assert f"log2 of the gain changed by {sum(changes):+.2f}" in one.details[0]
    assert f"² {changes[0]:+.2f}, 1/(v + ε) {changes[1]:+.2f}, p {changes[2] + 0.0:+.2f}" in one.details[0]


def test_gains_that_are_nan_are_left_out(tmp_path: Path) -> None:
    runs = pair(tmp_path, 512, 0.0)
    gains(runs[:2], lambda epoch: (2.0 ** (-epoch), 1.0, 1.0))
    gains(runs[2:], lambda epoch: (math.nan, 1.0, 1.0))
    one = part(judged(tmp_path, "C2"), NAME)
    assert (one.verdict, one.n, one.value) == ("undecided", 2, pytest.approx(1.0))
    assert any(detail.startswith("left out") for detail in one.details)
    assert "seed=362" in one.missing


@pytest.mark.parametrize(("closure", "n"), [(0.04, 3), (0.06, 2)])
def test_gains_whose_factors_do_not_multiply_to_them_are_left_out(tmp_path: Path, closure: float, n: int) -> None:
    runs = pair(tmp_path, 512, 0.0)
    gains(runs, lambda epoch: (2.0 ** (-epoch), 1.0, 1.0))
    frame = batchnorm_epochs(runs[0])
    shutil.rmtree(runs[0] / "batchnorm.parquet")
    frame.assign(closure=closure).to_parquet(runs[0] / "batchnorm_epochs.parquet")
    assert part(judged(tmp_path, "C2"), NAME).n == n


def test_the_compact_form_is_judged_alike(tmp_path: Path) -> None:
    gains(pair(tmp_path / "outputs", 512, -2.0), lambda epoch: (2.0 ** (-epoch), 1.0, 1.0))
    for run in read_evidence(tmp_path / "outputs").runs:
        write_compact(run, tmp_path / "results")
    assert not list((tmp_path / "results").rglob("spp.parquet"))
    claim = judged(tmp_path / "results", "C2")
    assert part(claim, "affine on / off, h = 512").verdict == part(claim, NAME).verdict == "holds"
    assert claim == judged(tmp_path / "outputs", "C2")
