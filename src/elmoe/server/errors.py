"""What is said to a client when something is wrong, in the form of the OpenAI API. Knows nothing about HTTP servers."""

from __future__ import annotations

from typing import Any

from elmoe.errors import CapacityError, ElmoeError, ExpertReadError, InputError, PromptError


class ApiError(Exception):
    """A request that is refused or fails; `status` is the HTTP status."""

    def __init__(
        self, status: int, message: str, code: str, param: str | None = None, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, Any]:
        """The JSON document of the response."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        if self.status == 429:
            kind = "rate_limit_error"
        if self.status == 401:
            kind = "authentication_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def unsupported(param: str, message: str) -> ApiError:
    """Something that the API knows and this server does not do."""
    return ApiError(400, message, "unsupported", param)


def invalid(param: str | None, message: str) -> ApiError:
    """Something that makes no sense."""
    return ApiError(400, message, "invalid_value", param)


def from_engine(error: Exception) -> ApiError:
    """The engine's refusal as the API says it; its own faults are not described to clients."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, PromptError):
        return ApiError(400, str(error), "invalid_prompt", "messages")
    if isinstance(error, InputError) and not isinstance(error, ExpertReadError):
        return ApiError(400, str(error), "capacity_exceeded" if isinstance(error, CapacityError) else "invalid_value")
    if isinstance(error, ElmoeError):
        return ApiError(503, str(error), "storage_error")
    return ApiError(500, "the server failed on this request; its log has the reason", "internal_error")
