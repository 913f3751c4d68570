from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from controller.core.commands import Command, CommandQueue, Reply
from controller.core.events import AnyEvent, Note
from controller.north.client import LocalNorth, NorthClosed
from controller.north.frames import (
    PROTOCOL,
    CommandInfo,
    Delta,
    Events,
    Hello,
    Node,
    Request,
    Scalar,
    ServerFrame,
    Snapshot,
)
from controller.north.publisher import MAX_UNREAD, NOT_FINITE, Publisher, Session, TokenBucket, encode

DECODE = msgspec.msgpack.Decoder(ServerFrame).decode
S = 1_000_000_000


def hello(nodes: int = 3) -> Hello:
    kinds = ("int", "float", "str")
    commands = [CommandInfo("start"), CommandInfo("stop"), CommandInfo("abort")]
    return Hello(
        protocol=PROTOCOL,
        line="test",
        description="",
        version="0",
        config_hash="",
        stations=[],
        nodes=[Node(f"line.n{i}", kinds[i % 3]) for i in range(nodes)],
        commands={"line": commands, "filler": commands},
        recipes=[],
    )


class Bench:
    """A publisher over a real command queue, with time by hand."""

    def __init__(self, nodes: int = 3, **options: float) -> None:
        self.now = S
        self.queue = CommandQueue()
        self.refuse: Callable[[Command], Reply | None] = lambda command: None
        self.publisher = Publisher(hello(nodes), self._submit, lambda: self.now, **options)  # type: ignore[arg-type]

    def _submit(self, command: Command) -> Reply | None:
        return self.refuse(command) or self.queue.put(command)

    def scan(self) -> list[Command]:
        """Answer what is queued as a line would."""
        commands = self.queue.drain()
        for command in commands:
            self.publisher.answer(Reply(id=command.id, accepted=True, reason=f"{command.target} {command.name}"))
        return commands


def drain(session: Session) -> list[ServerFrame]:
    frames = []
    while (data := session.pull()) is not None:
        assert int.from_bytes(data[:4], "big") == len(data) - 4
        frames.append(DECODE(data[4:]))
    return frames


def notes(first: int, count: int) -> list[AnyEvent]:
    return [Note(at=n, text=f"note {n}") for n in range(first, first + count)]


