"""Every error lipcert raises on purpose: each says what, where, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def named(kind: type[LipcertError], what: str) -> Iterator[None]:
    """Turn an exception without a name of ours into one that says what broke; for the outermost layer of a call."""
    try:
        yield
    except LipcertError:
        raise
    except Exception as error:
        raise kind(
            f"{what} broke: {type(error).__name__}: {str(error)[:300]}. If forward changes the state of PyTorch, that "
            "is why; else this is a bug in lipcert and not in your model: please report it."
        ) from error


class LipcertError(Exception):
    """Base class of all errors raised by lipcert."""


class CaptureError(LipcertError):
    """The model could not be turned into a faithful ``Network``."""


class UnsupportedOpError(CaptureError):
    """An operation has no rule; the message names it, its place in the user's code and the alternatives."""


class NotLipschitzError(CaptureError):
    """An operation is discontinuous, or has no finite Lipschitz constant on the whole space."""


class TrainModeError(CaptureError):
    """A layer whose training behaviour is random or couples the batch is still in training mode."""


class InputError(LipcertError):
    """An argument (example input, norm, domain, selection, budget …) is not usable; nothing was computed."""


class UnsupportedNormError(InputError):
    """The chosen method cannot bound this pair of norms; the message lists the methods that can."""


class MethodError(InputError):
    """The chosen method does not apply to this network (its graph, kinds of node or size); the message lists others."""


class NumericsError(LipcertError, ArithmeticError):
    """A certified computation met NaN, infinity or a failed factorisation and refuses to guess."""


class NotProved(LipcertError):  # noqa: N818  (a result of an attempt, not a fault)
    """This attempt proved nothing; another witness may. Internal: methods and ``verify`` turn it into what it means."""


class CertificateError(LipcertError):
    """A certificate is missing, damaged, tampered with, of another model, or does not prove its claim."""


class StoreError(LipcertError):
    """The file of a run cannot be used or written: damaged, of another run, held by another process, no space left."""


class EngineError(LipcertError):
    """The workers of a run cannot be started, or one example ends each worker that tries it."""
