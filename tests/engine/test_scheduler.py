from elmoe.engine.request import Generation, Request
from elmoe.engine.scheduler import Scheduler


def request(number):
    return Request(number, [1, 2], Generation(), None, frozenset())


def scheduler_for(max_batch=4, budget=100):
    return Scheduler(max_batch, lambda cells: cells <= budget)


def numbers(requests):
    return [request.number for request in requests]


def test_first_come_first_served_up_to_the_batch():
    scheduler = scheduler_for(max_batch=2)
    for number in range(3):
        scheduler.submit(request(number), 10)
    assert [(r.number, cells) for r, cells in scheduler.admit()] == [(0, 10), (1, 10)]
    assert scheduler.admit() == []
    scheduler.running[0].finish_reason = "length"
    assert numbers(scheduler.retire()) == [0]
    assert numbers(r for r, _ in scheduler.admit()) == [2]
    assert numbers(scheduler.running) == [1, 2]


def test_none_overtakes_one_that_does_not_fit_yet():
    scheduler = scheduler_for(budget=100)
    for number, cells in enumerate((60, 50, 10)):
        scheduler.submit(request(number), cells)
    assert numbers(r for r, _ in scheduler.admit()) == [0]
    assert scheduler.reserved_cells == 60
    scheduler.running[0].finish_reason = "stop"
    scheduler.retire()
    assert numbers(r for r, _ in scheduler.admit()) == [1, 2]
    assert scheduler.reserved_cells == 60


def test_cancel_takes_out_running_and_waiting_requests_once():
    scheduler = scheduler_for(max_batch=1)
    first, second = request(0), request(1)
    scheduler.submit(first, 10)
    scheduler.submit(second, 20)
    scheduler.admit()
    assert scheduler.cancel(1) is second
    assert scheduler.cancel(0) is first
    assert scheduler.cancel(0) is None
    assert scheduler.reserved_cells == 0
    assert not scheduler.waiting
    assert not scheduler.running


def test_clients_take_turns_and_each_is_served_in_order():
    scheduler = scheduler_for(max_batch=2)
    for number, client in enumerate(["many", "many", "many", "many", "one", "two", "one"]):
        scheduler.submit(request(number), 1, client)
    assert scheduler.waiting_count == 7
    order = []
    while scheduler.waiting:
        order += numbers(r for r, _ in scheduler.admit())
        for running in scheduler.running:
            running.finish_reason = "length"
        scheduler.retire()
    assert order == [0, 4, 5, 1, 6, 2, 3]


def test_a_client_whose_only_request_is_cancelled_has_no_turn():
    scheduler = scheduler_for(max_batch=1)
    for number, client in enumerate(["one", "two", "two"]):
        scheduler.submit(request(number), 1, client)
    scheduler.cancel(0)
    assert list(scheduler.waiting) == ["two"]
    assert numbers(r for r, _ in scheduler.admit()) == [1]
