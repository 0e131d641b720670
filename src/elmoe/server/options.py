"""How a server is set up. Knows nothing about the engine."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from pathlib import Path

from elmoe.errors import ConfigError, StorageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ApiKeys:
    """Keys that open the API, kept as digests, with the names that logs and queues use for them."""

    names: dict[bytes, str] = field(default_factory=dict)
    """By SHA-256 of the key."""

    @classmethod
    def read(cls, path: Path) -> ApiKeys:
        """One per line, ``KEY`` or ``NAME KEY``; blank lines and lines that start with # are skipped.

        Raises ConfigError for a file without keys, StorageError for one that cannot be read.
        """
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise ConfigError(f"{path}: is not UTF-8 text; write one key per line") from None
        names = {}
        for number, line in enumerate(lines, 1):
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if len(words) > 2:
                raise ConfigError(f"{path}, line {number}: write KEY or NAME KEY, without blanks in either")
            names[_digest(words[-1])] = words[0] if len(words) == 2 else f"key-{number}"
        if not names:
            raise ConfigError(f"{path}: holds no key; write one per line")
        return cls(names)

    def name_of(self, key: str) -> str | None:
        """The name of a key, None for one that is not known; takes as long for any key."""
        given, found = _digest(key), None
        for digest, name in self.names.items():
            if hmac.compare_digest(given, digest):
                found = name
        return found


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


@dataclass(frozen=True)
class ServerOptions:
    """Validated settings."""

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str = "tiny"
    """What clients call the model."""
    keys: ApiKeys | None = None
    """None: anyone who reaches the port may ask."""
    max_queue: int = 64
    """Requests that may wait beside those that run; more are told to come again."""
    max_tokens: int = 4096
    """Tokens that one request may generate."""
    max_choices: int = 16
    """Texts that one request may ask for."""
    max_body_bytes: int = 4 << 20
    timeout_seconds: float = 600.0
    """From the arrival of a request to its end."""
    drain_seconds: float = 60.0
    """What running requests are given to finish after SIGTERM."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be 0 to 65535, not {self.port}")
        for name in ("max_tokens", "max_choices", "max_body_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.max_queue < 0:
            raise ConfigError(f"max_queue must be 0 or more, not {self.max_queue}")
        for name in ("timeout_seconds", "drain_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0, not {getattr(self, name)}")

    @property
    def local_only(self) -> bool:
        """Whether only this machine can reach it."""
        return self.host in LOOPBACK
