"""One call of gRPC under way: its messages are put together as their bytes come, its method is run, its answer given.

The connection that carries it says what bytes come, and sends what the client's windows let out.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from math import inf
from typing import Any, Final, Protocol

from models.errors import UnderstudyError
from models.tensor import Buffer
from serving.door import Patience
from serving.errors import UnavailableError
from serving.grpc_call import IDENTITY, PREFIX, PREFIX_BYTES, Answer, Call, Messages, failed
from serving.intake import COUNT_FROM_BYTES, NO_ROOM, Intake
from serving.protocol.errors import Code

_NO_HURRY: Final = Patience()  # of the many streams whose answers never wait
WINDOW: Final = 4 * 1024 * 1024  # of what a client may send ahead; a larger message gets what it lacks by its size


class Carrier(Protocol):
    """The connection of a stream, as the stream needs it."""

    intake: Intake
    max_message_bytes: int
    uncounted: int  # bytes of its small messages that the intake does not know of

    def allocate(self, size: int, early: memoryview) -> memoryview:
        """The buffer for a message of a size whose first bytes have come."""

    def grant(self, stream: "Stream", size: int) -> None:
        """Let the client send ``size`` bytes more."""

    def await_bytes(self, stream: "Stream") -> None:
        """The client owes bytes from now on; what it takes too long to send is called off."""

    def await_none(self, stream: "Stream") -> None:
        """The client owes none."""

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a call's method."""

    def worked(self) -> None:
        """A call's method has begun."""

    def ended(self, task: asyncio.Task[None]) -> None:
        """A call's method has ended."""

    def answer(self, stream: "Stream", body: Buffer, trailers: bytes) -> None:
        """Send a unary call's answer."""

    def clear_to_send(self, stream: "Stream") -> bool:
        """Whether all that was sent is out."""

    def send(self, stream: "Stream", message: Buffer) -> None:
        """Send a message.

        Raises:
            UnavailableError: the client does not take it, and there is no room for it to wait.
        """

    def end(self, stream: "Stream", trailers: bytes) -> None:
        """End the call with these fields, after what was sent."""

    def forget(self, stream: "Stream") -> None:
        """The call is over: what the client might still send of it is not wanted."""


