import asyncio
import heapq
import itertools

import pytest

from molecule_connect.platform.endpoints import Priority
from molecule_connect.platform.rate_limit import RateLimiter


class Time:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def limiter(time: Time, said: list[str]) -> RateLimiter:
    limiter = RateLimiter(clock=lambda: time.now, sleep=time.sleep, say=said.append)
    limiter.join()
    return limiter


def answer(limit: str, remaining: str = "", reset: str = "30") -> dict[str, str]:
    return {"x-ratelimit-limit": limit, "x-ratelimit-remaining": remaining, "x-ratelimit-reset": reset}


async def ask(
    limiter: RateLimiter, priority: Priority, headers: dict[str, str] | None = None, refused_for: float | None = None
) -> None:
    await limiter.admit(priority)
    limiter.ended(priority, headers, refused_for=refused_for)


async def test_heartbeats_have_a_reserve(limiter: RateLimiter, time: Time) -> None:
    await ask(limiter, Priority.READ, answer("100", "41"))
    assert limiter.wait(Priority.READ) == 0

    await ask(limiter, Priority.SEND, answer("100", "40"))

    assert (limiter.wait(Priority.READ), limiter.wait(Priority.SEND), limiter.wait(Priority.HEARTBEAT)) == (30, 30, 0)
    await ask(limiter, Priority.READ)
    assert time.slept == [30]


async def test_messages_to_peers_leave_half(limiter: RateLimiter, time: Time) -> None:
    await ask(limiter, Priority.READ, answer("100", "99", reset="60"))
    peers = people = 0
    while limiter.wait(Priority.SEND, to_peer=True) == 0:
        await limiter.admit(Priority.SEND, peer="peer-1")
        peers += 1
    assert (peers, limiter.wait(Priority.READ), limiter.wait(Priority.SEND)) == (30, 0, 0)
    while limiter.wait(Priority.SEND) == 0:
        await limiter.admit(Priority.SEND)
        people += 1
    assert people == 29


async def test_messages_to_peers_may_fill_the_window(limiter: RateLimiter, time: Time) -> None:
    await ask(limiter, Priority.READ, answer("100", "99", reset="60"))
    sent = 0
    while True:
        await limiter.admit(Priority.SEND, peer="peer-1")
        if time.now >= 60:
            break
        sent += 1
    assert sent == 59
    assert max(time.slept) <= 3


async def test_peers_take_turns(time: Time) -> None:
    async def sleep(seconds: float) -> None:
        await time.sleep(seconds)
        await asyncio.sleep(0)

    limiter = RateLimiter(clock=lambda: time.now, sleep=sleep)
    await ask(limiter, Priority.READ, answer("100", "60", reset="60"))
    admitted: list[str] = []

    async def send(peer: str) -> None:
        await limiter.admit(Priority.SEND, peer=peer)
        admitted.append(peer)

    sends = [asyncio.ensure_future(send(peer)) for peer in ["a"] * 5 + ["b"] * 2 + ["c"]]
    await asyncio.gather(*sends)
    assert admitted == ["a", "a", "b", "c", "a", "b", "a", "a"]


async def test_a_cancelled_turn_goes_to_the_next(limiter: RateLimiter) -> None:
    opened = asyncio.Event()
    slow = RateLimiter(clock=lambda: 0.0, sleep=lambda _: opened.wait())
    await ask(slow, Priority.SEND, refused_for=5)
    first, second, third = (asyncio.ensure_future(slow.admit(Priority.SEND, peer=peer)) for peer in "abc")
    await asyncio.sleep(0)
    second.cancel()
    slow.ended(Priority.SEND, refused_for=0.0)
    opened.set()
    await asyncio.gather(first, third)
    assert second.cancelled()


async def test_reads_after_events_are_spread(limiter: RateLimiter, time: Time) -> None:
    assert limiter.read_rest() == 0
    await ask(limiter, Priority.READ, answer("100", "90", reset="60"))
    assert limiter.read_rest() == 0
    time.now += 20
    await ask(limiter, Priority.READ, answer("100", "80", reset="40"))
    assert limiter.read_rest() == 40 / 20
    time.now += 41
    assert limiter.read_rest() == 0


