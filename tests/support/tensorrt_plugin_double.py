"""A stand-in for `tensorrt.plugin`: the rules of its Python API that registration and ahead-of-time plugins meet.

Written after the API's documentation and compared by hand with the Python files of tensorrt 11.4's bindings: which
annotations a definition must have, in which order attributes and tensors are handed over, which expressions a launch may
be made of. Expressions are functions of the free dimensions by name, so that a test can ask for their values.
"""

from __future__ import annotations

import enum
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

ATTRIBUTES = (int, float, bytes, bool, str)
TYPES = ("FP32", "FP16", "BF16", "INT64", "INT32")
DataType = enum.Enum("DataType", "FLOAT HALF BF16 INT64")


class SymInt32:
    """A 32-bit integer that may depend on free dimensions: `value({"rows": 3})`."""

    def __init__(self, value: int | str | SymInt32, times: int = 1) -> None:
        assert not isinstance(value, int) or -(1 << 31) <= value < 1 << 31, value
        self._value, self._times = value, times

    def value(self, free: Mapping[str, int]) -> int:
        own = self._value
        return self._times * (
            own.value(free) if isinstance(own, SymInt32) else free[own] if isinstance(own, str) else own
        )

    def __mul__(self, other: int) -> SymInt32:
        return SymInt32(self, other)


class Shape(tuple[int, ...]):
    """Sizes with -1 for free ones; `most` are the largest, which a profile gives."""

    most: tuple[int, ...]

    @property
    def is_dynamic(self) -> bool:
        return -1 in self

    @property
    def max(self) -> tuple[int, ...]:
        if not self.is_dynamic:
            raise ValueError("max property is only accessible if is_dynamic is true")
        return self.most


class TensorDesc:
    """`sizes` are numbers, or for a free dimension (name, largest)."""

    def __init__(self, dtype: DataType, sizes: Sequence[int | tuple[str, int]]) -> None:
        self.dtype, self.sizes = dtype, sizes
        self.shape = Shape(n if isinstance(n, int) else -1 for n in sizes)
        self.shape.most = tuple(n if isinstance(n, int) else n[1] for n in sizes)
        self.shape_expr = [SymInt32(n if isinstance(n, int) else n[0]) for n in sizes]

    def like(self) -> TensorDesc:
        return TensorDesc(self.dtype, self.sizes)


class KernelLaunchParams:
    NAMES = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self) -> None:
        for name in self.NAMES:
            setattr(self, name, 0 if name == "shared_mem" else 1)

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self.NAMES:
            raise AttributeError(name)
        self.__dict__[name] = SymInt32(value)


class SymExprs:
    def __init__(self, length: int) -> None:
        self.items: list[Any] = [None] * length

    def __setitem__(self, i: int, value: SymInt32) -> None:
        assert isinstance(value, SymInt32)
        self.items[i] = value


class SymIntExprs(SymExprs):
    pass


class AutoTuneCombination:
    def __init__(self, io_types: str, layouts: str = "LINEAR") -> None:
        self.types = [name.strip() for name in io_types.split(",")]
        assert set(self.types) <= set(TYPES) and layouts == "LINEAR"


class Definition:
    """What is registered under one id."""

    def __init__(self, describe: Callable[..., Any]) -> None:
        parameters = inspect.signature(describe).parameters
        kinds = [p.annotation for p in parameters.values()]
        self.tensors = [name for name, kind in zip(parameters, kinds, strict=True) if kind is TensorDesc]
        self.attributes = {n: k for n, k in zip(parameters, kinds, strict=True) if k is not TensorDesc}
        assert list(parameters) == [*self.tensors, *self.attributes], "tensors come first"
        assert all(kind in ATTRIBUTES for kind in self.attributes.values()), self.attributes
        assert all(p.default is inspect.Parameter.empty for p in parameters.values())
        assert inspect.signature(describe).return_annotation is TensorDesc
        self.describe = describe
        self.autotune: Any = None
        self.implementation: Any = None

    def check(self, function: Callable[..., Any], every_attribute: bool, last: list[str]) -> None:
        """That a second function of the plugin fits the first."""
        parameters = inspect.signature(function).parameters
        attributes = [name for name in self.attributes if name in parameters]
        assert list(parameters) == [*self.tensors, *attributes, *last], list(parameters)
        assert attributes == list(self.attributes) or not every_attribute  # they are handed over by position
        for name, parameter in parameters.items():
            if name in self.attributes:
                assert parameter.annotation is self.attributes[name]
            elif name == "outputs":
                assert typing.get_origin(parameter.annotation) is tuple
                assert typing.get_args(parameter.annotation) == (TensorDesc,)
            else:
                assert parameter.annotation is (int if name == "tactic" else TensorDesc)

    def launch(self, inputs: Sequence[TensorDesc], **attributes: Any) -> tuple[str, str, KernelLaunchParams, SymExprs]:
        """As TensorRT asks for the kernel: everything by position."""
        assert list(attributes) == list(self.attributes)
        output = self.describe(*inputs, **attributes)
        result = self.implementation(*inputs, *attributes.values(), (output,), 0)
        kinds = (str, str, KernelLaunchParams, SymIntExprs)
        assert all(isinstance(part, kind) for part, kind in zip(result, kinds, strict=True))
        return result  # type: ignore[no-any-return]


def module() -> ModuleType:
    """A fresh `tensorrt.plugin`; `op.<namespace>.<name>` are its definitions."""
    op = SimpleNamespace()

    def register(plugin_id: str) -> Callable[[Any], Any]:
        namespace, name = plugin_id.split("::")
        space = op.__dict__.setdefault(namespace, SimpleNamespace())
        if hasattr(space, name):
            raise ValueError(f"already has a definition for '{name}'")
        return lambda function: setattr(space, name, Definition(function))

    def second(attribute: str, every: bool, last: list[str], returns: tuple[Any, tuple[Any, ...]]) -> Any:
        def decorator(plugin_id: str) -> Callable[[Any], Any]:
            namespace, name = plugin_id.split("::")
            definition = getattr(getattr(op, namespace), name)

            def decorate(function: Any) -> None:
                definition.check(function, every, last)
                found = inspect.signature(function).return_annotation
                assert (typing.get_origin(found), typing.get_args(found)) == returns
                setattr(definition, attribute, function)

            return decorate

        return decorator

    made = ModuleType("tensorrt.plugin")
    kinds = (TensorDesc, KernelLaunchParams, SymInt32, SymExprs, SymIntExprs, AutoTuneCombination)
    launch = (tuple, (str, str, KernelLaunchParams, SymExprs))
    made.__dict__.update(
        {kind.__name__: kind for kind in kinds},
        op=op,
        register=register,
        autotune=second("autotune", False, ["outputs"], (list, (AutoTuneCombination,))),
        aot_impl=second("implementation", True, ["outputs", "tactic"], launch),
    )
    return made