class Stream:
    """A call. ``window`` is what the client takes of its answer at present, ``credit`` what it may still send.

    The carrier's own: ``read_by`` and ``patience`` say when the client's next bytes, and its taking of the answer, are
    due; ``outbox`` holds what its windows do not let out yet, of which ``waiting`` bytes count at the intake, and
    ``trailers`` follow it.
    """

    __slots__ = (
        "_body",
        "_carrier",
        "_compressed",
        "_counted",
        "_filled",
        "_held",
        "_message",
        "_messages",
        "_prefix",
        "_running",
        "_task",
        "_uncounted",
        "answered",
        "call",
        "credit",
        "ended",
        "exchange",
        "id",
        "open",
        "outbox",
        "patience",
        "read_by",
        "started",
        "trailers",
        "waiting",
        "window",
    )

    def __init__(self, stream_id: int, call: Call, carrier: Carrier, window: int) -> None:
        self.id, self.call, self.window = stream_id, call, window
        self.credit = WINDOW
        self.open = True
        self.ended = False  # the client sends no more
        self.answered = False  # its end is known
        self.started = False  # its answer has begun
        self.exchange: Exchange | None = None  # of a streaming call
        self.outbox: deque[memoryview] | None = None
        self.trailers = b""
        self.waiting = 0
        self.read_by = inf
        self.patience = _NO_HURRY
        self._carrier = carrier
        self._prefix = b""  # of the next message, where it came in pieces
        self._compressed = False
        self._message: memoryview | None = None  # that is being received
        self._filled = 0
        self._counted = 0  # of that, what counts
        self._messages = 0  # how many have begun
        self._body: Buffer | None = None  # of a unary call
        self._held = 0  # bytes that count at the intake
        self._uncounted = 0  # bytes that count with the carrier alone
        self._task: asyncio.Task[None] | None = None
        self._running = False  # the task has begun

    def begin(self) -> None:
        """Its headers have come."""
        if self.call.refusal is not None:
            self._carrier.end(self, self.call.refusal)
        elif self.call.method.streaming is not None:
            self.exchange = Exchange(self._carrier, self)
            self._task = self._carrier.run(self._stream(self.exchange, self.call.method.streaming))
        else:
            self._carrier.await_bytes(self)

    # -- messages ----------------------------------------------------------------------------------------------------

    def room(self) -> memoryview | None:
        """Where the next bytes of the message that is being received go; None where there is none."""
        return None if self._message is None else self._message[self._filled :]

    def received(self, size: int) -> None:
        """Bytes were received into ``room``."""
        assert self._message is not None
        self._filled += size
        if self._filled >= COUNT_FROM_BYTES and not self._admit(self._filled - self._counted):
            self.refuse(Code.UNAVAILABLE, NO_ROOM)
        elif self._filled == len(self._message):
            self._complete(self._message)

    def feed(self, data: memoryview, announced: int) -> None:
        """Bytes have come: messages, one after the other, each behind its prefix; ``announced`` more will come."""
        while data and not self.answered:
            if (room := self.room()) is not None:
                taken = min(len(data), len(room))
                room[:taken] = data[:taken]
                data = data[taken:]
                self.received(taken)
                continue
            if self._prefix or len(data) < PREFIX_BYTES:
                lacking = PREFIX_BYTES - len(self._prefix)
                self._prefix += data[:lacking]
                data = data[lacking:]
                if len(self._prefix) < PREFIX_BYTES:
                    return
                flag, size = PREFIX.unpack(self._prefix)
                self._prefix = b""
            else:
                flag, size = PREFIX.unpack_from(data)
                data = data[PREFIX_BYTES:]
            if not self._permits(flag, size):
                return
            if len(data) >= size:
                if not self._count(size):
                    return
                self._complete(bytes(data[:size]))
                data = data[size:]
            else:
                self._begin_message(size, data, announced)

    def finish(self) -> None:
        """The client has sent all it will."""
        self.ended = True
        self._carrier.await_none(self)
        if self.answered:
            if self.outbox is None:
                self._carrier.forget(self)
        elif self._message is not None or self._prefix:
            self.refuse(Code.INTERNAL, "the last message is cut short")
        elif self.exchange is not None:
            self.exchange.wake()
        elif self._body is None:
            self.refuse(Code.UNIMPLEMENTED, "the method takes one message, but none came")
        else:
            self._task = self._carrier.run(self._unary(self._body, time.monotonic()))
            self._body = None

    def _permits(self, flag: int, size: int) -> bool:
        most = self._carrier.max_message_bytes
        if size > most:
            self.refuse(Code.RESOURCE_EXHAUSTED, f"a message of {size} bytes is over the limit of {most}")
        elif flag > 1 or (flag and self.call.encoding == IDENTITY):
            self.refuse(Code.INTERNAL, "a message is marked as compressed, but 'grpc-encoding' names no way")
        elif self._messages and (self.exchange is None or self.call.method.takes_one):
            self.refuse(Code.UNIMPLEMENTED, "the method takes one message, but more came")
        else:
            self._compressed = bool(flag)
            self._messages += 1
        return not self.answered

    def _begin_message(self, size: int, early: memoryview, announced: int) -> None:
        if size < COUNT_FROM_BYTES:
            if not self._count(size):
                return
        elif not self._carrier.intake.has_room(size, held=self._held):
            self.refuse(Code.UNAVAILABLE, NO_ROOM)
            return
        try:
            self._message = self._carrier.allocate(size, early)
        except MemoryError:
            self.refuse(Code.RESOURCE_EXHAUSTED, f"no memory for a message of {size} bytes")
            return
        self._filled = 0
        self._carrier.await_bytes(self)
        if (lacking := size - len(early) - announced - self.credit) > 0:
            self._carrier.grant(self, lacking)

    def _count(self, size: int) -> bool:
        """Whether there is room for a small message; the call is refused where there is none."""
        carrier = self._carrier
        if carrier.uncounted + size <= COUNT_FROM_BYTES:
            carrier.uncounted += size
            self._uncounted += size
            self._counted += size
        elif not self._admit(size):
            self.refuse(Code.UNAVAILABLE, NO_ROOM)
            return False
        return True

    def _admit(self, size: int) -> bool:
        """Whether there is room for as many bytes more, which have come."""
        if not self._carrier.intake.admit(size, held=self._held):
            return False
        self._counted += size
        self._held += size
        return True

    def _complete(self, message: Buffer) -> None:
        self._message = None
        if self.exchange is not None:
            self._carrier.await_none(self)
            self.exchange.put(message, self._compressed, self._counted)
            self._counted = 0
        else:
            self._body = message

    def release(self, size: int) -> None:
        """Memory that counted was let go; at the call's end, all of it is."""
        held = min(size, self._held)
        uncounted = min(size - held, self._uncounted)
        self._held -= held
        self._uncounted -= uncounted
        self._carrier.intake.release(held)
        self._carrier.uncounted -= uncounted

    async def inflate(self, message: Buffer) -> tuple[bytes, int]:
        """A compressed message as it was, and how much of it counts until ``release``.

        Raises:
            UnderstudyError: it cannot be decompressed, or is too large.
        """
        carrier = self._carrier
        inflated, counts = await carrier.intake.decompress(
            message, self.call.encoding, carrier.max_message_bytes, held=self._held
        )
        self._held += counts
        return inflated, counts

    # -- answers -----------------------------------------------------------------------------------------------------

    async def _unary(self, body: Buffer, received: float) -> None:
        answer, self._running = Answer(), True
        self._carrier.worked()
        try:
            if self._compressed:
                body, _ = await self.inflate(body)
            assert self.call.method.unary is not None
            answer = await self.call.method.unary(body, self.call, received)
        except UnderstudyError as error:
            answer = failed(error)
        except asyncio.CancelledError:
            answer = failed(UnavailableError("the server is stopping"))
        finally:
            self._done()
        if not self.open or self.answered:
            return
        if answer.code:
            self._carrier.end(self, answer.trailers())
        else:
            self._carrier.answer(self, answer.body, answer.trailers())

    async def _stream(self, exchange: "Exchange", handle: "Callable[[Messages, Call], Awaitable[Answer]]") -> None:
        answer, self._running = Answer(), True
        self._carrier.worked()
        try:
            async with asyncio.timeout(self.call.timeout_s):
                answer = await handle(exchange, self.call)
        except UnderstudyError as error:
            answer = failed(error)
        except TimeoutError:
            answer = Answer(code=Code.DEADLINE_EXCEEDED, message="the deadline has passed")
        except asyncio.CancelledError:
            answer = failed(UnavailableError("the server is stopping"))
        finally:
            self._done()
        if self.open and not self.answered:
            self._carrier.end(self, answer.trailers())

    def _done(self) -> None:
        if self._task is not None:
            self._carrier.ended(self._task)
            self._task = None
        self.release(self._held + self._uncounted)

    def refuse(self, code: Code, text: str) -> None:
        """End a call that the client does not conduct as it must."""
        task = self._task
        self._carrier.end(self, Answer(code=code, message=text).trailers())
        if task is not None:
            task.cancel()

    def drop(self) -> None:
        """Keep nothing of it."""
        self.open, self.outbox = False, None
        self.let_go()
        if self.exchange is not None:
            self.exchange.close()
            self.exchange = None  # which refers to this
        if self._task is not None:
            self._task.cancel()
        if not self._running:  # else it lets go of what it holds itself, at its end
            self._done()

    def let_go(self) -> None:
        """Keep no message."""
        self._message = self._body = None


