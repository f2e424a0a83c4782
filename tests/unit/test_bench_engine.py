"""The pure parts of `collm bench engine`: no model, no clock, no llama.cpp."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from collm.bench.agreement import Answer, cut_to
from collm.bench.contestants import Sample
from collm.bench.engine_report import EngineOptions, EngineReport, Result, compare
from collm.bench.engine_stages import default_exit
from collm.bench.engine_table import print_report
from collm.bench.failures import MissingPackage, require
from collm.bench.llama_cpp import CONFIGS
from collm.bench.llama_trial import Trial, best
from collm.bench.machine import this_machine
from collm.bench.reference import upto_end
from collm.bench.stats import Share
from collm.errors import UsageError


def samples(*seconds: float) -> list[Sample]:
    return [Sample(seconds=s, cpu_share=1.0) for s in seconds]


@pytest.fixture
def report() -> EngineReport:
    results = [
        Result.of("exact", "decode", samples(0.010, 0.011, 0.012)),
        Result.of("fast", "decode", samples(0.008, 0.008, 0.008)),
        Result.of("standalone exit@15", "decode", samples(0.004, 0.004, 0.004)),
        Result.of("llama.cpp", "decode", samples(0.022, 0.022, 0.022)),
        Result.of("exact", "prefill", samples(0.002)),
        Result.of("llama.cpp", "prefill", samples(0.001)),
    ]
    trials = [Trial(config=c, decode_seconds=0.02, prefill_seconds=0.01) for c in CONFIGS]
    return EngineReport(
        machine=this_machine(),
        llama_system="CPU : AVX2 = 1",
        artifact="art",
        model="tiny",
        weights="int4",
        fingerprint="f" * 64,
        gguf="tiny.gguf",
        same_source=False,
        options=EngineOptions(rounds=3),
        exit_cut=15,
        prompt_tokens=40,
        trials=trials,
        llama_decode=CONFIGS[0],
        llama_prefill=CONFIGS[1],
        load_before=0.1,
        load_after=0.2,
        results=results,
        ratios=compare(results, "exact", "fast", "llama.cpp", "standalone exit@15"),
        agreement={"exact": Share(hits=980, total=1000)},
    )


def test_ours_is_compared_with_llama_and_standalone_with_full_depth(report: EngineReport) -> None:
    found = {(c.task, c.name, c.baseline): c.ratio.of_medians for c in report.ratios}
    assert found == {
        ("decode", "exact", "llama.cpp"): pytest.approx(2.0),
        ("decode", "fast", "llama.cpp"): pytest.approx(2.75),
        ("decode", "standalone exit@15", "llama.cpp"): pytest.approx(5.5),
        ("prefill", "exact", "llama.cpp"): pytest.approx(0.5),
        ("decode", "standalone exit@15", "fast"): pytest.approx(2.0),
        ("decode", "standalone exit@15", "exact"): pytest.approx(2.75),
    }


def test_without_an_exit_nothing_is_compared_with_it(report: EngineReport) -> None:
    left = [r for r in report.results if not r.name.startswith("standalone")]
    names = {c.name for c in compare(left, "exact", "fast", "llama.cpp", "standalone exit@None")}
    assert names == {"exact", "fast"}


def test_the_table_shows_speeds_ratios_and_a_foreign_file(report: EngineReport) -> None:
    out = io.StringIO()
    print_report(Console(file=out, width=160), report)
    text = out.getvalue()
    for expected in ("90.9", "11.00", "2.75", "98.0%", "not what the artifact was built from"):
        assert expected in text


def test_the_report_is_json(report: EngineReport) -> None:
    data = json.loads(json.dumps(report.to_json()))
    assert data["results"][0]["rounds"] == [0.010, 0.011, 0.012]
    assert data["agreement"]["exact"]["share"] == 0.98
    assert data["llama_decode"] == {"flash_attention": True, "mmap": True}


def test_llama_gets_the_best_configuration_for_each_task() -> None:
    trials = [
        Trial(config=CONFIGS[0], decode_seconds=2.0, prefill_seconds=0.5),
        Trial(config=CONFIGS[1], decode_seconds=1.0, prefill_seconds=0.6),
    ]
    assert best(trials) == (CONFIGS[1], CONFIGS[0])


@pytest.mark.parametrize(
    ("cuts", "layers", "chosen"), [((5, 10, 15, 20), 30, 15), ((2, 9), 12, 9), ((), 30, None)]
)
def test_the_exit_nearest_to_the_middle_is_taken(
    cuts: tuple[int, ...], layers: int, chosen: int | None
) -> None:
    assert default_exit(cuts, layers) == chosen


@pytest.mark.parametrize(
    ("lengths", "tokens", "left"),
    [
        ((5, 5, 5), 9, (3, 3, 3)),
        ((5, 5, 5), 10, (4, 3, 3)),
        ((1, 9, 9), 10, (1, 5, 4)),
        ((2, 3), 100, (2, 3)),
        ((4, 4), 1, (1,)),
    ],
)
def test_answers_are_cut_to_the_tokens_wanted(
    lengths: tuple[int, ...], tokens: int, left: tuple[int, ...]
) -> None:
    answers = [Answer(prompt=[0], answer=list(range(n))) for n in lengths]
    assert tuple(len(a.answer) for a in cut_to(answers, tokens)) == left


def test_an_answer_ends_with_its_first_end_of_text() -> None:
    assert upto_end([5, 6, 2, 7, 2], [0, 2]) == [5, 6, 2]
    assert upto_end([5, 6], [0, 2]) == [5, 6]


def test_a_missing_package_is_one_line_that_says_what_to_install() -> None:
    require("json")
    with pytest.raises(MissingPackage, match=r"no_such_baseline.*collm\[bench\]") as caught:
        require("json", "no_such_baseline")
    assert isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value)