async def test_requests_that_are_under_way_count(limiter: RateLimiter) -> None:
    await ask(limiter, Priority.READ, answer("100", "42"))
    await limiter.admit(Priority.SEND)
    assert limiter.wait(Priority.SEND) == 0
    await limiter.admit(Priority.SEND)

    assert limiter.wait(Priority.SEND) == 30


async def test_without_a_limit_nobody_waits(limiter: RateLimiter, time: Time) -> None:
    for headers in (None, {}, answer("unlimited"), answer("100", "0"), answer("unlimited")):
        await ask(limiter, Priority.READ, headers)
    assert limiter.limit is None
    assert limiter.wait(Priority.READ) == 0
    assert limiter.heartbeat_interval(30) == 30


async def test_refusal_delays_only_its_priority(limiter: RateLimiter, time: Time) -> None:
    await ask(limiter, Priority.SEND, refused_for=7.0)

    assert (limiter.wait(Priority.SEND), limiter.wait(Priority.READ), limiter.wait(Priority.HEARTBEAT)) == (7.0, 0, 0)
    time.now += 7
    assert limiter.wait(Priority.SEND) == 0


async def test_refusals_have_a_longest_delay(limiter: RateLimiter) -> None:
    for priority in (Priority.READ, Priority.HEARTBEAT):
        await ask(limiter, priority, refused_for=1e9)

    assert (limiter.wait(Priority.READ), limiter.wait(Priority.HEARTBEAT)) == (300, 60)


async def test_the_next_window_is_open_again(limiter: RateLimiter, time: Time) -> None:
    await ask(limiter, Priority.READ, answer("100", "0", reset="12"))
    time.now += 12

    assert limiter.wait(Priority.READ) == 0


async def test_a_wide_window_leaves_the_intervals_alone(limiter: RateLimiter, said: list[str]) -> None:
    await ask(limiter, Priority.READ, answer("600", "599"))

    assert (limiter.safety_interval(30, trusted=True), limiter.heartbeat_interval(30)) == (30, 30)
    assert said == []


async def test_low_limit_stretches_intervals_with_a_notice(limiter: RateLimiter, said: list[str]) -> None:
    for _ in range(9):
        limiter.join()
    await ask(limiter, Priority.READ, answer("20", "19"))

    assert limiter.safety_interval(30, trusted=True) == pytest.approx(30 * 20 / 12)
    assert limiter.heartbeat_interval(30) == pytest.approx(30 * 20 / 8, abs=15.1)
    assert limiter.heartbeat_interval(30) == 60
    await ask(limiter, Priority.READ, answer("2", "1"))
    assert (limiter.safety_interval(30, trusted=True), limiter.safety_interval(30, trusted=False)) == (300, 60)
    small, too_small = said
    assert "10 workspaces share" in small
    assert "10 workspaces can't keep to the platform's limit of 2 requests a minute: about 1 can" in too_small

    await ask(limiter, Priority.READ, answer("600", "590"))
    assert len(said) == 3


async def test_requests_of_others_are_counted(limiter: RateLimiter) -> None:
    await ask(limiter, Priority.READ, answer("100", "2"))

    assert limiter.safety_interval(30, trusted=True) > 30


async def test_a_cancelled_wait_is_not_counted(limiter: RateLimiter) -> None:
    never = RateLimiter(clock=lambda: 0.0, sleep=lambda _: asyncio.Event().wait())
    await ask(never, Priority.SEND, refused_for=5)
    waiting = asyncio.create_task(never.admit(Priority.SEND))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting

    await ask(never, Priority.READ, answer("10", "5"))
    assert never.wait(Priority.READ) == 0


async def start(limiter: RateLimiter, time: Time, priority: Priority, started: list[tuple[Priority, float]]) -> None:
    await limiter.admit(priority)
    started.append((priority, time.now))


