"""An AMQP 0-9-1 broker in memory, for unmodified executors and endpoints on one machine.

It behaves as RabbitMQ does where these clients could notice, on pika's codec. What was confirmed to
its publisher is in a queue or was taken by a tap; what was not acknowledged when its channel ended
takes its old place in the queue and is delivered again. Nothing is written to disk. Left out:
transactions, recover, fanout and headers exchanges, exclusive and auto-delete queues, priorities,
expiry, arguments of queues, limits shared by all consumers of a channel.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import hmac
import itertools
import logging
import socket
import struct
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar, cast
from urllib.parse import quote

from pika import frame, spec
from pika.spec import Basic, BasicProperties

log = logging.getLogger("gc_warm")

T = TypeVar("T")

_HOST = "127.0.0.1"
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_CHANNEL_MAX = 2047
_MESSAGE_MAX = 128 * 1024 * 1024  # bytes
_HEARTBEAT = 60  # seconds; a client may ask for something else
_HANDSHAKE_SECONDS = 10
_CLOSE_SECONDS = 1  # that a refused client has to read why


class _Refusal(Exception):
    """What a client did is refused with one of AMQP's reply codes; that ends its channel or, if the code is a hard one, its connection."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.code: int = getattr(spec, name)
        # as much as AMQP has room for
        self.text = f"{name} - {reason}".encode()[:255].decode(errors="ignore")
        self.is_hard = self.code >= spec.FRAME_ERROR


@dataclass(frozen=True)
class _Message:
    """What was published; its header frame's payload is passed on as it came."""

    exchange: str
    routing_key: str
    properties: BasicProperties
    header: bytes
    body: bytes


@dataclass(order=True)
class _Entry:
    """A message's place in one queue, which it takes again if it is not acknowledged."""

    number: int
    queue: _Queue = field(compare=False)
    message: _Message = field(compare=False)
    consumer: _Consumer | None = field(default=None, compare=False)
    redelivered: bool = field(default=False, compare=False)


class _Queue:
    """Messages that wait, and the consumers that take turns in getting them."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.consumers: deque[_Consumer] = deque()
        self._take: Callable[[BasicProperties, bytes], None] | None = None
        self._numbers = itertools.count()
        self._waiting: list[_Entry] = []  # a heap

    @property
    def size(self) -> int:
        return len(self._waiting)

    def put(self, message: _Message) -> bool:
        """Whether the message is in good hands: false if the tap failed."""
        if self._take is not None:
            return self._tapped(self._take, message)
        heapq.heappush(self._waiting, _Entry(next(self._numbers), self, message))
        self.deliver()
        return True

    def put_back(self, entry: _Entry) -> None:
        entry.redelivered, entry.consumer = True, None
        heapq.heappush(self._waiting, entry)

    def pop(self) -> _Entry | None:
        return heapq.heappop(self._waiting) if self._waiting else None

    def purge(self) -> int:
        purged = len(self._waiting)
        self._waiting.clear()
        return purged

    def tap(self, take: Callable[[BasicProperties, bytes], None]) -> None:
        self._take = take
        self.deliver()

    def deliver(self) -> None:
        """Hand out what waits to whoever is ready."""
        while self._waiting and self._take is not None:
            self._tapped(self._take, heapq.heappop(self._waiting).message)
        while self._waiting and (consumer := self._next_ready()) is not None:
            consumer.send(heapq.heappop(self._waiting))

    def _tapped(self, take: Callable[[BasicProperties, bytes], None], message: _Message) -> bool:
        try:
            take(message.properties, message.body)
        except BaseException:  # the others need this thread
            log.exception("AMQP: what taps queue %s failed on a message", self.name)
            return False
        return True

    def _next_ready(self) -> _Consumer | None:
        for _ in range(len(self.consumers)):
            consumer = self.consumers[0]
            self.consumers.rotate(-1)
            if consumer.ready:
                return consumer
        return None


def _topic_matches(pattern: str, key: str) -> bool:
    words = key.split(".") if key else []
    reached = {0}  # numbers of words that the pattern so far may stand for
    for part in pattern.split(".") if pattern else []:
        if part == "#":
            reached = set(range(min(reached), len(words) + 1)) if reached else reached
        else:
            reached = {
                count + 1 for count in reached if count < len(words) and part in ("*", words[count])
            }
    return len(words) in reached


class _VirtualHost:
    """The queues and exchanges, and who is connected. All of it belongs to the broker's thread."""

    def __init__(self) -> None:
        self.queues: dict[str, _Queue] = {}
        self.exchanges: dict[str, set[tuple[str, _Queue]]] = {}  # their bindings: pattern and queue
        self.connections: set[_Connection] = set()

    def declare_queue(self, name: str) -> _Queue:
        if name not in self.queues:
            self.queues[name] = _Queue(name)
        return self.queues[name]

    def find(self, name: str) -> _Queue:
        """The queue, or one that is as empty as one that is not there."""
        return self.queues.get(name) or _Queue(name)

    def bind(self, exchange: str, pattern: str, queue: str) -> None:
        self.exchanges.setdefault(exchange, set()).add((pattern, self.declare_queue(queue)))

    def delete_queue(self, name: str) -> int:
        """How many messages are lost with it."""
        queue = self.find(name)
        self.queues.pop(name, None)
        for bindings in self.exchanges.values():
            bindings -= {binding for binding in bindings if binding[1] is queue}
        for consumer in tuple(queue.consumers):
            consumer.channel.tell_cancelled(consumer)
        queue.consumers.clear()
        return queue.purge()

    def bindings(self, name: str) -> set[tuple[str, _Queue]]:
        if name not in self.exchanges:
            raise _Refusal("NOT_FOUND", f"no exchange '{name}' in vhost '/'")
        return self.exchanges[name]

    def publish(self, message: _Message) -> list[bool]:
        """For each queue that the message is routed to, whether it is in good hands there."""
        if message.exchange:
            queues = {
                queue
                for pattern, queue in self.bindings(message.exchange)
                if _topic_matches(pattern, message.routing_key)
            }
        else:
            queues = {queue for queue in [self.queues.get(message.routing_key)] if queue}
        return [queue.put(message) for queue in queues]

    def cut(self) -> int:
        cut = tuple(self.connections)
        for connection in cut:
            connection.abort()
        # only now: nothing is to be delivered again to those who are cut off, too
        for connection in cut:
            connection.release()
        return len(cut)


