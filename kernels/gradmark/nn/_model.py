"""A whole model's weights from one seed and a recipe."""

from __future__ import annotations

import fnmatch
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch

from gradmark.nn import init
from gradmark.numerics.philox import check_seed

Initializer = Callable[..., Any]
Rule = str | tuple[str, Mapping[str, Any]] | Initializer
"""A name, a name and its arguments, or a function (tensor, *, seed, stream)."""
Patterns = Mapping[str | type[torch.nn.Module], Rule | Mapping[str, Rule]]
Choice = Callable[[str, torch.nn.Parameter, torch.nn.Module], Rule | None]

_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
"""What torch.compile, activation checkpointing and FSDP put into the names of the parameters that they wrap."""


def initialize_(
    module: torch.nn.Module,
    recipe: Patterns | Choice,
    seed: int,
    *,
    default: Rule | None = None,
    allow_unused: bool = False,
) -> dict[str, str]:
    """Fill all parameters of a model in place, each from a stream of random numbers of its own.

    The stream's name is the parameter's qualified name, without what torch.compile, activation checkpointing or
    DistributedDataParallel add to it. So a layer more or less does not change the weights of the others, and neither
    does any wrapping or sharding: a model under fully_shard, parallelize_module or both gets, part by part and without
    communication, the weights that it has on one process.

    Parameters
    ----------
    module : torch.nn.Module
        The model. One that was built on the meta device needs its memory first: `module.to_empty(device=...)`, then
        whatever ties parameters (to_empty separates them), then this.
    recipe : mapping or callable
        What fills which parameter. Of a mapping, the first key that matches counts:

        - text is a pattern for qualified names, as in the module fnmatch: "layers.*.bias". Its value is a rule;
        - a class of modules stands for the parameters of its instances. Its value is a mapping from patterns for their
          own names, such as "weight", to rules.

        A callable is given (name, parameter, module that has it) and returns a rule, or None where it has none.

        A rule is the name of an initializer ("he_normal"), a pair of a name and its arguments
        (("he_normal", {"gain": 1.0})), or a function that is called as function(parameter, seed=..., stream=...),
        such as functools.partial(init.he_normal_, gain=1.0).
    seed : int
        0 <= seed < 2**64.
    default : rule, optional
        For parameters that nothing in the recipe matches. Default: such parameters are an error.
    allow_unused : bool
        Whether a key of the mapping may match nothing, as where a process has a stage of a pipeline only. Default:
        False; it is most often a misspelling.

    Returns
    -------
    filled : dict of str to str
        Of each parameter, what filled it. A tied parameter is there once, by the first of its names. Buffers are not
        touched, and hold anything after to_empty.

    Raises
    ------
    TypeError
        A recipe, a rule or a seed of another kind.
    ValueError
        Parameters that nothing matches, keys that match nothing or come too late, an unknown initializer, parameters
        on the meta device, parameters that FSDP1 has flattened: all of them are listed, and nothing has been written.
        What an initializer refuses; the parameters before it have been filled then.

    Source
    ------
    Streams by name: numerics/philox.py. The streams of torch.nn.init are in the order of the calls.

    Examples
    --------
    >>> import torch
    >>> from gradmark.nn import init
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> init.initialize_(model, {"*.bias": "zeros", torch.nn.Linear: {"weight": ("he_normal", {"gain": 1.0})}}, seed=0)
    {'0.weight': 'he_normal_(gain=1.0)', '0.bias': 'zeros_()', '2.weight': 'he_normal_(gain=1.0)', '2.bias': 'zeros_()'}
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {module!r} of type {type(module).__name__}")
    seed = check_seed(seed)
    targets = list(_targets(module))
    _check_targets(targets)
    if isinstance(recipe, Mapping):
        rules = _matched(recipe, targets, allow_unused)
    elif callable(recipe):
        rules = [recipe(*target) for target in targets]
    else:
        raise TypeError(f"recipe must be a mapping or a callable, got {recipe!r} of type {type(recipe).__name__}")
    functions = _functions(targets, rules, default)
    for target, function in zip(targets, functions, strict=True):
        try:
            function(target.parameter, seed=seed, stream=target.name)
        except (TypeError, ValueError) as error:
            error.add_note(f"while initializing {target.name!r}")
            raise
    return {target.name: _described(function) for target, function in zip(targets, functions, strict=True)}


class _Target(NamedTuple):
    """What a recipe decides about."""

    name: str
    parameter: torch.nn.Parameter
    module: torch.nn.Module


def _targets(module: torch.nn.Module) -> Iterator[_Target]:
    """The parameters by qualified name, in the order of named_parameters; a tied one once."""
    if isinstance(module, torch.nn.parallel.DistributedDataParallel):
        module = module.module
    seen = set()
    for prefix, owner in module.named_modules():
        path = [part for part in prefix.split(".") if part and part not in _WRAPPERS]
        for name, parameter in owner._parameters.items():
            if parameter is not None and id(parameter) not in seen:
                seen.add(id(parameter))
                yield _Target(".".join([*path, name]), parameter, owner)


def _check_targets(targets: list[_Target]) -> None:
    flat = [name for name, parameter, _ in targets if getattr(parameter, "_is_flat_param", False)]
    if flat:
        raise ValueError(
            f"FSDP1 has flattened parameters into {', '.join(flat)}; initialize the model before it is wrapped, or"
            " shard it with fully_shard"
        )
    meta = [name for name, parameter, _ in targets if parameter.device.type == "meta"]
    if meta:
        raise ValueError(
            f"parameters on the meta device have no memory to fill: {', '.join(meta)}."
            " Call module.to_empty(device=...), tie again what is tied, then initialize"
        )


def _matched(recipe: Patterns, targets: list[_Target], allow_unused: bool) -> list[Rule | None]:
    """The rule of each target, or None; ValueError where a key has none to itself."""
    rules = _flattened(recipe)
    used = set()
    found: list[Rule | None] = []
    for target in targets:
        key = next((key for key in rules if _matches(key, target)), None)
        used.add(key)
        found.append(None if key is None else rules[key])
    owners = [target.module for target in targets]
    unused = [key for key in rules if key not in used and not _is_registered(key, owners)]
    if unused and not allow_unused:
        listed = ", ".join(_key_described(key) for key in unused)
        known = ", ".join(target.name for target in targets)
        raise ValueError(
            f"keys of the recipe that match no parameter, or only such as an earlier key matches: {listed};"
            f" the parameters are {known}. Correct or remove these keys, or give allow_unused=True"
        )
    return found


_Key = tuple[type[torch.nn.Module] | None, str]
"""A class of modules and a pattern for their own names; or None and a pattern for qualified names."""


def _flattened(recipe: Patterns) -> dict[_Key, Rule]:
    rules: dict[_Key, Rule] = {}
    for key, value in recipe.items():
        if isinstance(key, str):
            rules[None, key] = _checked(value, repr(key))
        elif isinstance(key, type) and issubclass(key, torch.nn.Module):
            if not isinstance(value, Mapping):
                raise TypeError(
                    f"the value of {key.__name__} must be a mapping from names of its parameters to rules,"
                    f" got {value!r}"
                )
            rules |= {(key, own): _checked(rule, _key_described((key, own))) for own, rule in value.items()}
        else:
            raise TypeError(f"a key of the recipe must be text or a class of torch.nn.Module, got {key!r}")
    return rules


def _matches(key: _Key, target: _Target) -> bool:
    kind, pattern = key
    if kind is None:
        return fnmatch.fnmatchcase(target.name, pattern)
    return isinstance(target.module, kind) and fnmatch.fnmatchcase(target.name.rpartition(".")[2], pattern)


def _is_registered(key: _Key, owners: list[torch.nn.Module]) -> bool:
    """Whether it names a parameter that all modules of its class have registered as None: a bias that is left out."""
    kind, pattern = key
    if kind is None:
        return False
    absent = {name for owner in owners if isinstance(owner, kind) for name, p in owner._parameters.items() if p is None}
    return any(fnmatch.fnmatchcase(name, pattern) for name in absent)


def _functions(targets: list[_Target], rules: list[Rule | None], default: Rule | None) -> list[Initializer]:
    """What fills each target; ValueError where nothing does."""
    missing = [target.name for target, rule in zip(targets, rules, strict=True) if rule is None]
    if missing and default is None:
        raise ValueError(
            f"nothing in the recipe matches {', '.join(missing)}; add a key for each, or give default=, such as 'zeros'"
        )
    chosen = [default if rule is None else rule for rule in rules]
    return [_function(rule, f"the parameter {t.name!r}") for rule, t in zip(chosen, targets, strict=True)]


def _checked(rule: Any, role: str) -> Rule:
    _function(rule, role)
    checked: Rule = rule
    return checked


def _function(rule: Any, role: str) -> Initializer:
    """The function of a rule; TypeError or ValueError, naming what it was given for, where it is none."""
    if isinstance(rule, str):
        function = _named(rule, role)
    elif isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], str) and isinstance(rule[1], Mapping):
        function = functools.partial(_named(rule[0], role), **rule[1])
    elif callable(rule):
        function = rule
    else:
        raise TypeError(
            f"the rule for {role} must be the name of an initializer, a pair (name, arguments) or a function,"
            f" got {rule!r}"
        )
    _check_call(function, role)
    return function


def _check_call(function: Initializer, role: str) -> None:
    """TypeError unless the function can be called as initialize_ does; it is not called."""
    called, bound, named = function, (), {}
    if isinstance(function, functools.partial):
        called, bound, named = function.func, function.args, function.keywords
    try:
        inspect.signature(called).bind(*bound, "tensor", **{**named, "seed": 0, "stream": "name"})
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"the rule for {role}, {_described(function)}, cannot be called as function(tensor, seed=..., stream=...):"
            f" {error}. Those of gradmark.nn.init can"
        ) from None


def _named(name: str, role: str) -> Initializer:
    known = [known.removesuffix("_") for known in dir(init) if known != "initialize_"]
    if name.removesuffix("_") not in known:
        raise ValueError(f"unknown initializer {name!r} for {role}; known: {', '.join(known)}")
    function: Initializer = getattr(init, f"{name.removesuffix('_')}_")
    return function


def _key_described(key: _Key) -> str:
    kind, pattern = key
    return repr(pattern) if kind is None else f"{kind.__name__}: {pattern!r}"


def _described(function: Any) -> str:
    """A function with the arguments that it is bound to."""
    if isinstance(function, functools.partial):
        arguments = [*map(repr, function.args), *(f"{name}={value!r}" for name, value in function.keywords.items())]
        return f"{_described(function.func).removesuffix('()')}({', '.join(arguments)})"
    return f"{getattr(function, '__name__', None) or type(function).__name__}()"