class TestValues:
    def test_a_snapshot_then_only_what_changed(self) -> None:
        bench = Bench()
        client = LocalNorth(bench.publisher)
        assert client.poll() == []
        bench.publisher.publish([1, 2.0, "a"], {1: "stale"}, 10)
        assert client.poll() == [Snapshot(seq=1, at=10, values=[1, 2.0, "a"], bad={1: "stale"})]
        bench.publisher.publish([1, 2.0, "b"], {}, 20)
        assert client.poll() == [Delta(seq=2, at=20, values={2: "b"}, bad={}, good=[1])]
        bench.publisher.publish([1, 2.0, "b"], {0: "gone"}, 30)
        bench.publisher.publish([1, 2.0, "b"], {0: "still gone"}, 40)
        assert client.poll() == [
            Delta(seq=3, at=30, values={}, bad={0: "gone"}, good=[]),
            Delta(seq=4, at=40, values={}, bad={0: "still gone"}, good=[]),
        ]
        assert client.mirror.values == {"line.n0": 1, "line.n1": 2.0, "line.n2": "b"}
        assert client.mirror.bad == {"line.n0": "still gone"}

    def test_nothing_changed_sends_nothing_but_a_life_sign_each_second(self) -> None:
        bench = Bench()
        client = LocalNorth(bench.publisher)
        frames = 0
        for _ in range(51):
            bench.publisher.publish([1, 2.0, "a"], {}, bench.now)
            frames += len(client.poll())
            bench.now += S // 10
        assert frames == 1 + 5

    def test_a_type_is_a_change_even_where_the_values_are_equal(self) -> None:
        bench = Bench()
        client = LocalNorth(bench.publisher)
        bench.publisher.publish([1, 1.0, ""], {}, 1)
        bench.publisher.publish([True, 1, ""], {}, 2)
        client.poll()
        assert client.mirror.values["line.n0"] is True
        assert type(client.mirror.values["line.n1"]) is int

    @pytest.mark.parametrize(
        ("odd", "reason"),
        [(float("nan"), NOT_FINITE), (float("-inf"), NOT_FINITE), (2**70, "64 bits"), ("\ud83d", "valid text")],
    )
    def test_values_that_are_none_are_bad(self, odd: Scalar, reason: str) -> None:
        bench = Bench()
        client = LocalNorth(bench.publisher)
        bench.publisher.publish([0, odd, ""], {}, 1)
        client.poll()
        assert client.mirror.values["line.n1"] is None
        assert reason in client.mirror.bad["line.n1"]
        fresh = float(str(odd)) if isinstance(odd, float) else odd
        bench.publisher.publish([0, fresh, ""], {}, 2)  # NaN is not equal to NaN, and yet nothing changed
        assert client.poll() == []
        bench.publisher.publish([0, 5.0, ""], {}, 3)
        client.poll()
        assert (client.mirror.values["line.n1"], client.mirror.bad) == (5.0, {})
        bench.publisher.publish([0, odd, ""], {1: "the PLC says so"}, 4)
        client.poll()
        assert client.mirror.bad == {"line.n1": "the PLC says so"}

    def test_the_delta_is_encoded_once_for_all_clients(self) -> None:
        bench = Bench()
        sessions = [bench.publisher.attach(str(n)) for n in range(5)]
        bench.publisher.publish([1, 2.0, "a"], {}, 1)
        for session in sessions:
            drain(session)
        bench.publisher.publish([2, 2.0, "a"], {}, 2)
        frames = [session.pull() for session in sessions]
        assert frames[0] is not None and all(frame is frames[0] for frame in frames)

    def test_what_the_caller_does_with_its_lists_later_does_not_show(self) -> None:
        bench = Bench()
        values: list[Scalar] = [1, 2.0, "a"]
        bad = {0: "x"}
        bench.publisher.publish(values, bad, 1)
        values[0], bad[1] = 9, "y"
        client = LocalNorth(bench.publisher)
        client.poll()
        assert (client.mirror.values["line.n0"], client.mirror.bad) == (1, {"line.n0": "x"})

    def test_a_wrong_number_of_values_is_our_fault(self) -> None:
        with pytest.raises(ValueError, match="2 values for 3 nodes"):
            Bench().publisher.publish([1, 2], {}, 1)

    def test_a_missing_frame_is_noticed_by_the_client(self) -> None:
        bench = Bench()
        client = LocalNorth(bench.publisher)
        bench.publisher.publish([1, 2.0, "a"], {}, 1)
        client.poll()
        bench.publisher.publish([2, 2.0, "a"], {}, 2)
        assert client._session.pull() is not None
        bench.publisher.publish([3, 2.0, "a"], {}, 3)
        with pytest.raises(NorthClosed, match="frame 3 follows frame 1"):
            client.poll()