@dataclass(eq=False)
class _Consumer:
    channel: _Channel
    queue: _Queue
    tag: str
    no_ack: bool
    exclusive: bool
    prefetch: int
    unacked: int = 0

    @property
    def ready(self) -> bool:
        return self.channel.connection.writable and not 0 < self.prefetch <= self.unacked

    def send(self, entry: _Entry) -> None:
        entry.consumer = self
        tag, message = self.channel.hand_out(entry, self.no_ack), entry.message
        self.channel.send(
            Basic.Deliver(self.tag, tag, entry.redelivered, message.exchange, message.routing_key),
            message,
        )


class _Incoming:
    """A message on its way in: a method, then a header, then the body in pieces."""

    def __init__(self, publish: Basic.Publish) -> None:
        self.publish = publish
        self._header: bytes | None = None
        self._properties = BasicProperties()
        self._body = bytearray()
        self._size = 0

    def add(self, kind: int, payload: bytes) -> _Message | None:
        """The message, once it is complete."""
        if (kind == spec.FRAME_HEADER) is not (self._header is None):
            raise _Refusal("UNEXPECTED_FRAME", "a message is one header, then its body")
        if self._header is None:
            self._add_header(payload)
        else:
            self._body += payload
        if len(self._body) > self._size:
            raise _Refusal(
                "FRAME_ERROR", f"more than the {self._size} bytes that the header promised"
            )
        if len(self._body) < self._size:
            return None
        return _Message(
            self.publish.exchange,
            self.publish.routing_key,
            self._properties,
            self._header or payload,
            bytes(self._body),
        )

    def _add_header(self, payload: bytes) -> None:
        with _reading():
            self._header, (kind, self._size) = payload, struct.unpack_from(">HxxQ", payload)
            if kind != BasicProperties.INDEX:  # consumers get it as it came, and would stumble
                raise ValueError(f"content of class {kind}")
            self._properties.decode(payload, 12)
        if self._size > _MESSAGE_MAX:
            raise _Refusal(
                "PRECONDITION_FAILED",
                f"message size {self._size} is larger than max size {_MESSAGE_MAX}",
            )


