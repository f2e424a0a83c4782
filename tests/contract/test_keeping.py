"""Conversations that are taken up again: the text is what it would be without, bit for bit."""

from __future__ import annotations

import gc
import random
import weakref
from dataclasses import replace
from itertools import islice

import pytest
from tests.contract.test_session_contract import LIMITS, World, artifact, world
from tests.support import token_ids

from collm.config import Generation, Sampling, Way
from collm.session.edge import Edge, Shared
from collm.session.events import Account
from collm.session.keeping import Keeper

__all__ = ["artifact", "world"]

WARM = Sampling(temperature=0.9, top_p=0.95, seed=11)
EXACT = (
    ("verified", 2, None),
    ("verified", 2, 0.0),
    ("verified", 0, None),
    ("cloud", 0, None),
    ("verified", 4, None),
)


def keeper(**changes: float) -> Keeper:
    return Keeper(**{"most": 8, "most_bytes": 2**30, "most_seconds": 60.0, **changes})  # type: ignore[arg-type]


def edge_of(
    world: World, mode: str, placement: int, kept: Keeper | None, **options: object
) -> Edge:
    return world.edge(mode, placement, shared=Shared(keeper=kept), **options)


def ask(edge: Edge, ids: list[int], made: Generation) -> Account:
    return edge.answer(ids, replace(made, mode=edge.mode)).finish()


@pytest.mark.parametrize("sampling", [Sampling(), WARM], ids=["greedy", "sampled"])
@pytest.mark.parametrize(("mode", "placement", "ahead"), EXACT)
def test_turns_of_a_conversation_give_the_text_of_fresh_sessions(
    world: World, mode: str, placement: int, sampling: Sampling, ahead: float | None
) -> None:
    made = Generation(max_tokens=12, sampling=sampling, ignore_eos=True, threshold=0.05)
    made = replace(made, ahead=ahead, mode="verified") if mode == "verified" else made
    rng = random.Random(f"{mode} {placement}")
    with keeper() as kept:
        edge, fresh = edge_of(world, mode, placement, kept), edge_of(world, mode, placement, None)
        ids, reused = token_ids(3, 12), []
        for turn in range(8):
            said = ask(edge, ids, made)
            again = ask(fresh, ids, made)
            assert said.token_ids == again.token_ids, turn
            reused.append(said.reused_tokens)
            assert again.reused_tokens == 0
            kind = turn % 3
            if kind == 0:  # the conversation goes on
                ids = [*ids, *said.token_ids, *token_ids(turn, 5)][-40:] if turn > 4 else [
                    *ids, *said.token_ids, *token_ids(turn, 3)
                ]  # fmt: skip
            elif kind == 1:  # the same again
                ids = list(ids)
            else:  # another branch
                ids = [*ids[: rng.randrange(9, len(ids))], *token_ids(turn, 4)]
        assert sum(count > 0 for count in reused) >= 4, reused
        assert reused[1] >= 12 + 11 and reused[2] >= len(token_ids(3, 12))


@pytest.mark.parametrize("mode", ["threshold", "refine", "standalone"])
def test_other_modes_go_on_too_and_say_what_they_would_anew(world: World, mode: str) -> None:
    """The same request, the same text: what a row made alone rounds otherwise is not kept."""
    made = Generation(
        max_tokens=10, ignore_eos=True, threshold=0.1, criterion="coherence | confidence:0.1"
    )
    for seed in range(6):
        with keeper() as kept:
            edge, fresh = edge_of(world, mode, 2, kept), edge_of(world, mode, 2, None)
            ids = token_ids(seed, 15 + seed)
            first = ask(edge, ids, made)
            again = ask(edge, ids, made)
            assert again.reused_tokens >= len(ids) - 2
            longer = [*ids, *first.token_ids, 7, 8, 9]
            second = ask(edge, longer, made)
            assert second.reused_tokens >= len(ids) - 2
            if mode != "standalone":
                assert second.bytes_up < first.bytes_up + 14 * 40  # the prompt did not go up again
            assert _said(first) == _said(again) == _said(ask(fresh, ids, made))
            assert _said(second) == _said(ask(fresh, longer, made))


