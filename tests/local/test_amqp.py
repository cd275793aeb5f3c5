"""The broker against real pika over real sockets, and against clients that misbehave."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import socket
import struct
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pika
import pytest
from globus_compute_common import messagepack
from globus_compute_endpoint.endpoint.utils import send_endpoint_startup_failure_to_amqp
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import frame, spec
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    ChannelClosedByBroker,
    ConnectionClosedByBroker,
    NackError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    UnroutableError,
)

from gc_warm.local import amqp, complaints
from gc_warm.local.amqp import Broker
from tests.support import Clock, wait_until

T = TypeVar("T")

USER, PASSWORD = "someone", "s3cr:t/@ü"


@pytest.fixture(autouse=True)
def no_password_in_logs(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    for name in ("gc_warm", "asyncio"):
        caplog.set_level(logging.DEBUG, logger=name)
    yield
    for phase in ("setup", "call"):
        for record in caplog.get_records(phase):
            assert PASSWORD not in record.getMessage()
            assert record.name != "asyncio" or record.levelno < logging.WARNING, record.getMessage()


@pytest.fixture
def broker() -> Iterator[Broker]:
    with Broker(USER, PASSWORD) as broker:
        yield broker


@pytest.fixture
def loop_time(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The broker's own time, of which so many seconds pass when this is called, and else none."""
    clock = Clock()
    monkeypatch.setattr(broker._loop, "time", clock.monotonic)

    def advance(seconds: float) -> None:
        broker.consumers("any")  # it has done what it was at, such as to set a timer
        clock.advance(seconds)
        broker.consumers("any")  # it wakes up, and looks at its timers

    return advance


@pytest.fixture
def channel(broker: Broker) -> Iterator[BlockingChannel]:
    with opened(broker) as channel:
        yield channel


@contextlib.contextmanager
def opened(broker: Broker, **parameters: Any) -> Iterator[BlockingChannel]:
    """A channel of a connection of its own, which may have been lost in the end."""
    connection = connect(broker, **parameters)
    try:
        yield connection.channel()
    finally:
        with contextlib.suppress(AMQPError):
            connection.close()


def connect(broker: Broker, **parameters: Any) -> pika.BlockingConnection:
    given = pika.URLParameters(broker.url)
    for name, value in parameters.items():
        setattr(given, name, value)
    return pika.BlockingConnection(given)


def waiting(
    channel: BlockingChannel, queue: str, auto_ack: bool = True
) -> list[tuple[bytes, bool]]:
    """Bodies that wait, each with whether it is delivered again."""
    found = []
    while (got := channel.basic_get(queue, auto_ack=auto_ack))[0] is not None:
        found.append((got[2], got[0].redelivered))
    return found


def collected(channel: BlockingChannel, got: list[T], count: int) -> list[T]:
    """Wait for what consumers append to *got*."""
    end = time.monotonic() + 120
    while len(got) < count and time.monotonic() < end:
        channel.connection.process_data_events(0.05)
    return got


class Raw:
    """A client that says what it is told to."""

    def __init__(self, broker: Broker) -> None:
        self._socket = socket.create_connection(("127.0.0.1", broker.port), timeout=120)
        self._buffer = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def send(self, *methods: Any, channel: int = 0) -> None:
        self.send_bytes(sent(*methods, channel=channel))

    def send_bytes(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self) -> Any:
        """The next frame's method, or the frame if it has none; None at the end."""
        while True:
            used, found = frame.decode_frame(self._buffer)
            if found is not None:
                self._buffer = self._buffer[used:]
                return getattr(found, "method", found)
            try:
                data = self._socket.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._buffer += data

    def wait_for(self, kind: type) -> Any:
        while (found := self.receive()) is not None:
            if isinstance(found, kind):
                return found
        raise AssertionError(f"the connection ended before a {kind.__name__}")

    def log_in(self, heartbeat: int = 0, frame_max: int = 0) -> None:
        self.send_bytes(HEADER)
        self.send(
            start_ok(), spec.Connection.TuneOk(0, frame_max, heartbeat), spec.Connection.Open("/")
        )
        self.wait_for(spec.Connection.OpenOk)

    def open(self, **options: int) -> Raw:
        self.log_in(**options)
        self.send(spec.Channel.Open(), channel=1)
        self.wait_for(spec.Channel.OpenOk)
        return self


HEADER = frame.ProtocolHeader().marshal()


def start_ok(
    password: str = PASSWORD, mechanism: str = "PLAIN", close: bool = True
) -> spec.Connection.StartOk:
    properties = {"capabilities": {"authentication_failure_close": close}}
    return spec.Connection.StartOk(properties, mechanism, f"\0{USER}\0{password}".encode())


def sent(*methods: Any, channel: int = 1) -> bytes:
    return b"".join(frame.Method(channel, method).marshal() for method in methods)


def header(size: int, channel: int = 1) -> bytes:
    return bytes(frame.Header(channel, size, spec.BasicProperties()).marshal())


def piece(body: bytes, channel: int = 1) -> bytes:
    return bytes(frame.Body(channel, body).marshal())


