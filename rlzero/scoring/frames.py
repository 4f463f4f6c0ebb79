"""Frames in which the reward pool and its workers talk: a length, a body."""

import os
import socket
import struct
from collections.abc import Mapping
from typing import NamedTuple

START_S = 60.0  # for imports, which the deadline of a request leaves out
MAX_REPLY = 1 << 26  # bytes
_LENGTH = struct.Struct('>I')


class Inbox:
  """Takes frames out of what a socket has received; never waits.

  Args:
    channel: the parent's end; whoever writes to the other is not trusted.
  """

  def __init__(self, channel: socket.socket):
    self._channel = channel
    self._buffer = b''

  def receive(self) -> bool:
    """Reads what has arrived; False if the other end is gone."""
    self._channel.setblocking(False)
    try:
      while received := self._channel.recv(1 << 16):
        self._buffer += received
        if len(self._buffer) > MAX_REPLY:
          break
    except BlockingIOError:
      return True
    except OSError:
      return False
    return bool(received)

  def next(self) -> bytes | None:
    """The next whole frame, or None; b'' in place of one that is too long."""
    if len(self._buffer) < _LENGTH.size:
      return None
    (length,) = _LENGTH.unpack_from(self._buffer)
    end = _LENGTH.size + length
    if length > MAX_REPLY:
      return b''
    if len(self._buffer) < end:
      return None
    body, self._buffer = self._buffer[_LENGTH.size : end], self._buffer[end:]
    return body


def send(channel: socket.socket, body: bytes) -> None:
  """Sends one frame.

  Raises:
    OSError: nobody reads.
  """
  channel.sendall(_LENGTH.pack(len(body)) + body)


class Limit(NamedTuple):
  """How long a task may take."""

  deadline_s: float  # seconds, of a completion
  parallel: int = 1  # completions of a group that are judged side by side


def limit_s(limits: Mapping[str, Limit], job: tuple) -> float:
  """Seconds that a job may take; a group has those of all its completions.

  Args:
    limits: by the name of the task.
    job: verb, name of the task, and what the verb needs.
  """
  verb, name, *rest = job
  limit = limits[name]
  if verb != 'judge':
    return limit.deadline_s
  return limit.deadline_s * -(-len(rest[0]) // limit.parallel)


def receive_or_exit(channel: socket.socket) -> bytes:
  """Waits for one frame; ends the process where the other end is gone."""
  (length,) = _LENGTH.unpack(_receive_bytes(channel, _LENGTH.size))
  return _receive_bytes(channel, length)


def _receive_bytes(channel: socket.socket, size: int) -> bytes:
  received = bytearray()
  while len(received) < size:
    part = channel.recv(size - len(received))
    if not part:  # the parent is done, or dead
      os._exit(0)
    received += part
  return bytes(received)