class _Channel:
    """One channel of a connection: its consumers, and what it has not acknowledged."""

    def __init__(self, connection: _Connection, host: _VirtualHost, number: int) -> None:
        self.connection, self.number = connection, number
        self.closing = False
        self._host = host
        self._consumers: dict[str, _Consumer] = {}
        self._unacked: dict[int, _Entry] = {}
        self._tags = itertools.count(1)
        self._confirms: Iterator[int] | None = None
        self._prefetch = 0
        self._incoming: _Incoming | None = None

    @property
    def queues(self) -> set[_Queue]:
        """Those it consumes from."""
        return {consumer.queue for consumer in self._consumers.values()}

    def send(self, method: Any, message: _Message | None = None) -> None:
        self.connection.send(self.number, method, message)

    def hand_out(self, entry: _Entry, no_ack: bool) -> int:
        """The tag under which the message is to be delivered, and will be acknowledged."""
        tag = next(self._tags)
        if not no_ack:
            self._unacked[tag] = entry
            if entry.consumer is not None:
                entry.consumer.unacked += 1
        return tag

    def on_method(self, method: Any) -> None:
        if self._incoming is not None:
            raise _Refusal("UNEXPECTED_FRAME", f"{method.NAME} before the content of a message")
        handler = _ON_CHANNEL.get(type(method))
        if handler is None:
            raise _Refusal("COMMAND_INVALID", f"{method.NAME} is not for a channel")
        handler(self, method)

    def on_content(self, kind: int, payload: bytes) -> None:
        if self._incoming is None:
            raise _Refusal("UNEXPECTED_FRAME", "content without Basic.Publish")
        message = self._incoming.add(kind, payload)
        if message is not None:
            mandatory, self._incoming = self._incoming.publish.mandatory, None
            self._publish(message, mandatory)

    def refuse(self, refusal: _Refusal) -> None:
        """Close this channel with the reason; until the client has seen it, what it sends is ignored."""
        log.warning("AMQP: closed channel %d of %s: %s", self.number, self.connection, refusal.text)
        self.closing = True
        self.send(spec.Channel.Close(refusal.code, refusal.text, 0, 0))
        for queue in self.end():
            queue.deliver()

    def end(self) -> set[_Queue]:
        """Give up all consumers and messages; returns the queues that may now have something for others. Idempotent."""
        consumers, self._consumers = self._consumers, {}
        for consumer in consumers.values():
            self._leave(consumer)
        unacked, self._unacked = self._unacked, {}
        for entry in unacked.values():
            entry.queue.put_back(entry)
        return {entry.queue for entry in unacked.values()}

    def tell_cancelled(self, consumer: _Consumer) -> None:
        """The queue was deleted under its consumer."""
        del self._consumers[consumer.tag]
        self.send(Basic.Cancel(consumer.tag, nowait=True))

    def _leave(self, consumer: _Consumer) -> None:
        consumer.queue.consumers.remove(consumer)

    def _publish(self, message: _Message, mandatory: bool) -> None:
        accepted = self._host.publish(message)
        if mandatory and not accepted:
            self.send(
                Basic.Return(spec.NO_ROUTE, "NO_ROUTE", message.exchange, message.routing_key),
                message,
            )
        if self._confirms is not None:
            tag = next(self._confirms)
            self.send(Basic.Ack(tag) if all(accepted) else Basic.Nack(tag, requeue=False))

    def _reply(self, method: Any, nowait: bool = False) -> None:
        if not nowait:
            self.send(method)

    def _queue(self, name: str) -> _Queue:
        queue = self._host.queues.get(name)
        if queue is None:
            raise _Refusal("NOT_FOUND", f"no queue '{name}' in vhost '/'")
        return queue

    def _declare_exchange(self, method: spec.Exchange.Declare) -> None:
        if method.passive:
            self._host.bindings(method.exchange)
        elif method.type not in ("topic", "direct"):
            # a direct one is a topic exchange whose patterns have no wildcards
            raise _Refusal(
                "COMMAND_INVALID",
                f"exchange type '{method.type}' is not among those there are here",
            )
        else:
            self._host.exchanges.setdefault(method.exchange, set())
        self._reply(spec.Exchange.DeclareOk(), method.nowait)

    def _declare_queue(self, method: spec.Queue.Declare) -> None:
        name = method.queue or f"amq.gen-{uuid.uuid4().hex}"
        if not method.passive:
            self._host.declare_queue(name)
        queue = self._queue(name)
        self._reply(spec.Queue.DeclareOk(name, queue.size, len(queue.consumers)), method.nowait)

    def _bind(self, method: spec.Queue.Bind) -> None:
        self._host.bindings(method.exchange).add((method.routing_key, self._queue(method.queue)))
        self._reply(spec.Queue.BindOk(), method.nowait)

    def _unbind(self, method: spec.Queue.Unbind) -> None:
        self._host.bindings(method.exchange).discard(
            (method.routing_key, self._queue(method.queue))
        )
        self._reply(spec.Queue.UnbindOk())

    def _purge(self, method: spec.Queue.Purge) -> None:
        self._reply(spec.Queue.PurgeOk(self._queue(method.queue).purge()), method.nowait)

    def _delete_queue(self, method: spec.Queue.Delete) -> None:
        self._reply(spec.Queue.DeleteOk(self._host.delete_queue(method.queue)), method.nowait)

    def _limit(self, method: Basic.Qos) -> None:
        if method.prefetch_size or method.global_qos:
            raise _Refusal("NOT_IMPLEMENTED", "prefetch_size, or a limit for a whole channel")
        self._prefetch = method.prefetch_count
        self._reply(Basic.QosOk())

    def _consume(self, method: Basic.Consume) -> None:
        queue, tag = (
            self._queue(method.queue),
            method.consumer_tag or f"amq.ctag-{uuid.uuid4().hex}",
        )
        if tag in self._consumers:
            raise _Refusal("NOT_ALLOWED", f"attempt to reuse consumer tag '{tag}'")
        if any(method.exclusive or other.exclusive for other in queue.consumers):
            raise _Refusal("ACCESS_REFUSED", f"queue '{queue.name}' in vhost '/' in exclusive use")
        consumer = _Consumer(self, queue, tag, method.no_ack, method.exclusive, self._prefetch)
        self._consumers[tag] = consumer
        queue.consumers.append(consumer)
        self._reply(Basic.ConsumeOk(tag), method.nowait)
        queue.deliver()

    def _cancel(self, method: Basic.Cancel) -> None:
        consumer = self._consumers.pop(method.consumer_tag, None)
        if consumer is not None:
            self._leave(consumer)
        self._reply(Basic.CancelOk(method.consumer_tag), method.nowait)

    def _get(self, method: Basic.Get) -> None:
        queue = self._queue(method.queue)
        entry = queue.pop()
        if entry is None:
            self.send(Basic.GetEmpty())
            return
        tag, message = self.hand_out(entry, method.no_ack), entry.message
        self.send(
            Basic.GetOk(tag, entry.redelivered, message.exchange, message.routing_key, queue.size),
            message,
        )

    def _start_publish(self, method: Basic.Publish) -> None:
        self._incoming = _Incoming(method)

    def _confirm(self, method: spec.Confirm.Select) -> None:
        self._confirms = self._confirms or itertools.count(1)
        self._reply(spec.Confirm.SelectOk(), method.nowait)

    def _settle(self, tag: int, multiple: bool = False, requeue: bool = False) -> None:
        if tag not in self._unacked and not (multiple and tag == 0):
            raise _Refusal("PRECONDITION_FAILED", f"unknown delivery tag {tag}")
        tags = (
            list(itertools.takewhile(lambda other: other <= (tag or other), self._unacked))
            if multiple
            else [tag]
        )
        settled = [self._unacked.pop(tag) for tag in tags]
        for entry in settled:
            if entry.consumer is not None:
                entry.consumer.unacked -= 1
            if requeue:
                entry.queue.put_back(entry)
        for queue in {entry.queue for entry in settled}:
            queue.deliver()


