"""What a plug-in changes of the process that all plug-ins share: it is put back, and said.

A number is a function of its run alone, so nothing that one plug-in leaves behind may reach the next one, or a run that
goes on in another process.
"""

from __future__ import annotations

import contextlib
import decimal
import gc
import locale
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.backends import cuda, cudnn, mkldnn, opt_einsum

from benchmark.api import one_line


@dataclass(frozen=True)
class _Kept:
    """A thing that is put back. `noted`: whether a change is said; a library's first import may change the others."""

    get: Callable[[], Any]
    put: Callable[[Any], object]
    noted: bool = True


def _flag(owner: Any, name: str) -> _Kept:
    return _Kept(lambda: getattr(owner, name), lambda value: setattr(owner, name, value))


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set for each backend apart, by what is kept below
        return ""


_TORCHS = ("TORCHINDUCTOR_", "TRITON_")  # variables that torch sets itself, when a network is compiled
_left: list[Any] = []  # inference modes, which end when they are forgotten


def _put_inference_mode(enabled: bool) -> None:
    _left.append(torch.inference_mode(enabled))
    _left[-1].__enter__()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_TORCHS)}


def _put_environment(values: Mapping[str, str]) -> None:
    for name in _environment().keys() - values.keys():
        del os.environ[name]
    os.environ.update(values)


def _mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return ""


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _put_handlers(handlers: Mapping[int, Any]) -> None:
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            if handler is not None and signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def _alarm() -> bool:
    return signal.getitimer(signal.ITIMER_REAL) != (0.0, 0.0)


def _gpu_generators() -> list[bytes]:
    if not torch.cuda.is_initialized():
        return []
    return [state.numpy().tobytes() for state in torch.cuda.get_rng_state_all()]


def _put_gpu_generators(states: list[bytes]) -> None:
    if states:
        torch.cuda.set_rng_state_all([_bytes(state) for state in states])


def _bytes(state: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def _numpy_generator() -> tuple[Any, ...]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return (name, np.asarray(keys).tobytes(), *rest)


def _put_numpy_generator(state: tuple[Any, ...]) -> None:
    name, keys, *rest = state
    np.random.set_state((name, np.frombuffer(keys, np.uint32), *rest))


def _autocast() -> list[tuple[str, bool, torch.dtype]]:
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]


def _put_autocast(states: list[tuple[str, bool, torch.dtype]]) -> None:
    for kind, enabled, dtype in states:
        torch.set_autocast_enabled(kind, enabled)
        torch.set_autocast_dtype(kind, dtype)


def _put_list(into: Any, values: list[Any]) -> None:
    into[:] = values


_SUBNORMAL = torch.tensor([1e-310], dtype=torch.float64)

