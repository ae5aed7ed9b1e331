"""What runs where: device, dtype, attention backend and memory, each chosen by a rule, with its reason."""

import importlib.util
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uniavgen_cli.errors import UsageError

if TYPE_CHECKING:
    import torch

AUTO = "auto"


@dataclass(frozen=True)
class Choice:
    """A value and why it was taken."""

    value: str
    reason: str


@dataclass(frozen=True)
class Runtime:
    """The choices a model is built and run with; `memory_bytes` is what is free on the device."""

    device: Choice
    dtype: Choice
    attention: Choice
    memory_bytes: int

    @property
    def torch_dtype(self) -> "torch.dtype":
        import torch

        return getattr(torch, self.dtype.value)

    def autocast(self) -> AbstractContextManager:
        """The context every forward runs in: matrix products in the chosen dtype, the rest in float32."""
        import torch

        device_type = torch.device(self.device.value).type
        return torch.autocast(device_type, self.torch_dtype, enabled=self.dtype.value != "float32")


def choose(device: str = AUTO, dtype: str = AUTO, attention: str = AUTO) -> Runtime:
    """Device (auto, cpu, cuda, cuda:N), dtype (auto, float32, bfloat16), attention (auto, sdpa, xformers).

    Raises UsageError for what this machine doesn't have.
    """
    where = _device(device)
    number = _dtype(where.value, dtype)
    return Runtime(where, number, _attention(where.value, number.value, attention), free_memory(where.value))


def _device(wanted: str) -> Choice:
    import torch

    if wanted == AUTO:
        if torch.cuda.is_available():
            return Choice("cuda", f"found {torch.cuda.get_device_name()}")
        built = torch.version.cuda is not None
        return Choice("cpu", "no CUDA device found" if built else "this torch is built without CUDA")
    kind, _, number = wanted.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise UsageError(f"device {wanted!r} is unknown", "use auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device {wanted} is not there ({torch.cuda.device_count()} CUDA devices)",
            "try --set runtime.device=cpu",
        )
    return Choice(wanted, "asked for")


def _dtype(device: str, wanted: str) -> Choice:
    if wanted not in (AUTO, "float32", "bfloat16"):
        raise UsageError(f"dtype {wanted!r} is unknown", "use auto, float32 or bfloat16")
    if wanted != AUTO:
        return Choice(wanted, "asked for")
    if device == "cpu":
        native = _cpu_has_bfloat16()
        reason = "this CPU multiplies bfloat16 natively" if native else "this CPU has no bfloat16 products"
        return Choice("bfloat16" if native else "float32", reason)
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    enough = major >= 8
    reason = f"compute capability {major}.{minor} {'has' if enough else 'lacks'} bfloat16"
    return Choice("bfloat16" if enough else "float32", reason)


def _cpu_has_bfloat16() -> bool:
    import torch

    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # since torch 2.12
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def _attention(device: str, dtype: str, wanted: str) -> Choice:
    if wanted not in (AUTO, "sdpa", "xformers"):
        raise UsageError(f"attention {wanted!r} is unknown", "use auto, sdpa or xformers")
    if wanted == "sdpa":
        return Choice("sdpa", "asked for")
    trouble = _xformers_trouble(device, dtype)
    if trouble is None:
        return Choice("xformers", "works on this GPU" if wanted == AUTO else "asked for")
    if wanted == AUTO:
        return Choice("sdpa", trouble)
    raise UsageError(f"attention xformers can't run: {trouble}", "try --attention sdpa")


def _xformers_trouble(device: str, dtype: str) -> str | None:
    """Why memory-efficient attention can't be used here; None when a small call of it works."""
    if device == "cpu":
        return "xformers needs a CUDA device"
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed"
    import torch

    try:
        from xformers import ops

        x = torch.ones(1, 8, 1, 64, device=device, dtype=getattr(torch, dtype))
        ops.memory_efficient_attention(x, x, x)
    except (ImportError, OSError, RuntimeError, NotImplementedError, ValueError) as error:
        return f"xformers does not work on this GPU ({str(error).splitlines()[0]})"
    return None


def free_memory(device: str) -> int:
    """Bytes free on the device; for the CPU, what the system and a container's limit leave."""
    if device != "cpu":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    free = _meminfo("MemAvailable")
    limit, used = (_number_in(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit is not None and used is not None:
        free = min(free, limit - used)
    return max(0, free)


def _meminfo(field: str) -> int:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))
    except (OSError, StopIteration):  # not Linux: what is fitted, as far as the system tells
        names = getattr(os, "sysconf_names", {})
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if "SC_PHYS_PAGES" in names else 0


def _number_in(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError):
        return None