def content(body: bytes) -> bytes:
    return header(len(body)) + piece(body)


def consume_by_two(channel: BlockingChannel, first_exclusive: bool) -> None:
    """Consume from one queue twice, once of the two exclusively."""
    for exclusive in (first_exclusive, not first_exclusive):
        channel.basic_consume("q", print, exclusive=exclusive)


def consume_twice(channel: Any, tag: str) -> None:
    """Consume under one tag, which the client has to forget meanwhile."""
    channel.basic_consume("q", print, consumer_tag=tag)
    channel._impl._consumers.clear()
    channel._consumer_infos.clear()
    channel.basic_consume("q", print, consumer_tag=tag)


PUBLISH = sent(spec.Basic.Publish())


class TestConnecting:
    def test_the_url_is_all_a_client_needs(self, broker: Broker) -> None:
        with opened(broker) as channel:
            assert channel.is_open
        assert broker.url.endswith(f"@127.0.0.1:{broker.port}/%2F")

    @pytest.mark.parametrize(
        ("user", "password"),
        [(USER, "wrong"), ("other", PASSWORD), (USER, ""), (USER, PASSWORD + "x")],
    )
    def test_wrong_credentials_are_what_pika_takes_them_for(
        self, broker: Broker, user: str, password: str
    ) -> None:
        with pytest.raises(ProbableAuthenticationError, match="ACCESS_REFUSED"):
            connect(broker, credentials=pika.PlainCredentials(user, password))

    def test_another_virtual_host_is_denied(self, broker: Broker) -> None:
        with pytest.raises(ProbableAccessDeniedError, match="vhost other not found"):
            connect(broker, virtual_host="other")

    def test_a_client_that_cannot_be_told_is_only_disconnected(self, broker: Broker) -> None:
        with Raw(broker) as raw:
            raw.send_bytes(HEADER)
            raw.send(start_ok("wrong", close=False))
            assert isinstance(raw.receive(), spec.Connection.Start)
            assert raw.receive() is None

    def test_another_mechanism_is_refused(self, broker: Broker) -> None:
        with Raw(broker) as raw:
            raw.send_bytes(HEADER)
            raw.send(start_ok(mechanism="AMQPLAIN"))
            assert raw.wait_for(spec.Connection.Close).reply_code == 403

    def test_who_says_nothing_is_cut_off(
        self, broker: Broker, loop_time: Callable[[float], None]
    ) -> None:
        with Raw(broker) as silent, Raw(broker) as half:
            half.send_bytes(HEADER)
            assert isinstance(half.receive(), spec.Connection.Start)
            loop_time(amqp._HANDSHAKE_TIMEOUT + 1)
            assert silent.receive() is None
            assert half.receive() is None

    def test_heartbeats_come_and_are_expected(
        self, broker: Broker, loop_time: Callable[[float], None]
    ) -> None:
        """Every five seconds, and for twenty seconds nobody has to say anything."""
        with Raw(broker) as alive, Raw(broker) as dead:
            for client in (alive, dead):
                client.log_in(heartbeat=10)
                assert isinstance(client.receive(), frame.Heartbeat)
            for seconds in (6, 12, 18, 24, 30):
                alive.send_bytes(frame.Heartbeat().marshal())
                loop_time(6)
                assert isinstance(alive.receive(), frame.Heartbeat)
                if seconds <= 24:
                    assert isinstance(dead.receive(), frame.Heartbeat) == (seconds < 20)

    def test_the_protocol_of_others_is_answered_with_ours(self, broker: Broker) -> None:
        with Raw(broker) as raw:
            raw.send_bytes(b"GET / HTTP/1.1\r\n\r\n")
            found = raw.receive()
            assert isinstance(found, frame.ProtocolHeader)
            assert raw.receive() is None


