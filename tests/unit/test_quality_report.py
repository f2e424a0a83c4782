"""Settings as they are written, intervals, plots, and `collm eval quality` refusing in one line."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.corpora import random_corpus
from tests.support import random_artifact

from collm.bench.quality_plot import PUBLISHED, Point, draw_plots, pareto_front, points
from collm.bench.quality_report import ALL, FIGURES, QualityReport, SettingReport
from collm.bench.quality_settings import (
    BASELINE,
    Setting,
    cross_settings,
    parse_setting,
    with_baseline,
)
from collm.bench.stats import Interval, bootstrap
from collm.cli.eval_quality import choose_settings, read_items
from collm.cli.main import main
from collm.config import Refinement
from collm.errors import PromptError
from collm.policy.calibration import Rows, agreement_interval

DEFAULTS = Setting(mode="threshold", placement=15)


# -------------------------------------------------------------------------------- settings


def test_a_setting_is_read_and_written_in_the_same_words() -> None:
    made = parse_setting(
        'threshold criterion="window:0.7,over=8 & coherence" wire=f16 exits=15,5 placement=20 '
        "first_cut=5 deadline=50",
        DEFAULTS,
    )
    assert made == Setting(
        mode="threshold", placement=20, exits=(5, 15), wire="f16", first_cut=5, deadline=50.0,
        criterion="window:0.7,over=8 & coherence",
    )  # fmt: skip
    assert made.label == (
        "threshold window:0.7,over=8 & coherence exits=5,15 wire=f16 first_cut=5 deadline=50.0"
    )
    generation = made.generation(96)
    assert (generation.max_tokens, generation.deadline_seconds) == (96, 0.05)
    assert generation.criterion == made.criterion and generation.mode == "threshold"
    assert parse_setting("verified lookup=yes name=looked", DEFAULTS).label == "looked"
    refine = parse_setting("refine segment=16 gap=0.5", DEFAULTS).generation(8).refinement
    assert refine == Refinement(segment=16, gap=0.5)
    assert parse_setting("cloud", DEFAULTS) == BASELINE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected a mode"),
        ("clever", "mode 'clever'"),
        ("cloud wire=f16", "cloud takes no values"),
        ("threshold wires=f16", "expected name=value"),
        ("threshold f16", "expected name=value"),
        ("threshold exits=five", "layers such as 5,15"),
        ("threshold draft=1 draft=2", "twice"),
        ("verified deadline=50", "threshold"),
        ("standalone lookup=yes", "verified"),
        ("verified lookup=perhaps", "yes or no"),
        ("refine segment=0", "1 to 255"),
        ('threshold criterion="a', "quotation"),
    ],
)
def test_settings_that_cannot_be(text: str, expected: str) -> None:
    with pytest.raises(PromptError) as caught:
        parse_setting(text, DEFAULTS)
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_criteria_go_where_they_decide_the_text() -> None:
    two = ["confidence:0.8", "hybrid:0.6"]
    made = cross_settings(["verified", "threshold", "refine", "standalone"], two, DEFAULTS)
    assert [s.label for s in made] == [
        "verified", "threshold confidence:0.8", "threshold hybrid:0.6", "refine",
        "standalone confidence:0.8", "standalone hybrid:0.6",
    ]  # fmt: skip
    made = cross_settings(["cloud", "verified"], two, DEFAULTS)
    assert [s.label for s in made] == ["cloud", "verified confidence:0.8", "verified hybrid:0.6"]


def test_the_baseline_is_always_there_and_nothing_twice() -> None:
    deep = Setting(mode="verified", placement=20)
    shallow = Setting(mode="verified", placement=5)
    made = with_baseline([deep, BASELINE, deep, shallow])
    assert [s.label for s in made] == ["cloud", "verified", "verified placement=5"]
    with pytest.raises(PromptError, match="two settings are called 'a'"):
        with_baseline([parse_setting(f"verified name=a draft={n}", DEFAULTS) for n in (1, 2)])


def test_modes_are_left_out_where_settings_are_written_out() -> None:
    modes = [s.mode for s in choose_settings(None, [], [], DEFAULTS)]
    assert modes == ["cloud", "verified", "threshold", "refine", "standalone"]
    written = choose_settings(None, [], ["refine gap=1"], DEFAULTS)
    assert [s.label for s in written] == ["cloud", "refine gap=1.0"]
    both = choose_settings("standalone", ["risk"], ["refine gap=1"], DEFAULTS)
    assert [s.label for s in both] == ["cloud", "standalone risk", "refine gap=1.0"]
    with pytest.raises(PromptError, match="--criterion goes with --modes"):
        choose_settings(None, ["risk"], ["refine"], DEFAULTS)


# ------------------------------------------------------------------------------- intervals


def test_the_interval_of_a_ratio_is_the_one_of_whole_texts() -> None:
    random = np.random.default_rng(3)
    texts = [
        Rows(confidence=np.zeros(n, np.float32), right=random.random(n) < 0.7)
        for n in random.integers(5, 40, 30)
    ]
    columns = np.array([(t.right.sum(), len(t)) for t in texts], np.float64)
    found = bootstrap(columns, lambda sums: sums[:, 0] / sums[:, 1])
    assert found is not None and (found.low, found.high) == agreement_interval(texts)
    assert found.value == columns[:, 0].sum() / columns[:, 1].sum()


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    """Of 300 intervals of a mean of 40 about 93 % should; under 85 % has odds below 1e-6."""
    random = np.random.default_rng(5)
    covered = 0
    for _ in range(300):
        columns = np.stack([random.exponential(2.0, 40), np.ones(40)], axis=1)
        found = bootstrap(columns, lambda sums: sums[:, 0] / sums[:, 1], resamples=400)
        assert found is not None and found.low is not None and found.high is not None
        covered += found.low <= 2.0 <= found.high
    assert covered / 300 > 0.85


def test_figures_of_nothing_and_of_one_prompt() -> None:
    def ratio(sums: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        return np.asarray(sums[:, 0] / sums[:, 1])

    assert bootstrap(np.zeros((3, 2)), ratio) is None
    assert bootstrap(np.zeros((0, 2)), ratio) is None
    assert bootstrap(np.array([[1.0, 2.0]]), ratio) == Interval(value=0.5, low=None, high=None)
    found = bootstrap(np.array([[1.0, 2.0], [0.0, 0.0]]), ratio)
    assert found == Interval(value=0.5, low=0.5, high=0.5)


# ----------------------------------------------------------------------------------- plots


def setting_report(mode: str, saved: float | None, quality: float) -> SettingReport:
    figures: dict[str, Interval | None] = dict.fromkeys(f.name for f in FIGURES)
    if saved is not None:
        spread = Interval(value=saved, low=saved - 0.1, high=saved + 0.05)
        figures |= {"saved_flops": spread, "saved_time": spread}
    figures["agreement"] = Interval(value=quality, low=quality - 0.02, high=quality)
    figures["mean_logprob"] = Interval(value=quality - 1, low=None, high=None)
    setting = Setting(mode=mode, placement=2)
    return SettingReport(
        label=mode, setting=setting, domain=ALL, prompts=3, figures=figures, differences={}
    )


def test_the_pareto_front_has_no_point_that_another_beats() -> None:
    found = [
        setting_report(*one)
        for one in (
            ("cloud", 0.0, 1.0), ("verified", 0.4, 1.0), ("threshold", 0.6, 0.9),
            ("refine", 0.5, 0.8), ("standalone", 1.0, 0.5), ("standalone", None, 0.7),
        )
    ]  # fmt: skip
    made = points(found, "saved_flops", "agreement")
    assert [p.number for p in made] == [1, 2, 3, 4, 5]
    work = made[1].x
    assert work.value == pytest.approx(0.6)
    assert (work.low, work.high) == (pytest.approx(0.55), pytest.approx(0.7))
    front = pareto_front(made)
    assert [p.mode for p in front] == ["standalone", "threshold", "verified"]
    for point in made:
        beaten = [p for p in front if p.x.value <= point.x.value and p.y.value >= point.y.value]
        assert beaten
    assert pareto_front([]) == []
    same = Interval(value=0.5, low=None, high=None)
    assert len(pareto_front([Point(1, "refine", same, same)] * 2)) == 1


def test_plots_are_drawn_for_every_domain(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    class Drawn:
        model, domains = "tiny", ("code", ALL)

        def of(self, domain: str) -> list[SettingReport]:
            return [setting_report(*one) for one in (("cloud", 0.0, 1.0), ("refine", 0.5, 0.8))]

    report: QualityReport = Drawn()  # type: ignore[assignment]
    written = draw_plots(report, tmp_path / "plots")
    assert [path.name for path in written] == [
        "quality-flops-code.png", "quality-time-code.png",
        "quality-flops-all.png", "quality-time-all.png",
    ]  # fmt: skip
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
    assert dict(PUBLISHED) == {"Alpaca": 0.695, "XSum": 0.845}


# ----------------------------------------------------------------------------- the command


def test_a_corpus_gives_prompts_from_its_held_out_part(tmp_path: Path) -> None:
    artifact = random_artifact(tmp_path / "artifact", cuts=(1, 2))
    items = read_items(random_corpus(tmp_path / "corpus.jsonl", artifact), artifact)
    assert len(items) == 8
    for item in items:  # text that no model wrote: its first half, and how it goes on
        assert math.isclose(len(item.ids), 12, abs_tol=8) and item.reference and not item.is_chat


def test_what_cannot_be_run_is_refused_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = random_artifact(tmp_path / "artifact", cuts=(1, 2)).folder
    data = tmp_path / "p.jsonl"
    data.write_text('{"prompt": "Hi"}\n')

    def refuses(*arguments: str | Path) -> str:
        words = ["collm", "eval", "quality", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == 2 and said.out == ""
        assert said.err.startswith("error: ") and said.err.count("\n") == 1
        return said.err

    assert "no/such" in refuses("no/such", "--data", data)
    assert "No such file" in refuses(artifact, "--data", tmp_path / "none")
    assert "clever" in refuses(artifact, "--data", data, "--modes", "clever")
    assert "name=value" in refuses(artifact, "--data", data, "--setting", "refine now")
    assert "hunch" in refuses(
        artifact, "--data", data, "--criterion", "hunch:0.5", "--modes", "threshold"
    )
    assert "--domain code" in refuses(artifact, "--data", data, "--domain", "code")
    assert "'refine'" in refuses(artifact, "--data", data, "--against", "refined")
    assert "folder" in refuses(artifact, "--data", data, "--out", data)
    assert "folder" in refuses(artifact, "--data", data, "--plot", data)
    assert "--exits" in refuses(artifact, "--data", data, "--exits", "two")