_ON_CHANNEL: dict[type, Callable[[_Channel, Any], None]] = {
    spec.Exchange.Declare: _Channel._declare_exchange,
    spec.Queue.Declare: _Channel._declare_queue,
    spec.Queue.Bind: _Channel._bind,
    spec.Queue.Unbind: _Channel._unbind,
    spec.Queue.Purge: _Channel._purge,
    spec.Queue.Delete: _Channel._delete_queue,
    Basic.Qos: _Channel._limit,
    Basic.Consume: _Channel._consume,
    Basic.Cancel: _Channel._cancel,
    Basic.CancelOk: lambda channel, method: None,
    Basic.Get: _Channel._get,
    Basic.Publish: _Channel._start_publish,
    Basic.Ack: lambda channel, method: channel._settle(method.delivery_tag, method.multiple),
    Basic.Nack: lambda channel, method: channel._settle(
        method.delivery_tag, method.multiple, method.requeue
    ),
    Basic.Reject: lambda channel, method: channel._settle(
        method.delivery_tag, requeue=method.requeue
    ),
    spec.Confirm.Select: _Channel._confirm,
}


class _Connection(asyncio.Protocol):
    """One client: frames in and out, the handshake, heartbeats."""

    _transport: asyncio.Transport
    # there is always one: for the handshake, then for heartbeats, then for the end
    _timer: asyncio.TimerHandle

    def __init__(self, host: _VirtualHost, credentials: bytes) -> None:
        self._host, self._credentials = host, credentials
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray()
        self._channels: dict[int, _Channel] = {}
        # the next step of the handshake; None when it is done
        self._expected: type | None = frame.ProtocolHeader
        self._frame_max = spec.FRAME_MIN_SIZE  # as long as nobody has logged in
        self._heartbeat, self._heard = _HEARTBEAT, 0.0
        self._refused = self._paused = False

    def __str__(self) -> str:
        return "{}:{}".format(*self._transport.get_extra_info("peername", ("?", "?")))

    @property
    def writable(self) -> bool:
        """Whether another message may be sent: not to one who is gone, nor to one who does not read."""
        return not (self._paused or self._transport.is_closing())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._host.connections.add(self)
        self._timer = self._loop.call_later(
            _HANDSHAKE_SECONDS, self._give_up, f"no handshake within {_HANDSHAKE_SECONDS} s"
        )

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self._host.connections.discard(self)
        self.release()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        for queue in set().union(*[channel.queues for channel in self._channels.values()]):
            queue.deliver()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._heard = self._loop.time()
        self._buffer += data
        try:
            while self._take_from_buffer():
                pass
        except _Refusal as refusal:
            self._refuse(refusal)
        except Exception:
            log.exception("AMQP: a frame of %s could not be handled", self)
            self._refuse(_Refusal("INTERNAL_ERROR", "the frame could not be handled"))

    def send(self, number: int, method: Any, message: _Message | None = None) -> None:
        """Write a method, and the content that goes with it."""
        frames = [frame.Method(number, method).marshal()]
        if message is not None:
            frames.append(_frame(spec.FRAME_HEADER, number, message.header))
            step = self._frame_max - spec.FRAME_HEADER_SIZE - spec.FRAME_END_SIZE
            pieces = (
                message.body[start : start + step] for start in range(0, len(message.body), step)
            )
            frames.extend(_frame(spec.FRAME_BODY, number, piece) for piece in pieces)
        if not self._transport.is_closing():
            self._transport.write(b"".join(frames))

    def abort(self) -> None:
        """End it without a word."""
        self._transport.abort()

    def release(self) -> None:
        """Give back everything that the client held. Idempotent."""
        channels, self._channels = tuple(self._channels.values()), {}
        for queue in set().union(*[channel.end() for channel in channels]):
            queue.deliver()

    def _give_up(self, reason: str) -> None:
        log.warning("AMQP: cut %s off: %s", self, reason)
        self.abort()

    def _set_timer(self, seconds: float, act: Callable[[], None]) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, act)

    def _refuse(self, refusal: _Refusal) -> None:
        """Close this connection with the reason.

        What still comes is not read; most clients hang up at once.
        """
        log.warning("AMQP: closed the connection of %s: %s", self, refusal.text)
        self._refused = True
        self.send(0, spec.Connection.Close(refusal.code, refusal.text, 0, 0))
        self.release()
        self._set_timer(_CLOSE_SECONDS, self.abort)

    def _take_from_buffer(self) -> bool:
        """Handle one frame; false if there is none to handle."""
        if self._transport.is_closing():
            return False
        if self._expected is frame.ProtocolHeader:
            return self._greet()
        if len(self._buffer) < spec.FRAME_HEADER_SIZE:
            return False
        kind, number, size = struct.unpack_from(">BHI", self._buffer)
        end = size + spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE
        if (
            kind
            not in (spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT)
            or end > self._frame_max
        ):
            raise _Refusal(
                "FRAME_ERROR",
                f"a frame of type {kind} and {end} bytes, where {self._frame_max} are allowed",
            )
        if len(self._buffer) < end:
            return False
        if self._buffer[end - 1] != spec.FRAME_END:
            raise _Refusal("FRAME_ERROR", "no end of frame where one should be")
        payload = bytes(self._buffer[spec.FRAME_HEADER_SIZE : end - 1])
        del self._buffer[:end]
        if kind != spec.FRAME_HEARTBEAT:
            self._on_frame(kind, number, payload)
        return True

    def _greet(self) -> bool:
        said = bytes(self._buffer[: len(_PROTOCOL_HEADER)])
        if said != _PROTOCOL_HEADER:
            if not _PROTOCOL_HEADER.startswith(said):
                log.warning("AMQP: %s does not speak AMQP 0-9-1", self)
                self._transport.write(_PROTOCOL_HEADER)
                self._transport.close()
            return False
        del self._buffer[: len(said)]
        self._expected = spec.Connection.StartOk
        abilities = (
            "publisher_confirms",
            "basic.nack",
            "consumer_cancel_notify",
            "authentication_failure_close",
        )
        properties = {"product": "gc_warm", "capabilities": dict.fromkeys(abilities, True)}
        self.send(0, spec.Connection.Start(0, 9, properties, "PLAIN", "en_US"))
        return True

    def _on_frame(self, kind: int, number: int, payload: bytes) -> None:
        method = _decode(payload) if kind == spec.FRAME_METHOD else None
        if number == 0:
            self._on_own_method(method)
            return
        if self._expected is not None:
            raise _Refusal("CHANNEL_ERROR", f"channel {number} before the connection is open")
        manage = _ON_CHANNELS.get(type(method))
        channel = self._channels.get(number)
        if manage is not None:
            manage(self, number)
        elif channel is None:
            raise _Refusal("CHANNEL_ERROR", f"channel {number} is not open")
        elif not channel.closing:
            self._on_channel_frame(channel, kind, method, payload)

    def _on_channel_frame(self, channel: _Channel, kind: int, method: Any, payload: bytes) -> None:
        try:
            if method is not None:
                channel.on_method(method)
            else:
                channel.on_content(kind, payload)
        except _Refusal as refusal:
            if refusal.is_hard:
                raise
            channel.refuse(refusal)

    def _open_channel(self, number: int) -> None:
        if number in self._channels or number > _CHANNEL_MAX:
            raise _Refusal(
                "CHANNEL_ERROR", f"channel {number} is open already, or above {_CHANNEL_MAX}"
            )
        self._channels[number] = _Channel(self, self._host, number)
        self.send(number, spec.Channel.OpenOk())

    def _close_channel(self, number: int) -> None:
        self._drop_channel(number)
        self.send(number, spec.Channel.CloseOk())

    def _drop_channel(self, number: int) -> None:
        channel = self._channels.pop(number, None)
        for queue in channel.end() if channel is not None else ():
            queue.deliver()

    def _on_own_method(self, method: Any) -> None:
        if type(method) not in (self._expected, spec.Connection.Close):
            raise _Refusal("COMMAND_INVALID", "not what the handshake goes on with")
        _ON_CONNECTION[type(method)](self, method)

    def _log_in(self, method: spec.Connection.StartOk) -> None:
        if (
            not hmac.compare_digest(method.response, self._credentials)
            or method.mechanism != "PLAIN"
        ):
            abilities = method.client_properties.get("capabilities")
            if not (isinstance(abilities, dict) and abilities.get("authentication_failure_close")):
                # a client of old takes silence for an answer
                self._give_up("ACCESS_REFUSED - login was refused")
                return
            raise _Refusal(
                "ACCESS_REFUSED", "Login was refused using authentication mechanism PLAIN."
            )
        self._expected = spec.Connection.TuneOk
        self.send(0, spec.Connection.Tune(_CHANNEL_MAX, spec.FRAME_MAX_SIZE, _HEARTBEAT))

    def _tune(self, method: spec.Connection.TuneOk) -> None:
        frame_max = method.frame_max or spec.FRAME_MAX_SIZE
        if (
            not spec.FRAME_MIN_SIZE <= frame_max <= spec.FRAME_MAX_SIZE
            or method.channel_max > _CHANNEL_MAX
        ):
            raise _Refusal(
                "NOT_ALLOWED",
                f"frame_max={frame_max} or channel_max={method.channel_max} out of range",
            )
        self._frame_max, self._heartbeat = frame_max, method.heartbeat
        self._expected = spec.Connection.Open

    def _open(self, method: spec.Connection.Open) -> None:
        if method.virtual_host != "/":
            raise _Refusal("NOT_ALLOWED", f"vhost {method.virtual_host} not found")
        self._expected = None
        self.send(0, spec.Connection.OpenOk())
        self._timer.cancel()
        if self._heartbeat:
            self._beat()

    def _beat(self) -> None:
        if self._loop.time() - self._heard > 2 * self._heartbeat:
            self._give_up(f"nothing heard for two heartbeats of {self._heartbeat} s")
        else:
            self._transport.write(frame.Heartbeat().marshal())
            self._set_timer(self._heartbeat / 2, self._beat)

    def _close(self, method: spec.Connection.Close) -> None:
        self.send(0, spec.Connection.CloseOk())
        self._transport.close()