def _said(account: Account) -> list[tuple[int, str, float | None]]:
    return [(one.token_id, one.source, one.confidence) for one in account.tokens]


class ToCloud:
    """Leaves the rest to the cloud at the first verify boundary."""

    def __init__(self) -> None:
        self.is_done = False

    def way(self, *_: object) -> Way | None:
        self.is_done, was = True, self.is_done
        return None if was else Way(mode="cloud", placement=0, wire="ids")

    def judged(self, *_: object) -> None:
        """See `run.Steer`."""

    unusable = token = judged


def test_rows_that_went_up_inexactly_serve_no_exact_answer(world: World) -> None:
    made = Generation(max_tokens=8, ignore_eos=True, threshold=0.05)
    for wire, serves in (("int4", False), ("f32", True)):
        with keeper() as kept:
            edge, cloud = (
                edge_of(world, "verified", 3, kept, wire=wire),
                edge_of(world, "cloud", 0, kept),
            )
            ids = token_ids(4, 30)
            said = edge.answer(ids, made, steer=ToCloud()).finish()
            longer = [*ids, *said.token_ids, 4, 5]
            after = ask(cloud, longer, made)
            assert (after.reused_tokens > 0) == serves
            alone = ask(edge_of(world, "cloud", 0, None), longer, made)
            assert _said(after) == _said(alone)


def test_blocks_that_were_given_up_are_not_held_for_later(world: World) -> None:
    made = Generation(max_tokens=6, ignore_eos=True, threshold=0.05)
    with keeper() as kept:
        edge = edge_of(world, "verified", 3, kept)
        under_way = edge.answer(token_ids(2, 20), made)
        next(iter(under_way))
        ask(edge, token_ids(1, 20), made)
        assert len(kept) == 1
        old = weakref.ref(edge.stage.chains[-1])  # type: ignore[union-attr]
        edge.place(2)
        assert len(kept) == 0
        under_way.finish()
        assert len(kept) == 0  # nor what was begun before
        del under_way
        gc.collect()
        assert old() is None


def test_an_answer_that_begins_twice_counts_the_second_time(world: World) -> None:
    """What the first session had counted is not subtracted from another's."""
    made = Generation(max_tokens=6, ignore_eos=True, threshold=0.05)
    with keeper() as kept:
        edge = edge_of(world, "verified", 2, kept)
        first = ask(edge, token_ids(1, 20), made)
        answer = edge.answer([*token_ids(1, 20), *first.token_ids], made)
        with answer._run.begin(cut=2, stage=edge.stage):
            pass
        kept.close()
        account = answer.finish()
    assert account.reused_tokens == 0
    assert account.bytes_down > 0 and account.cloud_rows >= 20


def test_an_answer_broken_off_can_be_gone_on_with(world: World) -> None:
    made = Generation(max_tokens=24, ignore_eos=True, threshold=0.0)
    with keeper() as kept:
        edge, fresh = edge_of(world, "verified", 2, kept), edge_of(world, "verified", 2, None)
        ids = token_ids(6, 12)
        answer = edge.answer(ids, made)
        begun = [piece.token.token_id for piece in islice(answer, 5)]
        answer.__iter__().close()
        assert len(kept) == 1
        longer = [*ids, *begun, 4, 5]
        said = ask(edge, longer, made)
        assert said.reused_tokens == 12 + 4  # the last one had not been run yet
        assert said.token_ids == ask(fresh, longer, made).token_ids


def test_a_cloud_alone_that_was_broken_off_is_not_taken_up(world: World) -> None:
    with keeper() as kept:
        edge = edge_of(world, "cloud", 0, kept)
        answer = edge.answer(token_ids(6, 12), Generation(mode="cloud", max_tokens=60))
        next(iter(answer))
        answer.__iter__().close()
        assert len(kept) == 0  # it is writing on, and nobody listens


