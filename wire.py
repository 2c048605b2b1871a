"""Policies over a wire: a server and a client that speak openpi's websocket protocol.

    serve(infer, metadata, '127.0.0.1', 8000)      # infer: {name: value} -> {'actions': (H, A)}
    with Client('ws://127.0.0.1:8000') as client:
        client.metadata, client.infer(request)['actions']

On connecting the server sends one frame of metadata; then every request is answered by one frame.
Frames are msgpack maps. An array is a map of its bytes, type and shape; a text frame is an error.
openpi's own client and server understand it (openpi: packages/openpi-client, serving/
websocket_policy_server.py), but for this: after a request that it refuses, our server does not
close the connection. Nothing in a frame is ever executed.

Needs websockets and msgpack; neither torch nor a simulator.
"""

import asyncio
import contextlib
import importlib
import ipaddress
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from typing import Any

import numpy as np

Message = dict[str, Any]
Infer = Callable[[Message], Mapping[str, Any]]

MAX_BYTES = 16 * 2**20  # The largest request: four cameras of 1024 x 1024 px are 12.6 MB.
# A frame up to here is read, so that it can be refused in words and its connection goes on; it is
# twice what is answered, because each client may fill so much memory. A longer one is not read: its
# connection is closed with code 1009, which openpi's client raises with both sizes.
READ_BYTES = 2 * MAX_BYTES
MAX_CLIENTS = 64  # Clients at the same time.
TRY_AGAIN_LATER = 1013  # close code of RFC 6455's registry
NUMBERS = re.compile(r'[<>|=][biuf](1|2|4|8)')  # numpy's names of bool, int, uint and float types
PIP = 'pip install websockets msgpack'


def _need(module: str) -> Any:
    """Import an optional package, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as fault:
        raise ImportError(f'policies over a wire need {fault.name}: {PIP}') from None


# -----------------------------------------------------------------------------
# Frames


def pack(message: Mapping[str, Any]) -> bytes:
    """Turn a message of numbers, texts, lists, maps and arrays into a frame."""
    return _need('msgpack').packb(message, default=_pack_array)


def unpack(frame: bytes | str) -> Message:
    """Turn a frame into a message.

    Arrays are views of the frame and cannot be written to.

    Raises:
        ValueError: It is no such frame.
    """
    msgpack = _need('msgpack')
    if isinstance(frame, str):
        raise ValueError('a frame of text, expected a binary one: a msgpack map')
    try:
        message = msgpack.unpackb(frame, object_hook=_unpack_array)
    except (ValueError, TypeError, msgpack.UnpackException) as fault:
        said = str(fault) or type(fault).__name__
        raise ValueError(f'a frame of {len(frame)} bytes that is no msgpack: {said}') from None
    if not isinstance(message, dict):
        raise ValueError(f'a frame that holds {type(message).__name__}, expected a map')
    return message


def _pack_array(value: Any) -> Message | dict[bytes, Any]:
    if not isinstance(value, (np.ndarray, np.generic)) or value.dtype.kind in 'VOc':
        raise ValueError(f'{type(value).__name__} cannot be sent over a wire')
    if isinstance(value, np.ndarray):
        return {
            b'__ndarray__': True,
            b'data': value.tobytes(),
            b'dtype': value.dtype.str,
            b'shape': value.shape,
        }
    return {b'__npgeneric__': True, b'data': value.item(), b'dtype': value.dtype.str}


def _unpack_array(found: dict) -> Any:
    """Turn a map that stands for an array or a numpy number into it."""
    if b'__npgeneric__' in found:
        value = found.get(b'data')
        if not isinstance(value, (bool, int, float, str)):
            raise ValueError(f'a numpy number of {type(value).__name__}')
        return value
    if b'__ndarray__' not in found:
        return found
    name = found.get(b'dtype')
    data = found.get(b'data')
    shape = found.get(b'shape')
    if not isinstance(name, str) or not NUMBERS.fullmatch(name):
        raise ValueError(f'an array of dtype {str(name)[:20]!r}, expected one of numbers')
    if not isinstance(shape, list) or not isinstance(data, bytes):
        raise ValueError('an array without bytes and a shape')
    if not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f'an array of shape {str(shape)[:40]}')
    dtype = np.dtype(name)
    if len(data) != dtype.itemsize * math.prod(shape):
        raise ValueError(f'an array {shape} of {name} in {len(data)} bytes')
    return np.frombuffer(data, dtype).reshape(shape)


# -----------------------------------------------------------------------------
# The server


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches what listens there."""
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(
    infer: Infer,
    metadata: Mapping[str, Any],
    host: str = '127.0.0.1',
    port: int = 8000,
    started: Callable[[int], object] = lambda port: None,
) -> None:
    """Answer requests until the process is interrupted.

    Args:
        infer: Answers a request; it is called for one at a time, in this thread. A ValueError
            refuses it and goes to the client as text.
        metadata: What a client gets on connecting.
        host: Address to listen at. Whoever reaches it may ask: there is no password.
        port: 0 takes a free one.
        started: Called with the port once clients are answered.
    """

    async def forever() -> None:
        async with listen(infer, metadata, host, port) as taken:
            started(taken)
            await asyncio.get_running_loop().create_future()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(forever())


