"""An AMQP 0-9-1 broker in memory, for unmodified executors and endpoints on one machine.

It behaves as RabbitMQ does where these clients could notice, on pika's codec. A message that was
confirmed to its publisher is in a queue or was taken by a tap. A message that was not acknowledged
when its channel ended takes its old place in the queue and is delivered again. Nothing is written
to disk.

Left out: transactions, recover, fanout and headers exchanges, exclusive and auto-delete queues,
priorities, expiry, arguments of queues, limits shared by all consumers of a channel.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import heapq
import hmac
import itertools
import logging
import socket
import struct
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar, cast
from urllib.parse import quote

from pika import frame, spec
from pika.spec import Basic, BasicProperties

from gc_warm.local.complaints import OUT_OF_DESCRIPTORS, Complaints

log = logging.getLogger("gc_warm")

T = TypeVar("T")

_HOST = "127.0.0.1"
_PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
_FRAME_KINDS = (spec.FRAME_METHOD, spec.FRAME_HEADER, spec.FRAME_BODY, spec.FRAME_HEARTBEAT)
_CONTENT_HEADER = ">HxxQ"  # class and size of the body; the properties follow
_CAPABILITIES = (
    "publisher_confirms",
    "basic.nack",
    "consumer_cancel_notify",
    "authentication_failure_close",
)
_CHANNEL_MAX = 2047
_MESSAGE_MAX = 128 * 1024 * 1024  # bytes
_ROUTING_KEY_MAX = 255  # bytes
_HEARTBEAT = 60  # seconds; a client may ask for something else
_HANDSHAKE_TIMEOUT = 10  # seconds
_BACKLOG = 128  # connections that wait to be accepted
_STRANGERS = 256  # connections at once whose handshake is not done
_CLOSE_TIMEOUT = 1  # seconds that a refused client has to read why


class Broker:
    """An AMQP broker on this machine's loopback interface: one virtual host, ``/``, and one user.

    A broker lives until `close`; usable with ``with``. Its state belongs to one thread,
    "gc_warm-amqp". The methods may be called from any thread, in a tap too, and return when the
    thing is done.

    Args:
        username: The name of the only user who may log in.
        password: The password of that user.
        port: The port to listen on; 0 for any port that is free.

    Attributes:
        port: The port that the broker listens on.

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
        self._username = username
        self._password = password

        self._listener = socket.create_server((_HOST, port))
        # inherited by every connection; else an answer in two parts takes 40 ms
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
        """The URL to connect to, with the credentials: for clients, not for logs."""
        username = quote(self._username, safe="")
        password = quote(self._password, safe="")
        return f"amqp://{username}:{password}@{_HOST}:{self.port}/%2F"

    def declare(self, queue: str) -> None:
        """Create a queue, unless it exists.

        Args:
            queue: The queue's name.

        Raises:
            RuntimeError: The broker has been closed. The other methods raise this, too.
        """
        self._call(lambda: self._host.declare_queue(queue))

    def bind(self, exchange: str, pattern: str, queue: str) -> None:
        """Route messages for *exchange* with a matching routing key to *queue*.

        The exchange and the queue are created unless they exist.

        Args:
            exchange: A topic exchange, unless it has been declared as another one.
            pattern: Words with dots between; ``*`` stands for any word, ``#`` for any number of
                them.
            queue: The queue's name.
        """
        self._call(lambda: self._host.bind(exchange, pattern, queue))

    def tap(self, queue: str, take: Callable[[BasicProperties, bytes], None]) -> None:
        """Hand the messages of *queue* to *take*, and no longer to consumers.

        Messages that wait in the queue come first.

        Args:
            queue: The queue's name; it is declared.
            take: Called on the broker's thread, so it must be quick. The message is confirmed to
                its publisher when this has returned; if it raises, that is logged, and the message
                is dropped and not confirmed.
        """
        self._call(lambda: self._host.declare_queue(queue).tap(take))

    def follow(self, queue: str, report: Callable[[bool, list[bytes]], None]) -> None:
        """Hold no messages in *queue* while nobody consumes it: *report* takes them back.

        Args:
            queue: The queue's name; it is declared.
            report: Called on the broker's thread, so it must be quick: with True soon after the
                queue has got a consumer, with False soon after it has lost the last one. Also
                called with the bodies of messages, in order, that are in the queue without a
                consumer, which are then there no longer.
        """
        self._call(lambda: self._host.declare_queue(queue).follow(report))

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        properties: BasicProperties | None = None,
    ) -> None:
        """Publish a message.

        This does not wait, so the caller may hold locks that a tap wants, too; order is kept.

        Args:
            exchange: The exchange's name, or an empty one to name the queue by *routing_key*. A
                message for which there is no queue is dropped.
            routing_key: At most 255 bytes.
            body: The bytes to send.
            properties: The properties to send along.

        Raises:
            ValueError: *routing_key* is too long.
        """
        length = len(routing_key.encode())
        if length > _ROUTING_KEY_MAX:
            raise ValueError(
                f"routing_key: AMQP allows {_ROUTING_KEY_MAX} bytes, not the {length} "
                f"of {routing_key!r}"
            )

        properties = properties or BasicProperties()
        header = struct.pack(_CONTENT_HEADER, BasicProperties.INDEX, len(body))
        header += b"".join(properties.encode())
        message = _Message(exchange, routing_key, properties, header, body)
        self._post(lambda: self._host.publish(message))

    def purge(self, queue: str) -> None:
        """Drop the messages that wait in a queue, if it exists.

        Messages that have been delivered may still come back.

        Args:
            queue: The queue's name.
        """
        self._call(lambda: self._host.find(queue).purge())

    def delete(self, queue: str) -> None:
        """Drop a queue, if it exists, with all its messages; its consumers are told.

        Args:
            queue: The queue's name.
        """
        self._call(lambda: self._host.delete_queue(queue))

    def consumers(self, queue: str) -> int:
        """Return the number of a queue's consumers.

        Args:
            queue: The queue's name.

        Returns:
            The number; 0 if the queue does not exist.
        """
        return self._call(lambda: len(self._host.find(queue).consumers))

    def depth(self, queue: str) -> int:
        """Return the number of messages that wait in a queue.

        Args:
            queue: The queue's name.

        Returns:
            The number, without messages that are delivered and not acknowledged; 0 if the queue
            does not exist.
        """
        return self._call(lambda: self._host.find(queue).size)

    def cut(self) -> int:
        """End all connections without a word, as a failing network does.

        The broker goes on, for whoever connects again.

        Returns:
            The number of connections there were.
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
        """Return the function's value, or raise its exception, from the broker's thread."""
        future: Future[T] = Future()

        def call() -> None:
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)

        self._post(call)
        return future.result()

    def _post(self, function: Callable[[], object]) -> None:
        """Have the function called on the broker's thread: at once if this is it."""
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
        self._loop.set_exception_handler(self._on_error)
        # asyncio tries as often as its backlog is long, also where there are no descriptors left
        server = await self._loop.create_server(
            lambda: _Connection(self._host, credentials), sock=self._listener, backlog=1
        )
        self._listener.listen(_BACKLOG)
        await self._end.wait()

        self._loop.remove_reader(self._listener)
        # asyncio leaks a connection that a closed server is just accepting
        while self._host.connections or len(asyncio.all_tasks()) > 1:
            self._host.cut()
            await asyncio.sleep(0)
        server.close()

    def _on_error(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Say in a line that no connection can be accepted, and free a descriptor if possible."""
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            self._host.complaints.add(OUT_OF_DESCRIPTORS)
            for stranger in [*self._host.strangers][:1]:
                stranger.abort()
        else:
            loop.default_exception_handler(context)


class _Refusal(Exception):
    """A refusal of something that a client did, with one of AMQP's reply codes.

    It ends the client's channel or, if the code is a hard one, its connection.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.code: int = getattr(spec, name)
        # as much as AMQP has room for
        self.text = f"{name} - {reason}".encode()[:255].decode(errors="ignore")
        self.is_hard = self.code >= spec.FRAME_ERROR


@dataclass(frozen=True)
class _Message:
    """A published message; the payload of its header frame is passed on as it came."""

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
        self._report: Callable[[bool, list[bytes]], None] | None = None
        self._reported = False  # whether there are consumers
        self._numbers = itertools.count()
        self._waiting: list[_Entry] = []  # a heap

    @property
    def size(self) -> int:
        return len(self._waiting)

    def put(self, message: _Message) -> bool:
        """Take a message in; return whether it is in good hands: not if the tap failed."""
        if self._take is not None:
            return self._hand_to_tap(self._take, message)

        heapq.heappush(self._waiting, _Entry(next(self._numbers), self, message))
        self.deliver()
        self.look_after()
        return True

    def put_back(self, entry: _Entry) -> None:
        entry.redelivered = True
        entry.consumer = None
        heapq.heappush(self._waiting, entry)
        self.look_after()

    def pop(self) -> _Entry | None:
        return heapq.heappop(self._waiting) if self._waiting else None

    def purge(self) -> int:
        purged = len(self._waiting)
        self._waiting.clear()
        return purged

    def tap(self, take: Callable[[BasicProperties, bytes], None]) -> None:
        self._take = take
        self.deliver()

    def follow(self, report: Callable[[bool, list[bytes]], None]) -> None:
        self._report = report
        self.look_after()

    def look_after(self) -> None:
        """Report, soon, if consumers or messages have come or gone and somebody follows."""
        is_consumed = bool(self.consumers)
        has_news = is_consumed != self._reported or (self._waiting and not is_consumed)
        if self._report is not None and has_news:
            asyncio.get_running_loop().call_soon(self._tell, self._report)

    def _tell(self, report: Callable[[bool, list[bytes]], None]) -> None:
        is_consumed = bool(self.consumers)
        left: list[bytes] = []
        if not is_consumed:
            left = [entry.message.body for entry in sorted(self._waiting)]
            self._waiting.clear()

        if left or is_consumed != self._reported:
            self._reported = is_consumed
            try:
                report(is_consumed, left)
            except Exception:  # the others need this thread
                log.exception("AMQP: what follows queue %s has failed", self.name)

    def deliver(self) -> None:
        """Hand out the messages that wait to whoever is ready."""
        while self._waiting and self._take is not None:
            self._hand_to_tap(self._take, heapq.heappop(self._waiting).message)

        while self._waiting and (consumer := self._next_ready()) is not None:
            consumer.send(heapq.heappop(self._waiting))

    def _hand_to_tap(
        self, take: Callable[[BasicProperties, bytes], None], message: _Message
    ) -> bool:
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


class _VirtualHost:
    """The queues, the exchanges and the connections. All of it belongs to the broker's thread."""

    def __init__(self) -> None:
        self.queues: dict[str, _Queue] = {}
        self.exchanges: dict[str, set[tuple[str, _Queue]]] = {}  # their bindings: pattern and queue
        self.connections: set[_Connection] = set()
        self.strangers: dict[_Connection, None] = {}  # the connections that nobody has opened yet
        self.complaints = Complaints("AMQP")

    def let_in(self, connection: _Connection) -> None:
        """Take in a stranger; if these are too many, cut off the one that came first."""
        self.connections.add(connection)
        self.strangers[connection] = None
        if len(self.strangers) > _STRANGERS:
            next(iter(self.strangers)).give_up(f"more than {_STRANGERS} handshakes at once")

    def declare_queue(self, name: str) -> _Queue:
        if name not in self.queues:
            self.queues[name] = _Queue(name)
        return self.queues[name]

    def find(self, name: str) -> _Queue:
        """Return the queue, or an empty one in place of a queue that does not exist."""
        return self.queues.get(name) or _Queue(name)

    def bind(self, exchange: str, pattern: str, queue: str) -> None:
        self.exchanges.setdefault(exchange, set()).add((pattern, self.declare_queue(queue)))

    def delete_queue(self, name: str) -> int:
        """Delete a queue; return the number of messages that are lost with it."""
        queue = self.find(name)
        self.queues.pop(name, None)
        for bindings in self.exchanges.values():
            bindings -= {binding for binding in bindings if binding[1] is queue}

        for consumer in tuple(queue.consumers):
            consumer.channel.tell_cancelled(consumer)
        queue.consumers.clear()
        queue.look_after()
        return queue.purge()

    def bindings(self, name: str) -> set[tuple[str, _Queue]]:
        if name not in self.exchanges:
            raise _Refusal("NOT_FOUND", f"no exchange '{name}' in vhost '/'")
        return self.exchanges[name]

    def publish(self, message: _Message) -> list[bool]:
        """Put a message into its queues; return for each whether it is in good hands there."""
        return [queue.put(message) for queue in self._route(message)]

    def _route(self, message: _Message) -> set[_Queue]:
        key = message.routing_key
        if message.exchange:
            bindings = self.bindings(message.exchange)
            return {queue for pattern, queue in bindings if _topic_matches(pattern, key)}

        if key in self.queues:
            return {self.queues[key]}
        return set()

    def cut(self) -> int:
        """End all connections without a word; return their number."""
        cut = tuple(self.connections)
        for connection in cut:
            connection.abort()
        # only now: nothing is to be delivered again to those who are cut off, too
        for connection in cut:
            connection.release()
        return len(cut)


def _topic_matches(pattern: str, key: str) -> bool:
    """Return whether a routing key matches the pattern of a topic exchange's binding."""
    words = key.split(".") if key else []
    parts = pattern.split(".") if pattern else []

    reached = {0}  # numbers of words that the pattern so far may stand for
    for part in parts:
        if not reached:
            return False
        if part == "#":
            reached = set(range(min(reached), len(words) + 1))
        else:
            reached = {n + 1 for n in reached if n < len(words) and part in ("*", words[n])}

    return len(words) in reached


@dataclass(eq=False)
class _Consumer:
    """A client's subscription to a queue, on one of its channels."""

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
        tag = self.channel.hand_out(entry, self.no_ack)

        message = entry.message
        deliver = Basic.Deliver(
            self.tag, tag, entry.redelivered, message.exchange, message.routing_key
        )
        self.channel.send(deliver, message)


class _Incoming:
    """A message on its way in: a method, then a header, then the body in pieces."""

    def __init__(self, publish: Basic.Publish) -> None:
        self.publish = publish
        self._header: bytes | None = None
        self._properties = BasicProperties()
        self._body = bytearray()
        self._size = 0

    def add(self, kind: int, payload: bytes) -> _Message | None:
        """Take in a frame; return the message once it is complete."""
        if (kind == spec.FRAME_HEADER) is not (self._header is None):
            raise _Refusal("UNEXPECTED_FRAME", "a message is one header, then its body")

        if self._header is None:
            self._add_header(payload)
        else:
            self._body += payload

        if len(self._body) > self._size:
            reason = f"more than the {self._size} bytes that the header promised"
            raise _Refusal("FRAME_ERROR", reason)
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
        with _decoding():
            kind, self._size = struct.unpack_from(_CONTENT_HEADER, payload)
            self._header = payload
            # consumers get the header as it came, and would stumble
            if kind != BasicProperties.INDEX:
                raise ValueError(f"content of class {kind}")
            self._properties.decode(payload, struct.calcsize(_CONTENT_HEADER))

        if self._size > _MESSAGE_MAX:
            reason = f"message size {self._size} is larger than max size {_MESSAGE_MAX}"
            raise _Refusal("PRECONDITION_FAILED", reason)


class _Channel:
    """One channel of a connection: its consumers, and the messages it has not acknowledged."""

    def __init__(self, connection: _Connection, host: _VirtualHost, number: int) -> None:
        self.connection = connection
        self.number = number
        self.closing = False
        self._host = host

        self._consumers: dict[str, _Consumer] = {}
        self._prefetch = 0
        self._unacked: dict[int, _Entry] = {}
        self._tags = itertools.count(1)

        self._confirms: Iterator[int] | None = None
        self._incoming: _Incoming | None = None

    @property
    def queues(self) -> set[_Queue]:
        """The queues that the channel consumes from."""
        return {consumer.queue for consumer in self._consumers.values()}

    def send(self, method: Any, message: _Message | None = None) -> None:
        self.connection.send(self.number, method, message)

    def hand_out(self, entry: _Entry, no_ack: bool) -> int:
        """Return the tag under which a message is to be delivered, and will be acknowledged."""
        tag = next(self._tags)
        if not no_ack:
            self._unacked[tag] = entry
            if entry.consumer is not None:
                entry.consumer.unacked += 1
        return tag

    def on_method(self, method: Any) -> None:
        if self._incoming is not None:
            raise _Refusal("UNEXPECTED_FRAME", f"{method.NAME} before the content of a message")

        handler = _CHANNEL_HANDLERS.get(type(method))
        if handler is None:
            raise _Refusal("COMMAND_INVALID", f"{method.NAME} is not for a channel")
        handler(self, method)

    def on_content(self, kind: int, payload: bytes) -> None:
        if self._incoming is None:
            raise _Refusal("UNEXPECTED_FRAME", "content without Basic.Publish")

        message = self._incoming.add(kind, payload)
        if message is not None:
            mandatory = self._incoming.publish.mandatory
            self._incoming = None
            self._publish(message, mandatory)

    def refuse(self, refusal: _Refusal) -> None:
        """Close this channel with the reason.

        Until the client has seen that, the frames that it sends are ignored.
        """
        log.warning("AMQP: closed channel %d of %s: %s", self.number, self.connection, refusal.text)
        self.closing = True
        self.send(spec.Channel.Close(refusal.code, refusal.text, 0, 0))
        for queue in self.end():
            queue.deliver()

    def end(self) -> set[_Queue]:
        """Give up all consumers and messages. Idempotent.

        Returns:
            The queues that may now have something for others.
        """
        consumers = self._consumers
        self._consumers = {}
        for consumer in consumers.values():
            self._leave(consumer)

        unacked = self._unacked
        self._unacked = {}
        for entry in unacked.values():
            entry.queue.put_back(entry)
        return {entry.queue for entry in unacked.values()}

    def tell_cancelled(self, consumer: _Consumer) -> None:
        """Tell the client that the queue was deleted under its consumer."""
        del self._consumers[consumer.tag]
        self.send(Basic.Cancel(consumer.tag, nowait=True))

    def _leave(self, consumer: _Consumer) -> None:
        consumer.queue.consumers.remove(consumer)
        consumer.queue.look_after()

    def _publish(self, message: _Message, mandatory: bool) -> None:
        accepted = self._host.publish(message)
        if mandatory and not accepted:
            returned = Basic.Return(
                spec.NO_ROUTE, "NO_ROUTE", message.exchange, message.routing_key
            )
            self.send(returned, message)

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
        # a direct one is a topic exchange whose patterns have no wildcards
        elif method.type in ("topic", "direct"):
            self._host.exchanges.setdefault(method.exchange, set())
        else:
            reason = f"exchange type '{method.type}' is not among those there are here"
            raise _Refusal("COMMAND_INVALID", reason)

        self._reply(spec.Exchange.DeclareOk(), method.nowait)

    def _declare_queue(self, method: spec.Queue.Declare) -> None:
        name = method.queue or f"amq.gen-{uuid.uuid4().hex}"
        if not method.passive:
            self._host.declare_queue(name)

        queue = self._queue(name)
        self._reply(spec.Queue.DeclareOk(name, queue.size, len(queue.consumers)), method.nowait)

    def _bind(self, method: spec.Queue.Bind) -> None:
        bindings = self._host.bindings(method.exchange)
        bindings.add((method.routing_key, self._queue(method.queue)))
        self._reply(spec.Queue.BindOk(), method.nowait)

    def _unbind(self, method: spec.Queue.Unbind) -> None:
        bindings = self._host.bindings(method.exchange)
        bindings.discard((method.routing_key, self._queue(method.queue)))
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
        queue = self._queue(method.queue)
        tag = method.consumer_tag or f"amq.ctag-{uuid.uuid4().hex}"
        if tag in self._consumers:
            raise _Refusal("NOT_ALLOWED", f"attempt to reuse consumer tag '{tag}'")
        if any(method.exclusive or other.exclusive for other in queue.consumers):
            raise _Refusal("ACCESS_REFUSED", f"queue '{queue.name}' in vhost '/' in exclusive use")

        consumer = _Consumer(self, queue, tag, method.no_ack, method.exclusive, self._prefetch)
        self._consumers[tag] = consumer
        queue.consumers.append(consumer)

        self._reply(Basic.ConsumeOk(tag), method.nowait)
        queue.deliver()
        queue.look_after()

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

        tag = self.hand_out(entry, method.no_ack)
        message = entry.message
        got = Basic.GetOk(tag, entry.redelivered, message.exchange, message.routing_key, queue.size)
        self.send(got, message)

    def _start_publish(self, method: Basic.Publish) -> None:
        self._incoming = _Incoming(method)

    def _confirm(self, method: spec.Confirm.Select) -> None:
        self._confirms = self._confirms or itertools.count(1)
        self._reply(spec.Confirm.SelectOk(), method.nowait)

    def _settle(self, tag: int, multiple: bool = False, requeue: bool = False) -> None:
        """Take a message, or with *multiple* all up to it, as acknowledged, or put it back."""
        if tag not in self._unacked and not (multiple and tag == 0):
            raise _Refusal("PRECONDITION_FAILED", f"unknown delivery tag {tag}")

        tags = self._tags_up_to(tag) if multiple else [tag]
        settled = [self._unacked.pop(tag) for tag in tags]
        for entry in settled:
            if entry.consumer is not None:
                entry.consumer.unacked -= 1
            if requeue:
                entry.queue.put_back(entry)

        for queue in {entry.queue for entry in settled}:
            queue.deliver()

    def _tags_up_to(self, last: int) -> list[int]:
        """Return the tags of unacknowledged messages up to *last*; 0 stands for all of them."""
        if last == 0:
            return list(self._unacked)
        return list(itertools.takewhile(lambda tag: tag <= last, self._unacked))


_CHANNEL_HANDLERS: dict[type, Callable[[_Channel, Any], None]] = {
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
        self._host = host
        self._credentials = credentials
        self._loop = asyncio.get_running_loop()

        self._buffer = bytearray()
        self._channels: dict[int, _Channel] = {}
        # the next step of the handshake; None when it is done
        self._expected: type | None = frame.ProtocolHeader
        self._frame_max = spec.FRAME_MIN_SIZE  # as long as nobody has logged in
        self._heartbeat = _HEARTBEAT
        self._heard = 0.0
        self._refused = False
        self._paused = False

    def __str__(self) -> str:
        return "{}:{}".format(*self._transport.get_extra_info("peername", ("?", "?")))

    @property
    def writable(self) -> bool:
        """Whether another message may be sent: the client is there, and reads."""
        return not (self._paused or self._transport.is_closing())

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        reason = f"no handshake within {_HANDSHAKE_TIMEOUT} s"
        self._timer = self._loop.call_later(_HANDSHAKE_TIMEOUT, self.give_up, reason)
        self._host.let_in(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self._host.connections.discard(self)
        self._host.strangers.pop(self, None)
        self.release()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        _deliver_all(channel.queues for channel in self._channels.values())

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
            if self._expected is None:
                log.exception("AMQP: a frame of %s could not be handled", self)
            self._refuse(_Refusal("INTERNAL_ERROR", "the frame could not be handled"))

    def send(self, number: int, method: Any, message: _Message | None = None) -> None:
        """Write a method, and the content that goes with it."""
        frames = [frame.Method(number, method).marshal()]
        if message is not None:
            frames.append(_frame(spec.FRAME_HEADER, number, message.header))
            step = self._frame_max - spec.FRAME_HEADER_SIZE - spec.FRAME_END_SIZE
            for start in range(0, len(message.body), step):
                piece = message.body[start : start + step]
                frames.append(_frame(spec.FRAME_BODY, number, piece))

        if not self._transport.is_closing():
            self._transport.write(b"".join(frames))

    def abort(self) -> None:
        """End the connection without a word."""
        self._transport.abort()

    def release(self) -> None:
        """Give back everything that the client held. Idempotent."""
        channels = tuple(self._channels.values())
        self._channels = {}
        _deliver_all(channel.end() for channel in channels)

    def give_up(self, reason: str) -> None:
        """End the connection without a word to the client."""
        self._complain(f"cut {self} off: {reason}")
        self._host.strangers.pop(self, None)
        self.abort()

    def _complain(self, text: str) -> None:
        if self._expected is None:
            log.warning("AMQP: %s", text)
        else:
            self._host.complaints.add(text)

    def _set_timer(self, seconds: float, act: Callable[[], None]) -> None:
        self._timer.cancel()
        self._timer = self._loop.call_later(seconds, act)

    def _refuse(self, refusal: _Refusal) -> None:
        """Close this connection with the reason.

        Frames that still come are not read; most clients hang up at once.
        """
        self._complain(f"closed the connection of {self}: {refusal.text}")
        self._refused = True
        self.send(0, spec.Connection.Close(refusal.code, refusal.text, 0, 0))
        self.release()
        self._set_timer(_CLOSE_TIMEOUT, self.abort)

    def _take_from_buffer(self) -> bool:
        """Handle one frame; return False if there is none to handle."""
        if self._transport.is_closing():
            return False
        if self._expected is frame.ProtocolHeader:
            return self._greet()
        if len(self._buffer) < spec.FRAME_HEADER_SIZE:
            return False

        kind, number, size = struct.unpack_from(">BHI", self._buffer)
        end = size + spec.FRAME_HEADER_SIZE + spec.FRAME_END_SIZE
        if kind not in _FRAME_KINDS or end > self._frame_max:
            reason = f"a frame of type {kind} and {end} bytes, where {self._frame_max} are allowed"
            raise _Refusal("FRAME_ERROR", reason)
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
        """Answer the protocol header; return False unless all of it is there."""
        received = bytes(self._buffer[: len(_PROTOCOL_HEADER)])
        if received != _PROTOCOL_HEADER:
            if not _PROTOCOL_HEADER.startswith(received):
                self._complain(f"{self} does not speak AMQP 0-9-1")
                self._transport.write(_PROTOCOL_HEADER)
                self._transport.close()
            return False

        del self._buffer[: len(received)]
        self._expected = spec.Connection.StartOk
        properties = {"product": "gc_warm", "capabilities": dict.fromkeys(_CAPABILITIES, True)}
        self.send(0, spec.Connection.Start(0, 9, properties, "PLAIN", "en_US"))
        return True

    def _on_frame(self, kind: int, number: int, payload: bytes) -> None:
        method = _decode(payload) if kind == spec.FRAME_METHOD else None
        if number == 0:
            self._on_own_method(method)
            return
        if self._expected is not None:
            raise _Refusal("CHANNEL_ERROR", f"channel {number} before the connection is open")

        open_or_close = _OPEN_CLOSE_HANDLERS.get(type(method))
        channel = self._channels.get(number)
        if open_or_close is not None:
            open_or_close(self, number)
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
            reason = f"channel {number} is open already, or above {_CHANNEL_MAX}"
            raise _Refusal("CHANNEL_ERROR", reason)

        self._channels[number] = _Channel(self, self._host, number)
        self.send(number, spec.Channel.OpenOk())

    def _close_channel(self, number: int) -> None:
        self._drop_channel(number)
        self.send(number, spec.Channel.CloseOk())

    def _drop_channel(self, number: int) -> None:
        channel = self._channels.pop(number, None)
        if channel is not None:
            for queue in channel.end():
                queue.deliver()

    def _on_own_method(self, method: Any) -> None:
        if type(method) not in (self._expected, spec.Connection.Close):
            raise _Refusal("COMMAND_INVALID", "not what the handshake goes on with")
        _CONNECTION_HANDLERS[type(method)](self, method)

    def _log_in(self, method: spec.Connection.StartOk) -> None:
        proven = hmac.compare_digest(method.response, self._credentials)
        if not proven or method.mechanism != "PLAIN":
            self._refuse_login(method)
            return

        self._expected = spec.Connection.TuneOk
        self.send(0, spec.Connection.Tune(_CHANNEL_MAX, spec.FRAME_MAX_SIZE, _HEARTBEAT))

    def _refuse_login(self, method: spec.Connection.StartOk) -> None:
        capabilities = method.client_properties.get("capabilities")
        if isinstance(capabilities, dict) and capabilities.get("authentication_failure_close"):
            reason = "Login was refused using authentication mechanism PLAIN."
            raise _Refusal("ACCESS_REFUSED", reason)

        # a client of old takes silence for an answer
        self.give_up("ACCESS_REFUSED - login was refused")

    def _tune(self, method: spec.Connection.TuneOk) -> None:
        frame_max = method.frame_max or spec.FRAME_MAX_SIZE
        frame_max_allowed = spec.FRAME_MIN_SIZE <= frame_max <= spec.FRAME_MAX_SIZE
        if not frame_max_allowed or method.channel_max > _CHANNEL_MAX:
            reason = f"frame_max={frame_max} or channel_max={method.channel_max} out of range"
            raise _Refusal("NOT_ALLOWED", reason)

        self._frame_max = frame_max
        self._heartbeat = method.heartbeat
        self._expected = spec.Connection.Open

    def _open(self, method: spec.Connection.Open) -> None:
        if method.virtual_host != "/":
            raise _Refusal("NOT_ALLOWED", f"vhost {method.virtual_host} not found")

        self._expected = None
        self._host.strangers.pop(self, None)
        self.send(0, spec.Connection.OpenOk())
        self._timer.cancel()
        if self._heartbeat:
            self._beat()

    def _beat(self) -> None:
        if self._loop.time() - self._heard > 2 * self._heartbeat:
            self.give_up(f"nothing heard for two heartbeats of {self._heartbeat} s")
        else:
            self._transport.write(frame.Heartbeat().marshal())
            self._set_timer(self._heartbeat / 2, self._beat)

    def _close(self, method: spec.Connection.Close) -> None:
        self.send(0, spec.Connection.CloseOk())
        self._transport.close()


_OPEN_CLOSE_HANDLERS: dict[type, Callable[[_Connection, int], None]] = {
    spec.Channel.Open: _Connection._open_channel,
    spec.Channel.Close: _Connection._close_channel,
    spec.Channel.CloseOk: _Connection._drop_channel,
}

_CONNECTION_HANDLERS: dict[type, Callable[[_Connection, Any], None]] = {
    spec.Connection.StartOk: _Connection._log_in,
    spec.Connection.TuneOk: _Connection._tune,
    spec.Connection.Open: _Connection._open,
    spec.Connection.Close: _Connection._close,
}


def _deliver_all(groups: Iterable[set[_Queue]]) -> None:
    """Deliver from each queue of all groups, once, when the last group is there."""
    for queue in set().union(*groups):
        queue.deliver()


def _frame(kind: int, number: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, number, len(payload)) + payload + bytes([spec.FRAME_END])


def _decode(payload: bytes) -> Any:
    """Return the method that a frame's payload holds."""
    kind = spec.methods.get(int.from_bytes(payload[:4], "big"))
    handlers = (_CHANNEL_HANDLERS, _OPEN_CLOSE_HANDLERS, _CONNECTION_HANDLERS)
    if not any(kind in known for known in handlers):
        raise _Refusal("NOT_IMPLEMENTED", f"method {payload[:4].hex()}")

    with _decoding():
        method = kind().decode(payload, 4)
        # pika leaves names that are not UTF-8 as bytes
        if kind in _CHANNEL_HANDLERS and bytes in map(type, vars(method).values()):
            raise ValueError("names that are not UTF-8")
        return method


@contextlib.contextmanager
def _decoding() -> Iterator[None]:
    """Refuse a frame that pika's codec stumbles over: that is its sender's fault."""
    try:
        yield
    except Exception as error:
        raise _Refusal("SYNTAX_ERROR", "a frame that cannot be decoded") from error