class TestQueues:
    def test_a_message_comes_as_it_was_sent(self, broker: Broker, channel: BlockingChannel) -> None:
        broker.declare("q")
        properties = pika.BasicProperties(
            "application/json",
            headers={"n": 1, "t": ["a", None, True], "d": {"x": "ü"}},
            delivery_mode=2,
            timestamp=12,
            app_id="me",
        )
        channel.basic_publish("", "q", b"hello", properties)

        method, got, body = channel.basic_get("q", auto_ack=True)
        assert (method.exchange, method.routing_key) == ("", "q")
        assert (method.redelivered, method.message_count) == (False, 0)
        assert got == properties
        assert body == b"hello"

    @pytest.mark.parametrize(
        ("size", "frame_max"),
        [(20_000_000, 131072), (1_000_000, 4096), (0, 4096), (4088, 4096), (4089, 4096)],
    )
    def test_a_body_may_be_large(self, broker: Broker, size: int, frame_max: int) -> None:
        broker.declare("q")
        body = os.urandom(size)
        with opened(broker, frame_max=frame_max) as channel:
            channel.confirm_delivery()
            channel.basic_publish("", "q", body)
            assert channel.basic_get("q", auto_ack=True)[2] == body

        broker.publish("", "q", body)
        with opened(broker, frame_max=frame_max) as channel:
            _, _, got = next(channel.consume("q", auto_ack=True))
            assert got == body

    def test_two_consumers_take_turns(self, broker: Broker) -> None:
        broker.declare("q")
        got: dict[str, list[bytes]] = {"a": [], "b": []}
        with opened(broker) as a, opened(broker) as b:
            for name, channel in (("a", a), ("b", b)):
                channel.basic_consume(
                    "q", lambda ch, m, p, body, name=name: got[name].append(body), auto_ack=True
                )

            assert broker.consumers("q") == 2
            for n in range(6):
                broker.publish("", "q", b"%d" % n)
            collected(a, got["a"], 3)
            collected(b, got["b"], 3)
        assert got == {"a": [b"0", b"2", b"4"], "b": [b"1", b"3", b"5"]}
        wait_until(lambda: broker.consumers("q") == 0, "no consumer")

    def test_no_more_is_delivered_than_asked_for(
        self, broker: Broker, channel: BlockingChannel
    ) -> None:
        broker.declare("q")
        got: list[int] = []
        channel.basic_qos(prefetch_count=3)
        channel.basic_consume("q", lambda ch, m, p, body: got.append(m.delivery_tag))
        for _ in range(8):
            broker.publish("", "q", b"")

        assert collected(channel, got, 3) == [1, 2, 3]
        assert broker.depth("q") == 5, "the others are not on their way"

        channel.basic_ack(2, multiple=True)
        assert collected(channel, got, 5) == [1, 2, 3, 4, 5]
        assert broker.depth("q") == 3

        channel.basic_nack(3, requeue=True)
        assert len(collected(channel, got, 6)) == 6
        assert broker.depth("q") == 3

    def test_what_was_not_acknowledged_takes_its_place_again(self, broker: Broker) -> None:
        broker.declare("q")
        for n in range(6):
            broker.publish("", "q", b"%d" % n)
        with opened(broker) as first:
            tags = [first.basic_get("q")[0].delivery_tag for _ in range(5)]
            first.basic_ack(tags[1])
            other = first.connection.channel()
            other.basic_get("q")
            broker.publish("", "q", b"6")
            assert broker.cut() == 1
            with pytest.raises(AMQPConnectionError):
                first.connection.process_data_events(120)

        with opened(broker) as second:
            again = [(b"%d" % n, True) for n in (0, 2, 3, 4, 5)]
            new = [(b"6", False)]
            assert waiting(second, "q", auto_ack=False) == again + new
            second.close()
            third = second.connection.channel()
            assert waiting(third, "q") == [(body, True) for body, _ in again + new]

    def test_a_waiting_consumer_gets_what_another_leaves_in_order(
        self, broker: Broker, channel: BlockingChannel
    ) -> None:
        broker.declare("q")
        for n in range(50):
            broker.publish("", "q", b"%d" % n)
        got: list[bytes] = []
        with Raw(broker) as first:
            first.open().send(spec.Channel.Open(), channel=2)
            for number in (1, 2) * 5:
                for _ in range(5):
                    first.send(spec.Basic.Get(queue="q"), channel=number)
                    first.wait_for(spec.Basic.GetOk)
            channel.basic_consume("q", lambda ch, m, p, body: got.append(body))
            assert broker.depth("q") == 0
        assert collected(channel, got, 50) == [b"%d" % n for n in range(50)]

    def test_a_message_may_be_sent_back_or_dropped(
        self, broker: Broker, channel: BlockingChannel
    ) -> None:
        broker.declare("q")
        for n in range(4):
            broker.publish("", "q", b"%d" % n)

        tags = [channel.basic_get("q")[0].delivery_tag for _ in range(4)]
        channel.basic_reject(tags[0], requeue=False)
        channel.basic_nack(tags[2], requeue=True)
        channel.basic_reject(tags[1], requeue=True)
        channel.basic_nack(0, multiple=True, requeue=False)
        assert waiting(channel, "q") == [(b"1", True), (b"2", True)]

    def test_purge_and_delete(self, broker: Broker, channel: BlockingChannel) -> None:
        for method in (channel.queue_purge, channel.queue_delete):
            broker.bind("x", "#", "q")
            broker.publish("x", "any", b"")
            broker.publish("", "q", b"")
            assert method("q").method.message_count == 2
            assert broker.depth("q") == 0
        assert channel.queue_delete("never there").method.message_count == 0
        broker.declare("q")
        broker.publish("", "q", b"")
        broker.purge("q")
        broker.purge("never there")
        assert waiting(channel, "q") == []
        broker.delete("q")
        broker.delete("q")
        broker.publish("", "q", b"dropped")
        assert broker.depth("q") == 0

    def test_a_consumer_learns_that_its_queue_is_gone(
        self, broker: Broker, channel: BlockingChannel
    ) -> None:
        broker.declare("q")
        cancelled: list[bytes] = []
        channel.add_on_cancel_callback(lambda method: cancelled.append(method.method.consumer_tag))
        tag = channel.basic_consume("q", lambda *message: None)
        broker.delete("q")
        assert collected(channel, cancelled, 1) == [tag]
        assert channel.is_open

    def test_a_cancelled_consumer_gets_no_more_and_may_still_acknowledge(
        self, broker: Broker, channel: BlockingChannel
    ) -> None:
        broker.declare("q")
        got: list[int] = []
        tag = channel.basic_consume("q", lambda ch, m, p, body: got.append(m.delivery_tag))
        broker.publish("", "q", b"1")
        collected(channel, got, 1)
        channel.basic_cancel(tag)
        broker.publish("", "q", b"2")
        channel.basic_ack(got[0])
        assert waiting(channel, "q") == [(b"2", False)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("act", "code"),
        [
            (lambda ch: ch.queue_declare("none", passive=True), 404),
            (lambda ch: ch.exchange_declare("none", passive=True), 404),
            (lambda ch: ch.basic_consume("none", print), 404),
            (lambda ch: ch.basic_get("none"), 404),
            (lambda ch: ch.queue_purge("none"), 404),
            (lambda ch: ch.queue_bind("q", "none", "key"), 404),
            (lambda ch: ch.basic_publish("none", "key", b"body"), 404),
            (lambda ch: ch.basic_ack(1), 406),
            (lambda ch: ch.basic_ack(7, multiple=True), 406),
            (lambda ch: ch.basic_nack(7), 406),
            (lambda ch: ch.basic_reject(7), 406),
            (lambda ch: consume_by_two(ch, first_exclusive=False), 403),
            (lambda ch: consume_by_two(ch, first_exclusive=True), 403),
        ],
    )
    def test_a_channel_is_closed_and_the_connection_goes_on(
        self, broker: Broker, act: Callable[[BlockingChannel], Any], code: int
    ) -> None:
        broker.bind("topics", "#", "q")
        broker.declare("full")
        broker.publish("", "full", b"")
        with opened(broker) as channel:
            # what has no answer is refused by the next thing
            with pytest.raises(ChannelClosedByBroker) as refused:  # noqa: PT012
                act(channel)
                channel.queue_declare("q", passive=True)
            assert refused.value.reply_code == code
            assert broker.consumers("q") == 0
            assert channel.connection.channel().queue_declare("q", passive=True).method.queue == "q"

    @pytest.mark.parametrize(
        ("act", "code"),
        [
            (lambda ch: ch.tx_select(), 540),
            (lambda ch: ch.exchange_declare("x", "headers"), 503),
            (lambda ch: ch.basic_qos(prefetch_count=1, global_qos=True), 540),
            (lambda ch: consume_twice(ch, "t"), 530),
        ],
    )
    def test_a_connection_is_closed(
        self, broker: Broker, act: Callable[[BlockingChannel], Any], code: int
    ) -> None:
        broker.declare("q")
        with opened(broker) as channel:
            with pytest.raises(ConnectionClosedByBroker) as refused:
                act(channel)
            assert refused.value.reply_code == code

    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (content(b"body"), 505),
            (piece(b"body"), 505),
            (PUBLISH * 2, 505),
            (PUBLISH + content(b"body") + piece(b"more"), 505),
            (PUBLISH + header(2) + piece(b"too much"), 501),
            (struct.pack(">BHI", 3, 1, 1 << 30), 501),
            (struct.pack(">BHIB", 8, 0, 0, 0), 501),
            (struct.pack(">BHI", 7, 0, 0), 501),
            (struct.pack(">BHIIB", 1, 1, 4, 0xDEAD, 206), 540),
            (struct.pack(">BHIB", 1, 1, 0, 206), 540),
            (struct.pack(">BHIIB", 1, 1, 4, spec.Queue.Declare.INDEX, 206), 502),
            (sent(spec.Connection.Open()), 503),
            (sent(spec.Queue.Declare(), channel=0), 503),
            (PUBLISH + struct.pack(">BHIHB", 2, 1, 2, 60, 206), 502),
            (
                sent(spec.Basic.Publish(exchange="x", routing_key=b"\xff")) + content(b"body"),
                502,
            ),
            (sent(spec.Connection.UpdateSecret(b"new", "why"), channel=0), 540),
            (sent(start_ok(), channel=0), 503),
            (header(0, channel=0), 503),
            (sent(spec.Channel.Open()), 504),
            (sent(spec.Channel.Open(), channel=3000), 504),
            (sent(spec.Basic.Qos(), channel=2), 504),
            (sent(spec.Queue.Bind(queue="q", exchange="x", routing_key=b"\xff")), 502),
        ],
    )
    def test_nonsense_ends_its_connection_only(
        self,
        broker: Broker,
        channel: BlockingChannel,
        caplog: pytest.LogCaptureFixture,
        data: bytes,
        code: int,
    ) -> None:
        with Raw(broker) as raw:
            raw.open()
            raw.send_bytes(data)
            assert raw.wait_for(spec.Connection.Close).reply_code == code
            raw.send_bytes(os.urandom(100))
        assert "127.0.0.1" in caplog.text
        channel.connection.process_data_events(0)
        assert channel.queue_declare("still there").method.message_count == 0

    def test_a_fault_of_our_own_ends_one_connection_too(
        self,
        broker: Broker,
        channel: BlockingChannel,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setitem(
            amqp._CHANNEL_HANDLERS, spec.Basic.Qos, lambda channel, method: method.nonsense
        )
        with opened(broker) as other, pytest.raises(ConnectionClosedByBroker, match="541"):
            other.basic_qos()
        assert "nonsense" in caplog.text
        assert channel.queue_declare("still there").method.message_count == 0

    def test_only_small_frames_come_before_the_login(self, broker: Broker) -> None:
        with Raw(broker) as raw:
            raw.send_bytes(HEADER + struct.pack(">BHI", 1, 0, 4096))
            assert raw.wait_for(spec.Connection.Close).reply_code == 501

    @pytest.mark.parametrize(
        "method",
        [
            spec.Connection.Open("/"),
            spec.Connection.TuneOk(),
            spec.Connection.CloseOk(),
            spec.Queue.Declare(queue="q"),
        ],
    )
    def test_the_login_comes_first(self, broker: Broker, method: Any) -> None:
        for channel in (0, 1):
            with Raw(broker) as raw:
                raw.send_bytes(HEADER)
                raw.send(method, channel=channel)
                assert raw.wait_for(spec.Connection.Close).reply_code >= 500
        broker.publish("", "q", b"dropped")
        assert broker.depth("q") == 0

    @pytest.mark.parametrize(
        "tuned",
        [
            spec.Connection.TuneOk(0, 100),
            spec.Connection.TuneOk(0, 1 << 20),
            spec.Connection.TuneOk(5000),
        ],
    )
    def test_limits_are_lowered_not_raised(
        self, broker: Broker, tuned: spec.Connection.TuneOk
    ) -> None:
        with Raw(broker) as raw:
            raw.send_bytes(HEADER)
            raw.send(start_ok(), tuned)
            assert raw.wait_for(spec.Connection.Close).reply_code == 530

    def test_strangers_are_few_and_fill_no_log(
        self,
        broker: Broker,
        channel: BlockingChannel,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(amqp, "_STRANGERS", 2)
        with contextlib.ExitStack() as stack:
            strangers = [stack.enter_context(Raw(broker)) for _ in range(10)]
            assert [stranger.receive() for stranger in strangers[:-2]] == [None] * 8
            assert caplog.text.count("more than 2 handshakes at once") == 1

            monkeypatch.setattr(complaints, "_INTERVAL", 0)
            strangers[-1].send_bytes(b"GET / HTTP/1.1\r\n")
            wait_until(lambda: "does not speak AMQP" in caplog.text, "it is said")
            assert "; 7 complaints more since the last such line" in caplog.text
        assert channel.queue_declare("still there").method.message_count == 0

    def test_too_large_a_message_closes_the_channel(self, broker: Broker) -> None:
        with Raw(broker) as raw:
            raw.open().send(spec.Basic.Publish(), channel=1)
            raw.send_bytes(frame.Header(1, 1 << 40, spec.BasicProperties()).marshal())
            assert raw.wait_for(spec.Channel.Close).reply_code == 406
            raw.send_bytes(frame.Body(1, b"unstoppable").marshal())
            raw.send(spec.Channel.CloseOk(), spec.Channel.Open(), channel=1)
            raw.wait_for(spec.Channel.OpenOk)

    def test_a_long_name_still_fits_into_the_reason(self, channel: BlockingChannel) -> None:
        with pytest.raises(ChannelClosedByBroker, match="no queue 'üü"):
            channel.queue_declare("ü" * 127, passive=True)


class TestConfirms:
    def test_returned_before_it_is_confirmed(self, broker: Broker) -> None:
        broker.declare("q")
        events: list[tuple[str, Any]] = []

        def publish(channel: Any) -> None:
            channel.add_on_return_callback(
                lambda ch, method, properties, body: events.append(("returned", body))
            )
            # with nowait, as pika does it for want of a second callback
            channel.confirm_delivery(confirmed)
            for key in ("q", "nowhere", "q"):
                channel.basic_publish("", key, key.encode(), mandatory=True)
            channel.basic_publish("", "nowhere", b"not mandatory")

        def confirmed(answer: Any) -> None:
            events.append((answer.method.NAME, answer.method.delivery_tag))
            if answer.method.delivery_tag == 4:
                connection.close()

        connection = pika.SelectConnection(
            pika.URLParameters(broker.url),
            on_open_callback=lambda opened: opened.channel(on_open_callback=publish),
            on_close_callback=lambda closed, reason: closed.ioloop.stop(),
        )

        connection.ioloop.start()
        connection.ioloop.close()
        acks = [("Basic.Ack", n) for n in (1, 2, 3, 4)]
        assert events == [acks[0], ("returned", b"nowhere"), *acks[1:]]

    def test_blocking_clients_learn_of_it(self, broker: Broker, channel: BlockingChannel) -> None:
        channel.confirm_delivery()
        with pytest.raises(UnroutableError):
            channel.basic_publish("", "nowhere", b"", mandatory=True)
        channel.basic_publish("", "nowhere", b"")

    def test_none_that_was_confirmed_is_lost(self, broker: Broker) -> None:
        """Four publishers, 2,000 messages, three cuts.

        The consumer holds on to the first fifty until the last cut.
        """
        broker.declare("q")
        confirmed = itertools.count(1)
        count = 0
        got: list[tuple[int, bool]] = []
        ended = threading.Event()
        end = time.monotonic() + 120

        def publish(first: int) -> None:
            nonlocal count
            left = list(range(first, 2000, 4))
            while left and time.monotonic() < end:
                with contextlib.suppress(AMQPError), opened(broker) as channel:
                    channel.confirm_delivery()
                    while left:
                        channel.basic_publish("", "q", b"%d" % left[0], mandatory=True)
                        left.pop(0)
                        count = next(confirmed)

        def consume() -> None:
            while not ended.is_set() and time.monotonic() < end:
                with contextlib.suppress(AMQPError), opened(broker) as channel:
                    channel.basic_qos(prefetch_count=100)
                    for method, _, body in channel.consume("q", inactivity_timeout=0.05):
                        if ended.is_set():
                            break
                        if method is not None:
                            got.append((int(body), method.redelivered))
                            if len(got) > 50:
                                channel.basic_ack(method.delivery_tag)

        def has_confirmed(number: int) -> bool:
            return count >= number and len(got) > 50

        publishers = [threading.Thread(target=publish, args=(n,)) for n in range(4)]
        consumer = threading.Thread(target=consume)
        for thread in (consumer, *publishers):
            thread.start()

        for number in (300, 900, 1500):
            wait_until(functools.partial(has_confirmed, number), f"{number} confirmed")
            wait_until(lambda: broker.cut() >= 1, "somebody is connected")

        for thread in publishers:
            thread.join()
        wait_until(lambda: len({n for n, _ in got}) == 2000, "all 2,000 delivered")
        ended.set()
        consumer.join()

        held = [n for n, _ in got[:50]]
        again = {n for n, redelivered in got if redelivered}
        assert again.issuperset(held)
        held_again = [n for n, redelivered in got[50:] if redelivered and n in held]
        assert held_again[:50] == held, "not in their order"


WORDS = st.lists(st.sampled_from(["a", "b", "[", "x[1]", "*", "#", ".*", ""]), max_size=5)


class TestExchanges:
    @pytest.mark.parametrize(
        ("pattern", "key", "matches"),
        [
            ("*.results", "ep.results", True),
            ("*.results", "a.b.results", False),
            ("*.results", ".results", True),
            ("#", "", True),
            ("#", "a.b", True),
            ("*", "", False),
            ("", "", True),
            ("", "a", False),
            ("a.#", "a", True),
            ("a.#.b", "a.b", True),
            ("a.#.b", "a.x.y.b", True),
            ("#.#.#.b", "a", False),
            ("test[None].tasks", "test[None].tasks", True),
            ("test[None].tasks", "testN.tasks", False),
            ("a.b", "aXb", False),
            ("results*", "results*", True),
        ],
    )
    def test_topics(self, broker: Broker, pattern: str, key: str, matches: bool) -> None:
        broker.bind("x", pattern, "q")
        broker.publish("x", key, b"")
        assert broker.depth("q") == matches

    @settings(max_examples=300, deadline=None)
    @given(WORDS, WORDS)
    def test_topics_are_what_the_definition_says(self, pattern: list[str], key: list[str]) -> None:
        def matches(pattern: list[str], key: list[str]) -> bool:
            if not pattern:
                return not key
            if pattern[0] == "#":
                return any(matches(pattern[1:], key[n:]) for n in range(len(key) + 1))
            return bool(key) and pattern[0] in ("*", key[0]) and matches(pattern[1:], key[1:])

        said, asked = ".".join(pattern), ".".join(key)
        parts = said.split(".") if said else []
        words = asked.split(".") if asked else []
        assert amqp._topic_matches(said, asked) is matches(parts, words)

    def test_a_message_comes_once_however_many_bindings_match(
        self, broker: Broker, channel: BlockingChannel
    ) -> None:
        broker.bind("x", "#", "q")
        broker.bind("x", "a.*", "q")
        broker.bind("x", "a.*", "r")
        channel.basic_publish("x", "a.b", b"1")
        channel.queue_unbind("q", "x", "#")
        channel.queue_unbind("q", "x", "a.*")
        channel.basic_publish("x", "a.b", b"2")
        assert waiting(channel, "q") == [(b"1", False)]
        assert waiting(channel, "r") == [(b"1", False), (b"2", False)]


class TestTaps:
    def test_the_endpoints_message_that_it_could_not_start(self, broker: Broker) -> None:
        heard: list[bytes] = []
        broker.bind("heartbeats", "*.heartbeats", "heartbeats")
        broker.tap("heartbeats", lambda properties, body: heard.append(body))
        where = {
            "connection_url": broker.url,
            "queue_publish_kwargs": {"exchange": "heartbeats", "routing_key": "me.heartbeats"},
        }
        send_endpoint_startup_failure_to_amqp(
            {"endpoint_id": uuid.uuid4(), "heartbeat_queue_info": where}, "no such module"
        )
        wait_until(lambda: len(heard) == 1, "the message")
        report: Any = messagepack.unpack(heard[0])
        assert report.global_state["error"] == "no such module"

    def test_confirmed_when_taken(
        self, broker: Broker, channel: BlockingChannel, caplog: pytest.LogCaptureFixture
    ) -> None:
        taken: list[tuple[Any, bytes]] = []

        def take(properties: pika.BasicProperties, body: bytes) -> None:
            assert threading.current_thread().name == "gc_warm-amqp"
            if body == b"bad":
                raise ValueError("not this one")
            time.sleep(0.05)
            taken.append((properties.app_id, body))

        channel.confirm_delivery()
        broker.declare("q")
        broker.publish("", "q", b"early")
        broker.tap("q", take)
        channel.basic_publish("", "q", b"good", pika.BasicProperties(app_id="me"))
        assert taken == [(None, b"early"), ("me", b"good")]

        with pytest.raises(NackError):
            channel.basic_publish("", "q", b"bad")
        assert "not this one" in caplog.text
        assert waiting(channel, "q") == []

    def test_a_tap_may_use_the_broker(self, broker: Broker, channel: BlockingChannel) -> None:
        def answer(properties: pika.BasicProperties, body: bytes) -> None:
            broker.declare("answers")
            broker.publish("", "answers", body.upper())
            assert broker.consumers("answers") == 0

        broker.tap("questions", answer)
        broker.publish("", "questions", b"a")
        channel.basic_publish("", "questions", b"b")
        channel.queue_declare("answers", passive=True)
        assert waiting(channel, "answers") == [(b"A", False), (b"B", False)]


class TestFollowers:
    def test_a_queue_without_consumers_holds_nothing(self, broker: Broker) -> None:
        taken_back: list[bytes] = []
        broker.declare("q")
        broker.publish("", "q", b"early")
        broker.follow("q", lambda _, left: taken_back.extend(left))
        broker.publish("", "q", b"late")
        wait_until(lambda: taken_back == [b"early", b"late"], "both are back")

        with opened(broker) as channel:
            got: list[bytes] = []
            channel.basic_consume("q", lambda _c, _m, _p, body: got.append(body))
            for body in (b"1", b"2"):
                broker.publish("", "q", body)
            assert collected(channel, got, 2) == [b"1", b"2"]

        wait_until(lambda: taken_back[2:] == [b"1", b"2"], "what was not acknowledged is back")
        assert broker.depth("q") == 0

    def test_it_is_told_of_the_last_consumer_only(
        self, broker: Broker, channel: BlockingChannel
    ) -> None:
        reports: list[bool] = []
        broker.follow("q", lambda is_consumed, _: reports.append(is_consumed))
        tags = [channel.basic_consume("q", print) for _ in range(2)]
        channel.basic_cancel(tags[0])
        assert reports == [True]
        channel.basic_cancel(tags[1])
        wait_until(lambda: reports == [True, False], "the last has gone")

        channel.basic_consume("q", print)
        wait_until(lambda: reports == [True, False, True], "it is consumed again")
        broker.delete("q")
        wait_until(lambda: reports == [True, False, True, False], "the queue has gone")


@pytest.fixture(scope="class")
def bystander() -> Iterator[tuple[Broker, BlockingChannel]]:
    """A client that minds its own business."""
    with Broker(USER, PASSWORD) as broker, opened(broker) as channel:
        channel.confirm_delivery()
        broker.bind("x", "#", "q")  # the exchange that the others' garbled sessions use, too
        yield broker, channel


class TestTroubledClients:
    def test_who_does_not_read_stalls_nobody_and_loses_nothing(
        self, broker: Broker, channel: BlockingChannel
    ) -> None:
        for queue in ("slow", "quick"):
            broker.declare(queue)
        with Raw(broker) as slow:
            slow.open().send(spec.Basic.Consume(queue="slow", no_ack=True), channel=1)
            slow.wait_for(spec.Basic.ConsumeOk)
            for n in range(100):
                broker.publish("", "slow", b"%3d" % n + bytes(250_000))
                broker.publish("", "quick", b"")

            assert len(waiting(channel, "quick")) == 100
            left = channel.queue_declare("slow", passive=True).method.message_count
            assert 0 < left < 100, "everything was written to a client that does not read"
            assert self._read(slow, 100) == [b"%3d" % n for n in range(100)]

    @staticmethod
    def _read(raw: Raw, count: int) -> list[bytes]:
        found: list[bytes] = []
        while len(found) < count:
            if isinstance(raw.receive(), frame.Header):
                found.append(raw.wait_for(frame.Body).fragment[:3])
        return found

    @settings(max_examples=60, deadline=None)
    @given(st.binary(max_size=60))
    def test_random_bytes_harm_nobody_else(
        self, bystander: tuple[Broker, BlockingChannel], data: bytes
    ) -> None:
        for start in (b"", HEADER, HANDSHAKE):
            self._harm(bystander, start + data)

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_a_garbled_session_harms_nobody_else(
        self, bystander: tuple[Broker, BlockingChannel], data: st.DataObject
    ) -> None:
        garbled = bytearray(SESSION)
        for _ in range(data.draw(st.integers(1, 4))):
            at = data.draw(st.integers(0, len(garbled) - 1))
            garbled[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        self._harm(bystander, bytes(garbled))

    @staticmethod
    def _harm(bystander: tuple[Broker, BlockingChannel], data: bytes) -> None:
        broker, channel = bystander
        with socket.create_connection(("127.0.0.1", broker.port)) as attacker:
            with contextlib.suppress(OSError):
                attacker.sendall(data)
            channel.basic_publish("x", "any.key", b"alive", mandatory=True)
        assert (b"alive", False) in waiting(channel, "q")


HANDSHAKE = HEADER + sent(
    start_ok(), spec.Connection.TuneOk(0, 0, 60), spec.Connection.Open("/"), channel=0
)
SESSION = b"".join(
    [
        HANDSHAKE,
        sent(
            spec.Channel.Open(),
            spec.Exchange.Declare(exchange="x", type="topic"),
            spec.Queue.Declare(queue="mine"),
            spec.Queue.Bind(queue="mine", exchange="x", routing_key="#"),
            spec.Confirm.Select(),
            spec.Basic.Consume(queue="mine"),
            spec.Basic.Publish(exchange="x", routing_key="k"),
        ),
        content(b"hello"),
        sent(spec.Basic.Ack(1)),
    ]
)


class TestBroker:
    def test_messages_of_one_thread_keep_their_order(
        self, broker: Broker, channel: BlockingChannel
    ) -> None:
        broker.declare("q")

        def publish(name: int) -> None:
            for n in range(100):
                broker.publish("", "q", b"%d %d" % (name, n))

        threads = [threading.Thread(target=publish, args=(name,)) for name in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        found = [tuple(map(int, body.split())) for body, _ in waiting(channel, "q")]
        assert sorted(found) == [(name, n) for name in range(3) for n in range(100)]
        for name in range(3):
            assert [n for whose, n in found if whose == name] == list(range(100))

    def test_publish_says_what_is_wrong(self, broker: Broker) -> None:
        with pytest.raises(ValueError, match="256"):
            broker.publish("", "ü" * 128, b"")

    def test_a_port_of_choice_that_may_be_taken(self, broker: Broker) -> None:
        with pytest.raises(OSError, match="in use"):
            Broker(USER, PASSWORD, broker.port)
        broker.close()
        with Broker(USER, PASSWORD, broker.port) as second:
            assert second.port == broker.port

    def test_cut_ends_what_is_there_and_nothing_that_comes(self, broker: Broker) -> None:
        broker.declare("q")
        with opened(broker) as one, opened(broker) as two:
            one.basic_consume("q", lambda *message: None)
            assert broker.cut() == 2
            assert broker.consumers("q") == 0
            assert broker.cut() == 0
            for channel in (one, two):
                with pytest.raises(AMQPConnectionError):
                    channel.connection.process_data_events(120)
        with opened(broker) as three:
            assert three.is_open

    def test_closed_is_closed(self) -> None:
        broker = Broker(USER, PASSWORD)
        with opened(broker) as channel:
            closers = [threading.Thread(target=broker.close) for _ in range(3)]
            for thread in closers:
                thread.start()
            for thread in closers:
                thread.join()
            broker.close()
            with pytest.raises(AMQPConnectionError):
                channel.connection.process_data_events(120)

        for act in (
            lambda: broker.declare("q"),
            lambda: broker.publish("", "q", b""),
            broker.cut,
            lambda: broker.consumers("q"),
        ):
            with pytest.raises(RuntimeError, match="closed") as refused:
                act()
            assert PASSWORD not in str(refused.value)

        assert "gc_warm-amqp" not in {thread.name for thread in threading.enumerate()}
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", broker.port))

    def test_close_while_clients_come_and_calls_are_made(self) -> None:
        for _ in range(10):
            broker = Broker(USER, PASSWORD)
            sockets = [socket.create_connection(("127.0.0.1", broker.port)) for _ in range(5)]
            ended: list[str] = []

            def publish(broker: Broker = broker, ended: list[str] = ended) -> None:
                try:
                    while True:
                        broker.publish("", "q", b"")
                except RuntimeError as error:
                    ended.append(str(error))

            thread = threading.Thread(target=publish)
            thread.start()
            broker.close()
            thread.join(120)
            assert ended == [f"{broker!r}: nothing can be done with it any more"]
            for one in sockets:
                one.close()

    def test_a_tap_may_close_the_broker(self) -> None:
        broker = Broker(USER, PASSWORD)
        broker.tap("q", lambda properties, body: broker.close())
        broker.publish("", "q", b"")
        broker.close()
        assert repr(broker) == f"<Broker on 127.0.0.1:{broker.port}, closed>"

    def test_the_password_shows_nowhere(self, broker: Broker) -> None:
        assert PASSWORD not in f"{broker!r} {broker}"