@contextlib.asynccontextmanager
async def listen(
    infer: Infer, metadata: Mapping[str, Any], host: str, port: int
) -> AsyncIterator[int]:
    """Answer requests inside an `async with`, which gives the port; see `serve`."""
    server = _need('websockets.asyncio.server')
    closed = _need('websockets.exceptions').ConnectionClosed
    greeting = pack(metadata)
    clients = 0

    async def answer(connection: Any) -> None:
        nonlocal clients
        if clients >= MAX_CLIENTS:
            await connection.close(TRY_AGAIN_LATER, f'there are {clients} clients already')
            return
        clients += 1
        try:
            await connection.send(greeting)
            await _answer_all(connection, infer)
        except closed:
            pass  # the client is gone
        finally:
            clients -= 1

    def health(connection: Any, request: Any) -> Any:
        if request.path == '/healthz':
            return connection.respond(HTTPStatus.OK, 'OK\n')
        return None

    quiet = logging.getLogger('vla_lego.wire')  # a client's faults are told to the client
    quiet.setLevel(logging.CRITICAL)
    try:
        listening = await server.serve(
            answer,
            host,
            port,
            process_request=health,
            compression=None,  # pictures of noise and fine lines hardly shrink, and it takes 10 ms
            max_size=READ_BYTES,
            max_queue=1,
            logger=quiet,
        )
    except OSError as fault:
        raise OSError(f'host={host}, port={port}: cannot listen there: {fault}') from None
    async with listening:
        yield listening.sockets[0].getsockname()[1]


async def _answer_all(connection: Any, infer: Infer) -> None:
    """Answer the requests of one client, one by one."""
    timing = {}
    async for frame in connection:
        began = time.perf_counter()
        try:
            if len(frame) > MAX_BYTES:
                raise ValueError(
                    f'a request of {len(frame) / 1e6:.1f} MB, expected at most '
                    f'{MAX_BYTES / 1e6:.1f} MB: send smaller pictures, as uint8'
                )
            request = unpack(frame)
            asked = time.perf_counter()
            reply = infer(request)
        except ValueError as refusal:
            await connection.send(str(refusal))
            continue
        timing['infer_ms'] = (time.perf_counter() - asked) * 1e3
        await connection.send(pack(dict(reply, server_timing=timing)))
        # That of the answer before, as in openpi: this one is not over when it is packed.
        timing = {'prev_total_ms': (time.perf_counter() - began) * 1e3}


# -----------------------------------------------------------------------------
# The client


def _is_chunk(actions: Any) -> bool:
    is_table = isinstance(actions, np.ndarray) and actions.ndim == 2 and len(actions) > 0
    return is_table and actions.dtype.kind == 'f' and bool(np.isfinite(actions).all())


class Client:
    """A connection to a policy server, ours or openpi's."""

    def __init__(self, address: str, timeout_s: float = 60.0):
        """Connect.

        Args:
            address: 'ws://host:port', or 'wss://' with encryption.
            timeout_s: How long an answer may take.

        Raises:
            ConnectionError: Nobody answers there, or not in this protocol.
        """
        connect = _need('websockets.sync.client').connect
        faults = _need('websockets.exceptions')
        self._closed = faults.ConnectionClosed
        self.address = address
        self.timeout_s = timeout_s
        self._open = contextlib.ExitStack()
        try:
            # A proxy between a policy and its robot is never meant.
            connecting = connect(address, compression=None, max_size=MAX_BYTES, proxy=None)
            self._connection = self._open.enter_context(connecting)
        except (OSError, ValueError, faults.InvalidURI, faults.InvalidHandshake) as fault:
            said = str(fault) or type(fault).__name__
            raise ConnectionError(
                f'{address}: no policy server answers there ({said}); start one: '
                'python sim_rollout.py --serve --ckpt=out/demo'
            ) from None
        try:
            self.metadata = self._receive()
        except (ValueError, ConnectionError):
            self.close()
            raise

    def infer(self, request: Mapping[str, Any]) -> Message:
        """Ask for a chunk of actions.

        Args:
            request: The observation; what has to be in it is a matter of the server.

        Returns:
            The reply, which holds 'actions' (H, A), finite, as float32 or float64.

        Raises:
            ConnectionError: The server is gone or takes too long.
            ValueError: It refuses the request, or its answer holds no chunk.
        """
        try:
            self._connection.send(pack(request))
        except self._closed as fault:
            raise ConnectionError(f'{self.address}: the server is gone: {fault}') from None
        reply = self._receive()
        if not _is_chunk(reply.get('actions')):
            raise ValueError(
                f'{self.address} answers without a chunk: expected actions (rows, slots) of finite '
                f'floats, got {", ".join(map(str, reply)) or "nothing"}'
            )
        return reply

    def _receive(self) -> Message:
        try:
            frame = self._connection.recv(timeout=self.timeout_s)
        except TimeoutError:
            raise ConnectionError(
                f'{self.address}: no answer within {self.timeout_s:.0f} s'
            ) from None
        except self._closed as fault:
            raise ConnectionError(f'{self.address}: the server is gone: {fault}') from None
        if isinstance(frame, str):
            raise ValueError(f'{self.address} refuses: {frame.strip()}')
        try:
            return unpack(frame)
        except ValueError as fault:
            raise ValueError(f'{self.address} sent {fault}') from None

    def close(self) -> None:
        """Hang up."""
        self._open.close()

    def __enter__(self) -> 'Client':
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
