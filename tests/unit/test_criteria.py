"""Exit criteria: what each takes, how they join, and how they are written."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collm.errors import PromptError
from collm.policy.coherence import CoherenceTracker
from collm.policy.criterion_spec import NAMES, Available, parse_criterion
from collm.policy.observation import Coherence, Criterion, Decision, Observation, Reading
from collm.policy.text_criteria import incoherence

CALIBRATED: Mapping[int, float | None] = {5: 0.9, 10: None, 15: 0.4}
SOUND = Coherence(tokens=30, mean_logprob=-0.4, window_logprob=-0.4, since_boundary=5)


class Recorded:
    """A learned criterion that takes every reading and keeps what it is told."""

    def __init__(self, path: str) -> None:
        self.name = f"learned:{path}"
        self.told: list[int] = []

    def decide(self, seen: Observation) -> Decision | None:
        return Decision(seen.last, self.name)

    def learn(self, seen: Observation, token_id: int) -> None:
        self.told.append(token_id)


AVAILABLE = Available(CALIBRATED, Recorded)


def criterion(spec: str) -> Criterion:
    return parse_criterion(spec, AVAILABLE)


def exit_at(
    confidence: float, *, token: int = 7, cut: int = 5, second: float = 0.0, entropy: float = 1.0
) -> Reading:
    return Reading(cut, token, confidence, second, entropy)


def takes(spec: str, *readings: Reading, text: Coherence = SOUND) -> bool:
    decision = criterion(spec).decide(Observation(readings, text))
    assert decision is None or decision.reading == readings[-1]
    return decision is not None


# ------------------------------------------------------------------------------- readings


@pytest.mark.parametrize(
    ("spec", "reading", "taken"),
    [
        ("confidence:0.8", exit_at(0.8), True),
        ("confidence:0.8", exit_at(0.79), False),
        ("confidence:0", exit_at(0.0), True),
        ("margin:0.5", exit_at(0.75, second=0.25), True),
        ("margin:0.5", exit_at(0.75, second=0.3), False),
        ("entropy:1.0", exit_at(0.1, entropy=1.0), True),
        ("entropy:1.0", exit_at(0.9, entropy=1.01), False),
        ("entropy:1.0", exit_at(0.9, cut=0, entropy=math.nan), False),
        ("risk", exit_at(0.9, cut=5), True),
        ("risk", exit_at(0.89, cut=5), False),
        ("risk", exit_at(1.0, cut=10), False),
        ("risk", exit_at(0.4, cut=15), True),
        ("risk", exit_at(1.0, cut=20), False),
        ("patience:1", exit_at(0.1), True),
        ("learned:a/b,c=d", exit_at(0.1), True),
    ],
)
def test_a_reading_is_taken_or_not(spec: str, reading: Reading, taken: bool) -> None:
    assert takes(spec, reading) is taken


@pytest.mark.parametrize(
    ("spec", "tokens", "taken"),
    [
        ("patience:2", [7], False),
        ("patience:2", [7, 7], True),
        ("patience:2", [7, 8], False),
        ("patience:2", [8, 7, 7], True),
        ("patience:3", [8, 7, 7], False),
        ("patience:2,confidence=0.4", [7, 7], False),
        ("patience:2,confidence=0.3", [7, 7], True),
    ],
)
def test_patience_waits_for_consecutive_exits_to_agree(
    spec: str, tokens: list[int], taken: bool
) -> None:
    readings = [exit_at(0.3, token=token, cut=5 * i) for i, token in enumerate(tokens, 1)]
    assert takes(spec, *readings) is taken


# ------------------------------------------------------------------------------- the text


def test_a_window_counts_what_came_before() -> None:
    good = Coherence(tokens=30, window_logprob=math.log(0.9))
    bad = Coherence(tokens=30, window_logprob=math.log(0.3))
    assert takes("window:0.7,over=8", exit_at(0.6), text=good)
    assert not takes("window:0.7,over=8", exit_at(0.9), text=bad)
    assert not takes("window:0.7,over=8", exit_at(0.05), text=good), "a hopeless token"
    assert takes("window:0.6,over=1", exit_at(0.6), text=bad), "only itself"
    assert takes("window:0.6", exit_at(0.6), text=Coherence()), "nothing before"


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        (SOUND, True),
        (Coherence(), False),
        (Coherence(tokens=4, repetition=0.6, since_boundary=1), False),
        (Coherence(tokens=40, drift=0.9, since_boundary=1), False),
        (Coherence(tokens=2, drift=0.9, since_boundary=1), True),
        (Coherence(tokens=40, window_logprob=-1.5, since_boundary=1), False),
        (Coherence(tokens=2, window_logprob=-1.5, since_boundary=1), True),
        (Coherence(tokens=40, entropy_trend=0.5, since_boundary=1), False),
        (Coherence(tokens=40, since_boundary=0), False),
    ],
)
def test_coherence_hands_over_where_the_text_falls_apart(text: Coherence, taken: bool) -> None:
    assert takes("coherence", exit_at(0.4), text=text) is taken


def test_a_sentence_begins_only_with_a_sure_token() -> None:
    start = Coherence(tokens=40, since_boundary=0)
    assert takes("coherence:boundary=0.5", exit_at(0.5), text=start)
    assert not takes("coherence:boundary=0.5", exit_at(0.4), text=start)
    assert takes("coherence:boundary=0", exit_at(0.0), text=start)


@given(
    st.builds(
        Coherence,
        tokens=st.integers(0, 100),
        window_logprob=st.floats(-20, 0),
        repetition=st.floats(0, 1),
        entropy_trend=st.floats(-2, 2),
        drift=st.floats(0, 1),
    ),
    st.floats(0, 1),
)
def test_hybrid_is_the_confidence_corrected_by_the_text(text: Coherence, confidence: float) -> None:
    assert takes("hybrid:0.6,weight=0", exit_at(confidence), text=text) == (confidence >= 0.6)
    assert takes("hybrid:0.6", exit_at(1.0), text=text)
    assert not takes("hybrid:0.6", exit_at(0.0), text=text)
    log_odds = math.log(0.6 / 0.4) + incoherence(text)
    needed = 1 / (1 + math.exp(-log_odds))
    assert takes("hybrid:0.6", exit_at(min(1.0, needed + 1e-6)), text=text)
    assert not takes("hybrid:0.6", exit_at(needed - 1e-6), text=text)


def test_hybrid_is_stricter_the_more_the_text_repeats_itself() -> None:
    def least(**signs: float) -> float:
        text = Coherence(tokens=40, since_boundary=100, **signs)  # type: ignore[arg-type]
        grid = (i / 1000 for i in range(1001))
        return next(c for c in grid if takes("hybrid:0.6", exit_at(c), text=text))

    needed = [least(repetition=r) for r in (0.0, 0.2, 0.4, 0.6, 1.0)]
    assert needed == sorted(needed)
    assert needed[0] == 0.6
    assert needed[-1] > 0.66
    assert least(drift=1.0) > least(drift=0.2) > 0.6


# ------------------------------------------------------------------------------ deadlines


@pytest.mark.parametrize(
    ("left", "next_exit", "cloud", "by"),
    [
        (math.inf, 0.01, math.inf, None),  # no deadline: as the inner one says
        (math.inf, math.inf, math.inf, None),
        (0.05, 0.01, 0.02, None),  # both fit
        (0.05, 0.01, 0.2, None),  # only the next exit does
        (0.05, 0.045, 0.03, None),  # either does: the exit, and then no cloud
        (0.05, 0.06, 0.2, "deadline"),
        (0.05, 0.06, 0.02, "deadline"),  # the cloud is asked after the exits only
        (0.05, math.inf, 0.02, None),  # the deepest exit: the cloud fits
        (0.05, math.inf, 0.2, "deadline"),
        (0.05, math.inf, math.inf, "deadline"),  # nobody else to ask
        (-0.01, 0.001, 0.001, "deadline"),
    ],
)
def test_a_deadline_goes_on_only_while_the_next_step_fits(
    left: float, next_exit: float, cloud: float, by: str | None
) -> None:
    seen = Observation((exit_at(0.3),), SOUND, left, next_exit, cloud)
    decision = criterion("deadline(confidence:0.6)").decide(seen)
    assert (decision and decision.by) == by


def test_a_deadline_takes_the_best_so_far_and_what_its_criterion_takes_first() -> None:
    readings = (exit_at(0.5, token=1), exit_at(0.3, token=2, cut=10))
    late = Observation(readings, SOUND, 0.0, 0.01, 0.1)
    decision = criterion("deadline(confidence:0.6)").decide(late)
    assert decision == Decision(readings[0], "deadline")
    decision = criterion("deadline(confidence:0.2)").decide(late)
    assert decision == Decision(readings[1], "confidence:0.2")


def test_a_deadline_keeps_its_margin() -> None:
    seen = Observation((exit_at(0.3),), SOUND, 0.05, 0.048, math.inf)
    assert criterion("deadline(confidence:0.6)").decide(seen) is None
    assert criterion("deadline(confidence:0.6):margin=0.005").decide(seen) is not None


@given(
    st.lists(st.floats(0.0005, 0.02), min_size=1, max_size=5),
    st.floats(0.001, 0.3),
    st.floats(0.021, 0.1),
)
def test_with_true_costs_a_deadline_is_met(steps: list[float], cloud: float, due: float) -> None:
    """Exits one after another, then the cloud; the first exit is always within the deadline."""
    rule, clock, readings = criterion("deadline(confidence:0.9)"), 0.0, []
    for index, step in enumerate(steps):
        clock += step
        readings.append(exit_at(0.1 * index, cut=index + 1))
        further = steps[index + 1] if index + 1 < len(steps) else math.inf
        seen = Observation(tuple(readings), SOUND, due - clock, further, cloud)
        if rule.decide(seen) is not None:
            break
    else:
        clock += cloud
    assert clock <= due + 1e-9


# ------------------------------------------------------------------------------- together


def test_all_parts_of_a_conjunction_take() -> None:
    rule = criterion("confidence:0.5 & margin:0.4")
    decision = rule.decide(Observation((exit_at(0.7, second=0.1),)))
    assert decision is not None
    assert decision.by == "confidence:0.5 & margin:0.4"
    assert rule.decide(Observation((exit_at(0.7, second=0.4),))) is None
    assert rule.decide(Observation((exit_at(0.45),))) is None


def test_the_first_part_of_a_choice_that_takes_is_named() -> None:
    rule = criterion("margin:0.5 | confidence:0.6 & entropy:2")
    named = [
        (exit_at(0.7), "margin:0.5"),
        (exit_at(0.6, second=0.4), "confidence:0.6 & entropy:2"),
        (exit_at(0.6, second=0.4, entropy=3), None),
    ]
    for reading, by in named:
        decision = rule.decide(Observation((reading,)))
        assert (decision and decision.by) == by


def test_what_the_full_model_says_reaches_every_part() -> None:
    made: list[Recorded] = []

    def learned(path: str) -> Criterion:
        made.append(Recorded(path))
        return made[-1]

    spec = "deadline(learned:a & (margin:0.5 | learned:b))"
    rule = parse_criterion(spec, Available(learned=learned))
    rule.learn(Observation((exit_at(0.5),)), 42)
    assert [part.told for part in made] == [[42], [42]]


# ------------------------------------------------------------------------------ as written


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("confidence:.80", "confidence:0.8"),
        (" margin : 0.5 ", "margin:0.5"),
        ("entropy:1.0", "entropy:1"),
        ("patience:2 , confidence = 0.4", "patience:2,confidence=0.4"),
        ("risk", "risk"),
        ("window:0.7", "window:0.7,over=8"),
        ("coherence:logprob=-1.5,drift=0.7", "coherence:logprob=-1.5"),
        ("hybrid:0.6", "hybrid:0.6,weight=1"),
        ("((risk))", "risk"),
        ("risk&risk|risk", "risk & risk | risk"),
        ("risk&(risk|risk)", "risk & (risk | risk)"),
        ("deadline (risk | margin:0.5)", "deadline(risk | margin:0.5)"),
        ("deadline(risk):margin=.005 | risk", "deadline(risk):margin=0.005 | risk"),
        ('learned:"my file" | risk', "learned:my file | risk"),
    ],
)
def test_a_criterion_is_named_in_one_way(spec: str, name: str) -> None:
    assert criterion(spec).name == name


_numbers = st.floats(0, 1, allow_subnormal=False)
_simple = st.one_of(
    st.builds("confidence:{!r}".format, _numbers),
    st.builds("patience:{},confidence={!r}".format, st.integers(1, 9), _numbers),
    st.builds("window:{!r},over={}".format, _numbers, st.integers(1, 16)),
    st.builds("coherence:drift={!r},logprob=-{!r}".format, _numbers, _numbers),
    st.builds("hybrid:{!r},weight={!r}".format, _numbers, _numbers),
    st.sampled_from(["risk", "coherence", "learned:models/policy.npz"]),
)
_specs = st.recursive(
    _simple,
    lambda part: st.one_of(
        st.builds("({}) & ({})".format, part, part),
        st.builds("({}) | {} | {}".format, part, part, part),
    ),
    max_leaves=6,
).flatmap(lambda spec: st.sampled_from([spec, f"deadline({spec}):margin=0.25"]))


@given(_specs)
def test_names_can_be_parsed_again(spec: str) -> None:
    name = criterion(spec).name
    assert criterion(name).name == name
    for confidence in (0.1, 0.5, 0.9):
        seen = Observation((exit_at(confidence),), SOUND, 0.0)
        assert criterion(name).decide(seen) == criterion(spec).decide(seen)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("confidense:0.8", "no criterion 'confidense'; expected one of confidence, margin"),
        ("confidence", "needs its threshold, as in confidence:0.8"),
        ("confidence:80", "threshold 80: expected a number from 0 to 1"),
        ("confidence:nan", "threshold nan"),
        ("confidence:high", "threshold 'high' is not a number"),
        ("confidence:0.8,over=3", "no parameter 'over=3'; it has threshold"),
        ("margin:-0.1", "expected a number from 0 to 1"),
        ("entropy:inf", "expected a number from 0 to 100"),
        ("patience:1.5", "expected a whole number"),
        ("window:0.5,over=17", "over 17: expected a whole number from 1 to 16"),
        ("coherence:0.5", "no parameter '0.5'; it has repetition"),
        ("hybrid:0.6,weight=-2", "weight -2"),
        ("risk:0.1", "no parameter '0.1'"),
        ("learned", "learned:PATH"),
        ("deadline:0.6", "deadline goes around another"),
        ("deadline(risk) & risk", "deadline cannot be joined by &"),
        ("(risk | deadline(risk)) & risk", "deadline cannot be joined by &"),
        ("confidence(risk)", "only deadline goes around"),
        ("(risk", "expected ), found its end"),
        ("risk risk", "expected & or | or the end, found 'risk'"),
        ("risk)", "found ')'"),
        ("(" * 5000, "use fewer"),
        ("risk |", "expected the name of a criterion"),
        ("& risk", "expected the name of a criterion, found '& risk'"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(spec: str, says: str) -> None:
    with pytest.raises(PromptError) as refused:
        criterion(spec)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(PromptError, match="run collm calibrate ARTIFACT --agreement"):
        parse_criterion("risk")
    with pytest.raises(PromptError, match="cannot be loaded here"):
        parse_criterion("learned:policy.npz")


@given(st.text("abcdeilnory:&|()=,.0159 \"'", max_size=30))
def test_any_text_is_a_criterion_or_a_prompt_error(spec: str) -> None:
    try:
        assert criterion(spec).name
    except PromptError as error:
        assert "\n" not in str(error)  # noqa: PT017 - nothing else may be raised


# -------------------------------------------------------------------------------- the cost

EXAMPLES = {
    "patience": "patience:2",
    "risk": "risk",
    "coherence": "coherence",
    "deadline": "deadline(hybrid:0.6 & coherence)",
    "learned": "confidence:0.5 & margin:0.2 | hybrid:0.6",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.timed
def test_deciding_is_cheap(name: str) -> None:
    """Far under 50 µs; the bound leaves room for a busy machine."""
    rule = criterion(EXAMPLES.get(name, f"{name}:0.6"))
    tracker = CoherenceTracker()
    for i in range(60):
        tracker.push(i, 0.7, 1.2)
    readings = tuple(exit_at(0.6 + cut / 100, cut=cut, entropy=0.5) for cut in (5, 10, 15))
    seen = Observation(readings, tracker.read(), 0.05, 0.002, 0.02)
    times = []
    for _ in range(500):
        started = time.perf_counter()
        rule.decide(seen)
        times.append(time.perf_counter() - started)
    print(f"{rule.name}: {statistics.median(times) * 1e6:.2f} µs")
    assert statistics.median(times) < 200e-6