# What a number may depend on: put back after every call or phase.
NUMBERS: dict[str, _Kept] = {
    "torch's generator": _Kept(
        lambda: torch.get_rng_state().numpy().tobytes(), lambda state: torch.set_rng_state(_bytes(state))
    ),
    "the GPUs' generators": _Kept(_gpu_generators, _put_gpu_generators),
    "numpy's generator": _Kept(_numpy_generator, _put_numpy_generator),
    "Python's generator": _Kept(random.getstate, random.setstate),
    "torch's default dtype": _Kept(torch.get_default_dtype, torch.set_default_dtype),
    "torch's default device": _Kept(
        torch.get_default_device, lambda device: torch.set_default_device(None if device.type == "cpu" else device)
    ),
    "torch's inference mode": _Kept(torch.is_inference_mode_enabled, _put_inference_mode),
    "torch's grad mode": _Kept(torch.is_grad_enabled, torch.set_grad_enabled),
    "torch's anomaly mode": _Kept(torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    "torch's threads": _Kept(torch.get_num_threads, torch.set_num_threads),
    "torch's deterministic algorithms": _Kept(
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda modes: torch.use_deterministic_algorithms(modes[0], warn_only=modes[1]),
    ),
    "torch.utils.deterministic.fill_uninitialized_memory": _flag(
        torch.utils.deterministic,
        "fill_uninitialized_memory",
    ),
    "torch's subnormal numbers": _Kept(
        lambda: bool((_SUBNORMAL * 1).any()), lambda kept: torch.set_flush_denormal(not kept)
    ),
    "torch's float32_matmul_precision": _Kept(
        _matmul_precision, lambda value: torch.set_float32_matmul_precision(value) if value else None
    ),
    **{
        f"torch.backends.{name}.fp32_precision": _flag(owner, "fp32_precision")
        for name, owner in (
            ("cuda.matmul", cuda.matmul),
            ("cudnn.conv", cudnn.conv),  # type: ignore[attr-defined]
            ("cudnn.rnn", cudnn.rnn),
            ("mkldnn.matmul", mkldnn.matmul),  # type: ignore[attr-defined]
            ("mkldnn.conv", mkldnn.conv),  # type: ignore[attr-defined]
            ("mkldnn.rnn", mkldnn.rnn),  # type: ignore[attr-defined]
        )
    },
    **{
        f"torch.backends.{name}.{flag}": _flag(owner, flag)
        for name, owner, flags in (
            ("cudnn", cudnn, ("enabled", "benchmark", "deterministic")),
            ("mkldnn", mkldnn, ("enabled", "deterministic")),
            ("opt_einsum", opt_einsum, ("enabled", "strategy")),
        )
        for flag in flags
    },
    **{
        f"torch.backends.cuda.enable_{name}": _Kept(getattr(cuda, f"{name}_enabled"), getattr(cuda, f"enable_{name}"))
        for name in ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp")
    },
    "autocast": _Kept(_autocast, _put_autocast),
    "numpy's treatment of errors": _Kept(np.geterr, lambda values: np.seterr(**values)),
    "decimal's context": _Kept(
        lambda: _of_decimal(decimal.getcontext()), lambda values: decimal.setcontext(decimal.Context(**values))
    ),
    "the locale": _Kept(lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
    "the working folder": _Kept(_folder, lambda path: os.chdir(path) if path else None),
}


def _of_decimal(context: decimal.Context) -> dict[str, Any]:
    names = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
    traps = [kind for kind, trapped in context.traps.items() if trapped]
    return {name: getattr(context, name) for name in names} | {"traps": traps}


# What a plug-in may need from its import on, and so keeps until its run ends.
PROCESS: dict[str, _Kept] = {
    "the environment": _Kept(_environment, _put_environment),
    "sys.path": _Kept(lambda: list(sys.path), lambda value: _put_list(sys.path, value)),
    "handlers of signals": _Kept(_handlers, _put_handlers),
    "an alarm": _Kept(_alarm, lambda before: None if before else signal.setitimer(signal.ITIMER_REAL, 0)),
    "the mask of new files' modes": _Kept(_mask, os.umask),
    "standard output": _flag(sys, "stdout"),
    "standard error": _flag(sys, "stderr"),
    "the limit of recursion": _Kept(sys.getrecursionlimit, sys.setrecursionlimit),
    "garbage collection": _Kept(gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()),
    "filters of warnings": _Kept(
        lambda: list(warnings.filters), lambda value: _put_list(warnings.filters, value), noted=False
    ),
}


class PlugInEnded(RuntimeError):
    """A plug-in asked to end the whole command."""


@contextlib.contextmanager
def unmoved(kept: Mapping[str, _Kept], say: Callable[[str], object]) -> Iterator[None]:
    """What plug-ins change inside of `kept` is put back, and `say` gets its names, once.

    Whatever a plug-in raises that would end the command, as sys.exit does, becomes PlugInEnded; the user's own
    interrupt stays what it is.
    """
    before = {name: each.get() for name, each in kept.items()}
    try:
        yield
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise PlugInEnded(one_line(f"{type(error).__name__}: {error}")) from error
    finally:
        if changed := _put_back(kept, before):
            say(", ".join(changed))


def _put_back(kept: Mapping[str, _Kept], before: Mapping[str, Any]) -> list[str]:
    moved = _moved(kept, before)
    for name in moved:
        kept[name].put(before[name])
    for name in _moved(kept, before):  # some settings of torch move others with them
        kept[name].put(before[name])
    return [name for name in moved if kept[name].noted]


def _moved(kept: Mapping[str, _Kept], before: Mapping[str, Any]) -> list[str]:
    return [name for name, each in kept.items() if each.get() != before[name]]
