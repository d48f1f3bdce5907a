"""Work in threads: results in order, few items ahead, and nothing left behind."""

import itertools
import threading

import pytest

from seamless_d2.parallel import in_window, map_threads


def test_results_are_in_order() -> None:
    assert list(map_threads(lambda x: x * x, range(50), 3)) == [x * x for x in range(50)]
    assert list(map_threads(str, [])) == []


@pytest.mark.parametrize("size", [1, 4])
def test_no_more_items_than_the_window_are_begun(size: int) -> None:
    begun: list[int] = []
    results = in_window(lambda x: begun.append(x) or x, lambda x: x, itertools.count(), size)
    assert [next(results) for _ in range(10)] == list(range(10))
    assert begun == list(range(9 + size))


def test_an_error_drops_the_items_that_no_thread_has_begun() -> None:
    begun: list[int] = []
    second = threading.Event()

    def work(item: int) -> int:
        begun.append(item)
        if item == 0:
            raise ValueError("item 0")
        second.wait()  # as long as the loop is in its error
        return item

    results = map_threads(work, range(100), 2)
    # The pool waits for what has begun when it shuts down, so the event has to come from elsewhere.
    threading.Timer(0.2, second.set).start()
    with pytest.raises(ValueError, match="item 0"):
        next(results)
    assert 3 not in begun  # of four in the window: one raised, two threads held one each