_ON_CHANNELS: dict[type, Callable[[_Connection, int], None]] = {
    spec.Channel.Open: _Connection._open_channel,
    spec.Channel.Close: _Connection._close_channel,
    spec.Channel.CloseOk: _Connection._drop_channel,
}

_ON_CONNECTION: dict[type, Callable[[_Connection, Any], None]] = {
    spec.Connection.StartOk: _Connection._log_in,
    spec.Connection.TuneOk: _Connection._tune,
    spec.Connection.Open: _Connection._open,
    spec.Connection.Close: _Connection._close,
}


def _frame(kind: int, number: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, number, len(payload)) + payload + bytes([spec.FRAME_END])


def _decode(payload: bytes) -> Any:
    kind = spec.methods.get(int.from_bytes(payload[:4], "big"))
    if not any(kind in known for known in (_ON_CHANNEL, _ON_CHANNELS, _ON_CONNECTION)):
        raise _Refusal("NOT_IMPLEMENTED", f"method {payload[:4].hex()}")
    with _reading():
        method = kind().decode(payload, 4)
        # which is what pika leaves of them
        if kind in _ON_CHANNEL and bytes in map(type, vars(method).values()):
            raise ValueError("names that are not UTF-8")
        return method


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Whatever pika's codec stumbles over is the sender's fault."""
    try:
        yield
    except Exception as error:
        raise _Refusal("SYNTAX_ERROR", "a frame that cannot be decoded") from error


class Broker:
    """An AMQP broker on this machine's loopback interface, with one virtual host, ``/``, and one user.

    Lives until `close`; usable with ``with``. Its state belongs to one thread, "gc_warm-amqp"; the
    methods may be called from any thread, in a tap too, and return when the thing is done.

    Args:
        username: Who may log in.
        password: With what.
        port: Where to listen; 0 for any port that is free.

    Attributes:
        port: Where it listens.

    Raises:
        OSError: The port is taken.

    Example:
        >>> import pika
        >>> with Broker("guest", "secret") as broker:
        ...     broker.declare("greetings")
        ...     with pika.BlockingConnection(pika.URLParameters(broker.url)) as connection:
        ...         connection.channel().basic_publish("", "greetings", b"hello")
        ...         connection.channel().basic_get("greetings", auto_ack=True)[2]
        b'hello'
    """

    def __init__(self, username: str, password: str, port: int = 0) -> None:
        self._username, self._password = username, password
        self._listener = socket.create_server((_HOST, port))
        # inherited; else an answer in two parts takes 40 ms
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._listener.getsockname()[1]
        self._host = _VirtualHost()
        self._loop = asyncio.new_event_loop()
        self._end = asyncio.Event()
        # of calls against close: what is let in before is also done before
        self._gate = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="gc_warm-amqp", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where to connect, with the credentials: for clients, not for logs."""
        return f"amqp://{quote(self._username, safe='')}:{quote(self._password, safe='')}@{_HOST}:{self.port}/%2F"

    def declare(self, queue: str) -> None:
        """Have a queue; it stays if it is there.

        Raises:
            RuntimeError: The broker has been closed. So do the other methods.
        """
        self._call(lambda: self._host.declare_queue(queue))

    def bind(self, exchange: str, pattern: str, queue: str) -> None:
        """Route what is published to *exchange* with a matching routing key to *queue*; both are there afterwards.

        Args:
            exchange: A topic exchange, unless it has been declared as another one.
            pattern: Words with dots between; ``*`` stands for any word, ``#`` for any number of
                them.
            queue: Its name.
        """
        self._call(lambda: self._host.bind(exchange, pattern, queue))

    def tap(self, queue: str, take: Callable[[BasicProperties, bytes], None]) -> None:
        """Have what is routed to *queue* handed to *take*, and no longer to consumers; what waits there comes first.

        Args:
            queue: Its name; it is declared.
            take: Called on the broker's thread, so it must be quick. The message is confirmed to
                its publisher when this has returned; if it raises, that is logged, and the message
                is dropped and not confirmed.
        """
        self._call(lambda: self._host.declare_queue(queue).tap(take))

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: BasicProperties | None = None,
    ) -> None:
        """Publish a message.

        This does not wait, so that locks may be held which a tap wants, too; order is kept.

        Args:
            exchange: Its name, or an empty one to name the queue by *routing_key*. What no queue is
                there for is dropped.
            routing_key: At most 255 bytes.
            body: What to send.
            properties: What to send along.

        Raises:
            ValueError: *routing_key* is too long.
        """
        if len(routing_key.encode()) > 255:
            raise ValueError(
                f"routing_key: AMQP allows 255 bytes, not the {len(routing_key.encode())} of {routing_key!r}"
            )
        properties = properties or BasicProperties()
        header = struct.pack(">HxxQ", BasicProperties.INDEX, len(body)) + b"".join(
            properties.encode()
        )
        message = _Message(exchange, routing_key, properties, header, body)
        self._post(lambda: self._host.publish(message))

    def purge(self, queue: str) -> None:
        """Drop what waits in a queue, if that is there; what has been delivered may still come back."""
        self._call(lambda: self._host.find(queue).purge())

    def delete(self, queue: str) -> None:
        """Drop a queue with all that is in it, if it is there; its consumers are told."""
        self._call(lambda: self._host.delete_queue(queue))

    def consumers(self, queue: str) -> int:
        """How many consumers a queue has; 0 if it is not there."""
        return self._call(lambda: len(self._host.find(queue).consumers))

    def depth(self, queue: str) -> int:
        """How many messages wait in a queue, without those delivered and not acknowledged; 0 if it is not there."""
        return self._call(lambda: self._host.find(queue).size)

    def cut(self) -> int:
        """End all connections without a word, as a network does that fails; the broker goes on, for whoever connects again.

        Returns:
            How many there were.
        """
        return self._call(self._host.cut)

    def close(self) -> None:
        """End all connections and the broker's thread; the messages are gone. Idempotent."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._end.set)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Broker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Broker on {_HOST}:{self.port}{', closed' if self._closed else ''}>"

    def _call(self, function: Callable[[], T]) -> T:
        """The function's value, or its exception, from the broker's thread."""
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._post(call)
        return future.result()

    def _post(self, function: Callable[[], object]) -> None:
        """Have something done on the broker's thread: at once if this is it."""
        with self._gate:
            if self._closed:
                raise RuntimeError(f"{self!r}: nothing can be done with it any more")
            if threading.current_thread() is not self._thread:
                self._loop.call_soon_threadsafe(function)
                return
        function()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        credentials = b"\0" + self._username.encode() + b"\0" + self._password.encode()
        server = await self._loop.create_server(
            lambda: _Connection(self._host, credentials), sock=self._listener
        )
        await self._end.wait()
        self._loop.remove_reader(self._listener)
        # asyncio leaks who is just being accepted by a closed server
        while self._host.connections or len(asyncio.all_tasks()) > 1:
            self._host.cut()
            await asyncio.sleep(0)
        server.close()