class TestSlowClients:
    def test_too_many_frames_end_in_a_new_snapshot(self) -> None:
        bench = Bench(queue_frames=10)
        client = LocalNorth(bench.publisher)
        bench.publisher.publish([0, 0.0, ""], {}, 1)
        client.poll()
        for n in range(1, 100):
            bench.publisher.publish([n, 0.0, ""], {}, n)
        frames = client.poll()
        assert [type(f) for f in frames] == [Snapshot]
        assert client.mirror.values["line.n0"] == 99
        assert client.mirror.resync == 1
        bench.publisher.publish([100, 0.0, ""], {}, 100)
        assert [type(f) for f in client.poll()] == [Delta]  # and it goes on from there
        for n in range(50):
            bench.publisher.publish([n, 0.0, ""], {}, n)
        client.poll()
        assert client.mirror.resync == 2

    def test_too_many_bytes_too(self) -> None:
        bench = Bench(queue_bytes=10_000)
        client = LocalNorth(bench.publisher)
        bench.publisher.publish([0, 0.0, ""], {}, 1)
        client.poll()
        for n in range(20):
            bench.publisher.publish([0, 0.0, f"{n}" * 1000], {}, n)
            assert client._session._bytes <= 10_000
        assert [type(f) for f in client.poll()] == [Snapshot]

    def test_dropped_events_leave_a_note_and_later_ones_come(self) -> None:
        bench = Bench(queue_frames=10)
        client = LocalNorth(bench.publisher)
        bench.publisher.publish([0, 0.0, ""], {}, 77)
        client.poll()
        for n in range(1, 31):
            bench.publisher.events(n, notes(n, 1))
            bench.publisher.publish([n, 0.0, ""], {}, 77)
        bench.publisher.events(31, notes(31, 1))
        frames = client.poll()
        assert isinstance(frames[0], Events)
        gap = frames[0].events[0]
        assert frames[0].first == 1
        assert isinstance(gap, Note) and gap.text.startswith("gap: events 1 to ")
        dropped = int(gap.text.split(" to ")[1].split()[0])
        assert f"({dropped})" in gap.text
        kept = [e.text for f in frames[1:] if isinstance(f, Events) for e in f.events if isinstance(e, Note)]
        assert kept == [f"note {n}" for n in range(dropped + 1, 32)]
        assert client.mirror.values["line.n0"] == 30

    def test_a_burst_of_ten_thousand_events_arrives_whole(self) -> None:
        bench = Bench()
        client = LocalNorth(bench.publisher)
        bench.publisher.events(1, notes(1, 10_000))
        client.poll()
        assert [e.at for e in client.events] == list(range(1, 10_001))

    def test_a_client_that_hangs_costs_no_encoding_and_no_memory(self) -> None:
        bench = Bench(queue_frames=10)
        session = bench.publisher.attach("hangs")
        for n in range(1000):
            bench.publisher.publish([n, 0.0, ""], {}, n)
            bench.publisher.events(n, notes(n, 1))
        assert len(session._queue) <= 10
        frames = drain(session)
        assert sum(isinstance(f, Snapshot) for f in frames) == 1

    def test_an_event_that_cannot_be_encoded_becomes_a_note(self) -> None:
        bench = Bench()
        client = LocalNorth(bench.publisher)
        bench.publisher.events(1, [Note(at=1, text="fine"), Note(at=2, text="\ud83d")])
        client.poll()
        texts = [e.text for e in client.events if isinstance(e, Note)]
        assert texts[0] == "fine" and "could not be encoded" in texts[1]