async def test_delayed_requests_are_spread(limiter: RateLimiter, time: Time) -> None:
    started: list[tuple[Priority, float]] = []
    await ask(limiter, Priority.READ, answer("100", "40"))
    await asyncio.gather(*(start(limiter, time, Priority.READ, started) for _ in range(4)))

    times = [when for _, when in started]
    assert times[0] == 30
    # 59 others used this window, so that one request is left for us besides the reserve.
    assert [later - earlier for earlier, later in itertools.pairwise(times)] == pytest.approx([60] * 3)


async def test_heartbeats_never_wait(limiter: RateLimiter, time: Time) -> None:
    never = asyncio.Event()
    waiting = RateLimiter(clock=lambda: time.now, sleep=lambda _: never.wait())
    await ask(waiting, Priority.READ, answer("100", "40"))
    reads = [
        asyncio.create_task(waiting.admit(priority))
        for priority in (Priority.READ, Priority.SEND, Priority.REGISTER) * 10
    ]
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await waiting.admit(Priority.HEARTBEAT)

    for task in reads:
        task.cancel()
    await asyncio.gather(*reads, return_exceptions=True)


async def test_registering_precedes_looks_and_reads(time: Time) -> None:
    sleepers: list[tuple[float, int, asyncio.Event]] = []
    numbers = itertools.count()

    async def sleep(seconds: float) -> None:
        woken = asyncio.Event()
        heapq.heappush(sleepers, (time.now + seconds, next(numbers), woken))
        await woken.wait()

    limiter, order = RateLimiter(clock=lambda: time.now, sleep=sleep), []
    await ask(limiter, Priority.READ, answer("100", "20", reset="30"))

    async def run(priority: Priority) -> None:
        await limiter.admit(priority)
        order.append(priority)

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        tasks = [group.create_task(run(each)) for each in (Priority.READ, Priority.LOOKUP, Priority.REGISTER) * 2]
        while not all(task.done() for task in tasks):
            for _ in range(10):
                await asyncio.sleep(0)
            if sleepers:
                time.now, _, woken = heapq.heappop(sleepers)
                woken.set()
    assert order == [Priority.REGISTER] * 2 + [Priority.LOOKUP] * 2 + [Priority.READ] * 2


async def test_limit_per_token_delays_nothing(limiter: RateLimiter, time: Time, said: list[str]) -> None:
    for _ in range(199):
        limiter.join()
    for _ in range(400):
        await ask(limiter, Priority.READ, answer("600", "598"))

    assert (limiter.heartbeat_interval(), limiter.safety_interval(trusted=True), limiter.is_limited) == (30, 30, False)
    assert said == []
    assert sum(time.slept) < 60


async def test_too_many_workspaces_are_reported(limiter: RateLimiter, said: list[str]) -> None:
    for _ in range(599):
        limiter.join()
    for number in range(30):
        await ask(limiter, Priority.REGISTER, answer("600", str(599 - number)))

    (text,) = said
    assert "600 workspaces can't keep to the platform's limit of 600 requests a minute: about 500 can" in text
    assert "RATE_LIMIT" in text


async def test_late_response_of_earlier_window_is_ignored(limiter: RateLimiter, time: Time) -> None:
    for number in range(30):
        await ask(limiter, Priority.READ, answer("100", str(99 - number), reset="30"))
    time.now = 30.2
    await ask(limiter, Priority.HEARTBEAT, answer("100", "60", reset="1"))

    assert limiter.wait(Priority.READ) == 0
    assert limiter.safety_interval(trusted=True) == 30


async def test_remaining_requests_start_again_each_window(limiter: RateLimiter, time: Time) -> None:
    found = [limiter.remaining]
    await ask(limiter, Priority.READ, answer("100", "41"))
    found.append(limiter.remaining)
    await limiter.admit(Priority.READ)
    found.append(limiter.remaining)
    limiter.ended(Priority.READ, None)
    time.now += 31
    found.append(limiter.remaining)
    assert found == [None, 41, 40, 100]