class Exchange:
    """A streaming call's messages: see ``Messages``."""

    def __init__(self, carrier: Carrier, stream: Stream) -> None:
        self._carrier, self._stream = carrier, stream
        self._incoming: deque[tuple[Buffer, bool, int]] = deque()
        self._change, self._room = asyncio.Event(), asyncio.Event()

    def put(self, message: Buffer, compressed: bool, held: int) -> None:
        """A message has come; ``held`` of its bytes count."""
        self._incoming.append((message, compressed, held))
        self._change.set()

    def wake(self) -> None:
        """The client sends no more, or takes no more."""
        self._change.set()
        self._room.set()

    def close(self) -> None:
        """The call is over: keep no message."""
        self._incoming.clear()
        self.wake()

    def let_out(self) -> None:
        """What was sent is on its way."""
        self._room.set()

    async def __aiter__(self) -> AsyncIterator[tuple[Buffer, int]]:
        """The client's messages, with what of each counts; one that is not taken yet holds back those that follow."""
        stream = self._stream
        while True:
            while self._incoming:
                message, compressed, held = self._incoming.popleft()
                self._return(len(message) + PREFIX_BYTES)
                if compressed:
                    message, more = await stream.inflate(message)
                    held += more
                yield message, held
                del message  # which would be kept until the next one comes
            if stream.ended or not stream.open:
                return
            self._change.clear()
            await self._change.wait()

    def release(self, size: int) -> None:
        """A message was let go of as many of whose bytes count."""
        self._stream.release(size)

    async def send(self, message: Buffer) -> None:
        """Send a message; waits until the client lets those before it out."""
        while self._stream.open and not self._carrier.clear_to_send(self._stream):
            self._room.clear()
            await self._room.wait()
        if not self._stream.open:
            raise asyncio.CancelledError
        self._carrier.send(self._stream, message)

    def _return(self, size: int) -> None:
        """The client may send as much again as was taken."""
        stream = self._stream
        if stream.open and not stream.ended and stream.credit < WINDOW:
            self._carrier.grant(stream, min(size, WINDOW - stream.credit))