class TestCommands:
    def test_answers_go_to_the_right_client_even_with_equal_ids(self) -> None:
        bench = Bench()
        one, two = LocalNorth(bench.publisher), LocalNorth(bench.publisher)
        assert one.command("line", "start") == two.command("filler", "start") == "local-1"
        queued = bench.scan()
        assert len({c.id for c in queued}) == 2
        one.poll()
        two.poll()
        assert one.replies["local-1"].reason == "line start"
        assert two.replies["local-1"].reason == "filler start"

    def test_answers_survive_an_overflow(self) -> None:
        bench = Bench(queue_frames=5)
        client = LocalNorth(bench.publisher)
        bench.publisher.publish([0, 0.0, ""], {}, 1)
        client.poll()
        number = client.command("line", "start")
        bench.scan()
        for n in range(100):
            bench.publisher.publish([n, 0.0, ""], {}, n)
        client.poll()
        assert client.replies[number].accepted

    def test_the_same_id_twice_is_one_command_but_a_stop_always_goes(self) -> None:
        bench = Bench()
        session = bench.publisher.attach("careless")
        for name in ("start", "start", "stop", "abort"):
            session.request(Request(command=Command(id="1", target="line", name=name)))
        assert [c.name for c in bench.scan()] == ["abort", "stop", "start"]
        assert len(drain(session)) == 3

    @pytest.mark.parametrize(
        ("target", "name", "reason"),
        [
            ("capper", "start", "there is no 'capper' to command; there are line, filler"),
            ("x" * 50_000, "stop", "there is no 'xxx"),
            ("line", "explode", "line knows no command 'explode'"),
        ],
    )
    def test_unknown_ones_are_refused_before_the_queue(self, target: str, name: str, reason: str) -> None:
        bench = Bench()
        client = LocalNorth(bench.publisher)
        number = client.command(target, name)
        assert bench.queue.drain() == []
        client.poll()
        assert not client.replies[number].accepted
        assert client.replies[number].reason.startswith(reason)

    @pytest.mark.parametrize("number", ["", "x" * 101])
    def test_ids_have_a_length(self, number: str) -> None:
        bench = Bench()
        session = bench.publisher.attach("x")
        session.request(Request(command=Command(id=number, target="line", name="stop")))
        assert bench.queue.drain() == []
        assert "1 to 100 characters" in str(drain(session)[0])

    def test_a_refusal_of_the_queue_is_answered_at_once(self) -> None:
        bench = Bench()
        bench.refuse = lambda c: None if c.name == "stop" else Reply(id=c.id, accepted=False, reason="disk full")
        client = LocalNorth(bench.publisher)
        start, stop = client.command("line", "start"), client.command("line", "stop")
        client.poll()
        assert client.replies[start].reason == "disk full"
        assert stop not in client.replies
        bench.scan()
        client.poll()
        assert client.replies[stop].accepted

    def test_a_storm_is_limited_and_stop_goes_through(self) -> None:
        bench = Bench(rate=50)
        client = LocalNorth(bench.publisher)
        for n in range(1000):
            client.command("line", "start")
            if n % 100 == 0:
                client.command("line", "stop")
        queued = bench.scan()
        assert sum(c.name == "start" for c in queued) == 50
        assert sum(c.name == "stop" for c in queued) == 10
        assert queued[0].name == "stop"
        client.poll()
        assert len(client.replies) == 1010
        assert client._session.limited == 950
        bench.now += S // 10
        for _ in range(10):
            client.command("line", "start")
        assert len(bench.queue.drain()) == 5

    def test_one_clients_storm_does_not_use_up_anothers_allowance(self) -> None:
        bench = Bench(rate=50)
        noisy, quiet = LocalNorth(bench.publisher), LocalNorth(bench.publisher)
        for _ in range(200):
            noisy.command("line", "start")
        number = quiet.command("filler", "start")
        bench.scan()
        quiet.poll()
        assert quiet.replies[number].accepted

    def test_the_answer_for_a_client_that_left_is_dropped(self) -> None:
        bench = Bench()
        client = LocalNorth(bench.publisher)
        client.command("line", "start")
        client.close()
        assert [c.name for c in bench.scan()] == ["start"]  # carried out all the same
        assert bench.publisher._routes == {}
        bench.publisher.answer(Reply(id="nobody's", accepted=True))

    def test_a_client_that_never_reads_answers_is_sent_away_but_its_stop_counts(self) -> None:
        bench = Bench(rate=1)
        session = bench.publisher.attach("deaf")
        for n in range(MAX_UNREAD + 10):
            session.request(Request(command=Command(id=f"{n}", target="line", name="start")))
        assert session.ending
        bench.queue.drain()
        session.request(Request(command=Command(id="last", target="line", name="stop")))
        session.request(Request(command=Command(id="late", target="line", name="start")))
        assert [c.name for c in bench.queue.drain()] == ["stop"]
        frames = drain(session)
        assert len(frames) == 1 and "not read" in str(frames[0])
        assert session.ended and session.pull() is None

    def test_goodbye_comes_after_the_answers_and_is_the_end(self) -> None:
        bench = Bench()
        client = LocalNorth(bench.publisher)
        number = client.command("line", "start")
        bench.scan()
        bench.publisher.drop_clients("the end")
        bench.publisher.publish([1, 2.0, ""], {}, 1)
        bench.publisher.events(1, notes(1, 1))
        client.poll()
        assert client.replies[number].accepted
        assert client.goodbye == "the end"
        assert client._session.ended and not client.events


def test_token_bucket_refills_with_time_only() -> None:
    bucket = TokenBucket(10.0, 2.0, 0)
    assert [bucket.take(0) for _ in range(3)] == [True, True, False]
    assert bucket.take(S // 10)
    assert not bucket.take(S // 10)
    assert [bucket.take(100 * S) for _ in range(3)] == [True, True, False]


def test_a_frame_over_the_limit_is_not_sent() -> None:
    with pytest.raises(ValueError, match="over the limit"):
        encode(Events(first=1, events=[Note(at=1, text="x" * 9_000_000)]))


def test_a_client_of_another_protocol_refuses() -> None:
    bench = Bench()
    bench.publisher.hello = msgspec.structs.replace(bench.publisher.hello, protocol=99)
    with pytest.raises(NorthClosed, match="protocol 99"):
        LocalNorth(bench.publisher)
