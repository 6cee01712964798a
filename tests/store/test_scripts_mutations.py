"""Each line of the scripts, made wrong on purpose: the models must notice.

A sample of the mutants in short lives, another one whenever a script changes: half of it must be noticed,
where four of five are usual. With ``METERKIT_ALL_MUTANTS=1`` each mutant lives as long as it takes, and each
must be noticed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import pytest

from servers.stores import Server
from store import delivery_checks
from store.audit_driver import Folding, Rebuilding
from store.delivery_driver import Delivery
from store.delivery_lines import Lining
from store.delivery_worlds import Overtaking, Recalling, Refusing, Repricing, Restoring, Stranding
from store.moving import Moving
from store.script_allotting import AllotWorld, PaidAllotWorld
from store.script_driver import (
    AgingWorld,
    FullWorld,
    MonthWorld,
    PaidWorld,
    RollingWorld,
    SharesWorld,
    TurnWorld,
    World,
)
from store.script_formulas import FormulaWorld
from store.script_gauges import GaugeWorld, KeepingWorld, RepeatWorld
from store.script_lives import Lives, Mutated
from store.script_mutants import CONSTANTS, MORE_SWAPS, equivalents, in_depth, is_sampled, source, wrongs
from store.script_objects import ObjectsWorld
from store.script_queues import Queueing
from store.script_spend import PaidRowsSpendWorld, PaidSpendWorld, RowsSpendWorld, SpendWorld
from store.script_subjects import DayWorld, HourWorld, SubjectWorld
from store.script_top_ups import TopUps
from store.script_wires import CLOCK, clock_answers, server_wire

PLAIN: Final[Lives] = ((World, 0), (World, 1), (World, 2))
PAID: Final[Lives] = tuple((PaidWorld, seed) for seed in (0, 1, 2, 11, 12))
AGING: Final[Lives] = ((AgingWorld, 0), (AgingWorld, 2))
SHARES_OF_PLANS: Final[Lives] = ((SharesWorld, 0), (SharesWorld, 1))
ROLLING: Final[Lives] = tuple((RollingWorld, seed) for seed in range(4))
FURTHER: Final[Lives] = ((RepeatWorld, 0), (GaugeWorld, 0), (RepeatWorld, 1))
SPENDING: Final[Lives] = ((PaidSpendWorld, 0), (SpendWorld, 0), (PaidSpendWorld, 1))
ROWS: Final[Lives] = tuple((kind, seed) for seed in (0, 1) for kind in (RowsSpendWorld, PaidRowsSpendWorld))
GAUGES: Final = tuple((kind, n) for n in range(3) for kind in (GaugeWorld, KeepingWorld, RepeatWorld))
SUBJECTS: Final[Lives] = ((HourWorld, 0), (SubjectWorld, 1), (DayWorld, 2))
ALLOTTING: Final[Lives] = tuple((AllotWorld, seed) for seed in range(3))
PAID_ALLOTTING: Final[Lives] = tuple((PaidAllotWorld, seed) for seed in range(3))
BOTH_ALLOTTING: Final = tuple((kind, n) for n in range(3) for kind in (AllotWorld, PaidAllotWorld))
FORMULAS: Final[Lives] = ((FormulaWorld, 0),)
OBJECTS: Final[Lives] = tuple((ObjectsWorld, seed) for seed in range(3))
DELIVERY: Final[Lives] = ((Delivery, 0), (Delivery, 1))
OVERTAKING: Final[Lives] = ((Overtaking, 5),)
STRANDING: Final[Lives] = ((Stranding, 6), *DELIVERY)
LINING: Final[Lives] = ((Lining, 0), (Lining, 1))
RESTORING: Final[Lives] = ((Restoring, 4), (Repricing, 7))
EVERYTHING: Final[Lives] = (
    *(PAID[0], *FURTHER[:2], SPENDING[0], *PLAIN, *PAID[1:]),
    *(*FURTHER[2:], *SPENDING[1:], *ROWS[:2]),
)


def included(names: str, lives: Lives) -> Mapping[str, Lives]:
    return dict.fromkeys((f"include/{name}.lua" for name in names.split()), lives)


DECIDING: Final = Mutated(
    equivalents="script_equivalents.txt",
    steps=5000,
    sample=6,
    counts=True,
    lives={
        **dict.fromkeys(("decide.lua", "settle.lua"), EVERYTHING + SUBJECTS[:1]),
        **included("check_rates check_ceilings report_refusal read_options classify_units", EVERYTHING),
        **included("report_units", EVERYTHING + FORMULAS),
        **included(
            "unpack_head unpack_rate unpack_meter unpack_extras live_holds release_hold correct_rate"
            " take_number find_backdated_period count_backdated_units crossed_thresholds queue_notices"
            " close_period read_counters read_meter are_whole_numbers pack_meter schedule_seal"
            " write_counters count_recorded compare_event apply_options notify_handlers",
            PLAIN + PAID,
        ),
        **included("correct_rates", PLAIN + PAID + SPENDING[:1] + FORMULAS),
        **included("advance_rate", (*PLAIN, *PAID, (MonthWorld, 0))),
        **included("confirm_view", (*PLAIN, *PAID, (TurnWorld, 0))),
        **included("forget_periods", AGING + PLAIN + PAID),
        CONSTANTS: (*PLAIN, *PAID, *FURTHER[:1], *SPENDING[:1], *ROWS[:1]),
        "add_grant.lua": (*PAID, (FullWorld, 0)),
        "void_grants.lua": PAID,
        **included(
            "parse_grant read_grants add_recurring_grants trim_grants pays_before sum_grants"
            " grant_balance format_balance hold_backed spend_grants pay_with_grants archive_grant"
            " write_grants plan_repayment repay_debts parse_debt write_debt format_grant"
            " store_balance",
            PAID,
        ),
        **included("plan_repayment trim_grants pay_with_grants", PAID + SHARES_OF_PLANS),
        **included("read_funds", PAID + SHARES_OF_PLANS + ROLLING),
        **included(
            "add_recurring_grants read_grants grant_balance write_grants", PAID + SHARES_OF_PLANS + ROLLING
        ),
        **included("keep_ended roll_over write_rolled add_once", ROLLING),
        **included("cost_of_units count_spend", SPENDING),
        **included("cost_of_overage", ROWS + FORMULAS),
        **included("check_budgets", SPENDING + ROWS),
        **included("extend_ceilings", (SPENDING[0], *PAID, SPENDING[2])),
        **included("free_credit", (SPENDING[0], *PAID, SPENDING[2], *FORMULAS)),
    },
)
REBUILDING: Final = Mutated(
    equivalents="audit_equivalents.txt",
    swaps=MORE_SWAPS,
    steps=800,
    sample=12,
    counts=True,
    lives={
        **dict.fromkeys(
            (
                "rebuild_counters.lua",
                *(
                    f"include/{name}.lua"
                    for name in (
                        "park_rebuilt",
                        "store_rebuilt_counts",
                        "store_rebuilt_intents",
                        "forget_periods",
                    )
                ),
            ),
            ((Rebuilding, 1),),
        ),
        **dict.fromkeys(("fold_audit.lua", "unfold_audit.lua"), ((Folding, 1),)),
    },
)
GAUGING: Final = Mutated(
    equivalents="script_equivalents_gauges.txt",
    steps=2500,
    sample=8,
    lives={
        "set_level.lua": GAUGES,
        **included(
            "check_gauges unpack_presigned unpack_level level_state restate_levels write_level find_repeat"
            " remember_until end_in_flight",
            GAUGES,
        ),
    },
)
OF_SUBJECTS: Final = Mutated(
    equivalents="script_equivalents_subjects.txt",
    steps=1500,
    sample=8,
    lives=included(
        "pop_subjects check_subjects check_subject_budget settle_subjects write_subject", SUBJECTS
    ),
)
OF_ALLOTMENTS: Final = Mutated(
    equivalents="script_equivalents_allotting.txt",
    steps=1000,
    sample=8,
    lives={
        "allot_requests.lua": BOTH_ALLOTTING,
        **included("requests_with_room", ALLOTTING),
        **included("pack_taken", BOTH_ALLOTTING),
        **included("count_allowed extra_holds", PAID_ALLOTTING),
    },
)
OF_OBJECTS: Final = Mutated(
    equivalents="script_equivalents_objects.txt",
    steps=2000,
    sample=8,
    lives={
        **dict.fromkeys(("record_objects.lua", "hold_upload.lua"), OBJECTS),
        **included(
            "unpack_object event_supersedes listing_supersedes settle_presigned hold_presigned", OBJECTS
        ),
    },
)
OF_TOP_UPS: Final = Mutated(
    equivalents="script_equivalents_top_ups.txt",
    swaps=MORE_SWAPS,
    steps=9000,
    sample=8,
    lives=dict.fromkeys(("reclaim_grant.lua", "move_auto_top_up.lua"), ((TopUps, 0),)),
)
OF_QUEUES: Final = Mutated(
    equivalents="script_equivalents_queues.txt",
    swaps=MORE_SWAPS,
    steps=3000,
    sample=8,
    lives=dict.fromkeys(
        ("queue_sync.lua", "lease_entries.lua", "finish_entry.lua", "include/read_entry.lua"),
        ((Queueing, 0),),
    ),
)
DELIVERING: Final = Mutated(
    equivalents="delivery_equivalents.txt",
    swaps=MORE_SWAPS,
    steps=2400,
    sample=10,
    counts=True,
    begin_anew=frozenset({Overtaking, Stranding, Recalling, Refusing, Restoring, Repricing, Moving}),
    lives={
        **dict.fromkeys((f"{name}.lua" for name in delivery_checks.NAMES), DELIVERY),
        "move_grants.lua": ((Moving, 0),),
        "recall_intents.lua": ((Recalling, 2),),
        "refuse_intent.lua": ((Refusing, 3),),
        "seal.lua": (*OVERTAKING, *LINING[:1], *DELIVERY),
        "correct_usage.lua": (*RESTORING, *LINING[:1], *DELIVERY),
        "mark_late_usage.lua": ((Stranding, 6),),
        "withdraw_intent.lua": OVERTAKING,
        "settle_item.lua": (*LINING, *OVERTAKING),
        **included("return_to_grants return_payment read_payer", RESTORING[:1]),
        **included("close_past_period next_free_minute free_past_minute", DELIVERY),
        **included("seal_closed_periods", (*OVERTAKING, *DELIVERY)),
        **included("bill_late_usage", OVERTAKING),
        **included("price_late_usage", (*OVERTAKING, *LINING)),
        **included("queue_item count_item_units lower_price_segment", (*OVERTAKING, *LINING)),
        **included("queue_lines sum_lines_by_meter is_by_lines clamp_price_segments", LINING),
        **included("end_price_segment store_price_labels", (*STRANDING, *LINING)),
        **included("lower_model_rows lower_spend audit_correction", (*RESTORING[::-1], (Repricing, 8))),
        **included(
            "sealed_units take_class_units leave_to_credit_notes assign_lines",
            (*RESTORING, *DELIVERY, (Restoring, 12)),
        ),
        **included("wait_for_link", ((Recalling, 2), *DELIVERY)),
        **included(
            "queue_negative_intents", (*RESTORING, (Repricing, 10), *DELIVERY, (Delivery, 2), (Delivery, 4))
        ),
    },
)
ROOMS: Final[Mapping[str, Mutated]] = {
    "delivery": DELIVERING,
    "deciding": DECIDING,
    "rebuilding": REBUILDING,
    "gauges": GAUGING,
    "subjects": OF_SUBJECTS,
    "allotments": OF_ALLOTMENTS,
    "objects": OF_OBJECTS,
    "top-ups": OF_TOP_UPS,
    "queues": OF_QUEUES,
}
# Of all mutants, so many tests that several processes may share them.
SHARES: Final = {"deciding": in_depth(1, 4), "gauges": in_depth(1, 2), "subjects": in_depth(1, 2)}


PARTS: Final = [(name, share) for name in ROOMS for share in range(SHARES.get(name, 1))]


@pytest.mark.dear("each mutant has lives of its own")
@pytest.mark.timeout(10_800)
@pytest.mark.parametrize(("name", "share"), PARTS)
def test_every_mutant_is_caught(valkey: Server, name: str, share: int) -> None:
    room = ROOMS[name]
    tried = room.chosen()[share :: SHARES.get(name, 1)]
    with server_wire(valkey) as wire:
        survivors = room.survivors(wire, tried)
    assert len(survivors) <= (len(tried) // 2 if is_sampled() else 0), "\n".join(survivors)


def test_every_mutant_of_the_clock_is_caught(valkey: Server) -> None:
    right = source("include/server_ms.lua")
    with server_wire(valkey) as wire:
        answers = {
            wrong: clock_answers(wire, right.replace(line, wrong))
            for line in right.split("\n")
            if not line.startswith("--")
            for wrong in wrongs(line)
        }
    assert len(answers) > 10
    assert [wrong for wrong, answer in answers.items() if answer == CLOCK] == []


@pytest.mark.parametrize("name", ROOMS)
def test_every_equivalent_is_a_mutant_with_a_reason(name: str) -> None:
    known = equivalents(ROOMS[name].equivalents)
    assert set(known) <= set(map(str, ROOMS[name].every()))
    assert all(known.values())