def test_a_stop_token_leaves_the_cloud_alone_in_order(world: World) -> None:
    with keeper() as kept:
        edge, fresh = edge_of(world, "cloud", 0, kept), edge_of(world, "cloud", 0, None)
        ids, made = token_ids(8, 12), Generation(mode="cloud", max_tokens=40, ignore_eos=True)
        said = ask(fresh, ids, made).token_ids
        edge.tokenizer.eos_ids = fresh.tokenizer.eos_ids = frozenset({said[6]})
        short = replace(made, ignore_eos=False)
        first = ask(edge, ids, short)
        assert first.finish_reason == "stop" and first.token_ids == said[: said.index(said[6])]
        longer = [*ids, *first.token_ids, 9, 9, 3]
        second = ask(edge, longer, short)
        assert second.reused_tokens > 12
        assert second.token_ids == ask(fresh, longer, short).token_ids


def test_what_the_cloud_has_forgotten_is_told_again(world: World) -> None:
    made = Generation(max_tokens=10, ignore_eos=True, threshold=0.05)
    with keeper() as kept:
        edge, fresh = edge_of(world, "verified", 2, kept), edge_of(world, "verified", 2, None)
        ids = token_ids(9, 16)
        first = ask(edge, ids, made)
        for conversation in world.service.opened:
            if conversation._held is not None:
                with conversation._held.lock:
                    conversation._held.drop()  # as where another session needed its memory
        longer = [*ids, *first.token_ids, 1, 2]
        second = ask(edge, longer, made)
        assert second.reused_tokens > 0
        assert second.token_ids == ask(fresh, longer, made).token_ids


def test_a_system_prompt_in_common_takes_nobodys_caches(world: World) -> None:
    made = Generation(max_tokens=4, ignore_eos=True)
    system, mine, yours = token_ids(1, 12), token_ids(2, 20), token_ids(3, 20)
    with keeper() as kept:
        edge = edge_of(world, "verified", 2, kept)
        first = ask(edge, [*system, *mine], made)
        assert ask(edge, [*system, *yours], made).reused_tokens == 0
        second = ask(edge, [*system, *mine, *first.token_ids, 3, 4], made)
        assert second.reused_tokens >= 32


def test_too_many_bytes_and_seconds_let_go(world: World) -> None:
    now = [0.0]
    kept = Keeper(most=2, most_bytes=2**30, most_seconds=10.0, clock=lambda: now[0])
    with kept:
        edge = edge_of(world, "verified", 2, kept)
        made = Generation(max_tokens=4, ignore_eos=True)
        for seed in range(4):
            ask(edge, token_ids(seed, 20), made)
            now[0] += 4
        assert len(kept) == 2 and kept.bytes > 0
        assert ask(edge, [*token_ids(0, 20), 1], made).reused_tokens == 0
        assert ask(edge, [*token_ids(3, 20), 1], made).reused_tokens > 0
        now[0] += 11
        kept.expire()
        assert len(kept) == 0
    ask(edge, token_ids(0, 20), made)
    assert len(kept) == 0  # closed: nothing is kept any more


def test_a_session_that_its_cloud_would_soon_end_is_not_taken_up(world: World) -> None:
    made = Generation(max_tokens=4, ignore_eos=True)
    with keeper() as kept:
        edge = edge_of(world, "verified", 2, kept)
        ids = token_ids(1, 20)
        first = ask(edge, ids, made)
        assert ask(edge, ids, made).reused_tokens == 19
        (one,), (held,) = kept._kept, world.service.sessions._entries.values()
        assert one.client is not None
        one.client._began_at -= 0.6 * LIMITS.lifetime_seconds
        held.born_at -= 2 * LIMITS.lifetime_seconds  # it would end in mid-answer
        again = ask(edge, ids, made)
        assert again.token_ids == first.token_ids and again.reused_tokens == 0
        assert ask(edge, ids, made).reused_tokens == 19


def test_a_full_cloud_gets_the_room_of_what_is_kept(world: World) -> None:
    made = Generation(max_tokens=4, ignore_eos=True)
    with keeper(most=1000) as kept:
        edge = edge_of(world, "verified", 2, kept)
        for seed in range(LIMITS.max_sessions + 3):
            assert len(ask(edge, token_ids(seed, 20), made).token_ids) == 4
        assert len(kept) <= LIMITS.max_sessions
