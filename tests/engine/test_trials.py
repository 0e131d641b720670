from elmoe.engine.trials import LONGEST_PAUSE, MOST, SHARE, SHORTEST_PAUSE, START, Account, Pause


def test_nothing_can_be_tried_before_an_ar_step_was_measured():
    account = Account()
    account.settle(100.0, 0.0, 1.0)
    assert not account.is_open
    assert not account.affords(0.0)
    account.open(2.0)
    assert account.balance == START * 2.0
    account.open(50.0)
    assert account.balance == START * 2.0, "given once"


def test_a_share_of_the_time_may_be_lost():
    account = Account()
    account.open(1.0)
    account.settle(spent=10.0, lost=START + 1.0, ar_seconds=1.0)
    assert not account.affords(0.0)
    account.settle(spent=1.0 / SHARE, lost=0.0, ar_seconds=1.0)
    assert account.affords(0.1)
    assert not account.affords(0.11)
    assert account.affords(-5.0)


def test_savings_and_debts_are_bounded():
    account = Account()
    account.open(1.0)
    account.settle(spent=1e9, lost=-1e9, ar_seconds=1.0)
    assert account.balance == MOST
    account.settle(spent=0.0, lost=2 * MOST, ar_seconds=1.0)
    assert not account.overdrawn(1.0)
    account.settle(spent=0.0, lost=0.1, ar_seconds=1.0)
    assert account.overdrawn(1.0)


def test_pauses_grow_while_trials_disappoint_and_shrink_when_they_improve():
    pause = Pause()
    due = []
    for step in range(4):
        pause.after(step, 0.5)
        due.append(pause.due - step)
    assert due == [2 * SHORTEST_PAUSE, 4 * SHORTEST_PAUSE, 8 * SHORTEST_PAUSE, 16 * SHORTEST_PAUSE]
    pause.after(10, 0.6)
    assert pause.steps == 32 * SHORTEST_PAUSE, "better, but hopeless still"
    pause.after(10, 0.9)
    assert pause.steps == 16 * SHORTEST_PAUSE
    pause.after(10, 0.85)
    assert pause.steps == 32 * SHORTEST_PAUSE
    for _ in range(20):
        pause.after(10, 0.1)
    assert pause.steps == LONGEST_PAUSE
