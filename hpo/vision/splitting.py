"""Cuts a network whose forward pass is only code into parts that run in order, where groups of its layers meet.

The pass is traced with torch.fx as a list of operations. Modules that lie within one group stay whole, so that the list
is short: mostly a call for each block. A cut is possible where all that follows needs only one of the values so far.
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import fx, nn


@dataclass(frozen=True)
class Part:
    """Operations of a network from one tensor to another. Shared by copies of the network."""

    graph: fx.Graph

    def of(self, network: nn.Module) -> nn.Module:
        """A module that has the parameters of the network itself: one of the network's own if it is nothing else."""
        given, *inner, _ = self.graph.nodes
        if len(inner) == 1 and inner[0].op == "call_module" and inner[0].args == (given,) and not inner[0].kwargs:
            return network.get_submodule(str(inner[0].target))
        return fx.GraphModule(network, self.graph)

    def __deepcopy__(self, memo: object) -> "Part":
        return self


def split(network: nn.Module, groups: Mapping[str, int], last: nn.Module, wrapped: Iterable[Any]) -> list[Part]:
    """The parts: one for each group of parameters, as far as cuts are possible between groups, then what comes before
    the layer `last`, which ends the network.

    groups: by parameter, ordered; those of the highest that run early count with what they run with. wrapped: functions
    that are not to be traced. Raises ValueError if the pass cannot be traced, differs in training, or ends otherwise.
    """
    graph = _traced(network.train(), groups, last, wrapped)
    if str(_traced(network.eval(), groups, last, wrapped)) != str(graph):
        raise ValueError("its forward pass is another in training")
    start, *nodes, _ = graph.nodes
    moving: list[fx.Node] = [start]
    for node in nodes:
        if not set(moving).isdisjoint(node.all_input_nodes):
            moving.append(node)
    names = {module: name for name, module in network.named_modules()}
    end = next((place for place, node in enumerate(moving) if node.target == names[last]), 0)
    after = [network.get_submodule(str(node.target)) for node in moving[end + 1 :] if node.op == "call_module"]
    if not end or len(after) < len(moving) - end - 1 or not all(isinstance(m, nn.Identity | nn.Dropout) for m in after):
        raise ValueError("its forward pass does not end in its classifier")
    found = [_groups_of(node, moving, groups) for node in moving[:end]]
    cuts = [0, *_cuts(moving[: end + 1], found, max(groups.values())), end - 1]
    return [Part(_piece(moving, first, until)) for first, until in pairwise(cuts)]


class _Tracer(fx.Tracer):
    """Traces into modules that have parameters of several groups, or the last layer; others stay whole."""

    def __init__(self, groups: Mapping[str, int], last: nn.Module, wrapped: Iterable[Any]) -> None:
        super().__init__(autowrap_functions=tuple(wrapped))
        self.groups, self.last = groups, last

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m is self.last:
            return True
        inside = {self.groups[f"{module_qualified_name}.{name}"] for name, _ in m.named_parameters()}
        return len(inside) <= 1 and all(part is not self.last for part in m.modules())


def _traced(network: nn.Module, groups: Mapping[str, int], last: nn.Module, wrapped: Iterable[Any]) -> fx.Graph:
    """The forward pass of one input; its other arguments have their defaults."""
    _, *others = inspect.signature(network.forward).parameters.values()
    try:
        graph = _Tracer(groups, last, wrapped).trace(network, {each.name: each.default for each in others} or None)
    except Exception as error:  # whatever code does that is given no tensors
        raise ValueError(f"its forward pass cannot be traced ({str(error).partition(chr(10))[0]})") from error
    _, *unused = [node for node in graph.nodes if node.op == "placeholder"]
    for node in unused:
        for check in [*node.users]:  # that they have their defaults
            for user in [*check.users]:
                graph.erase_node(user)
            graph.erase_node(check)
        graph.erase_node(node)
    return graph


def _groups_of(node: fx.Node, moving: Sequence[fx.Node], groups: Mapping[str, int]) -> set[int]:
    """Of the parameters that an operation uses, directly or by what is computed of them alone."""
    found = {
        group for name, group in groups.items() if node.op == "call_module" and f"{name}.".startswith(f"{node.target}.")
    }
    for each in node.all_input_nodes:
        if each.op == "get_attr":
            found |= {groups[str(each.target)]} if each.target in groups else set()
        elif each not in moving:
            found |= _groups_of(each, moving, groups)
    return found


def _cuts(moving: Sequence[fx.Node], found: Sequence[set[int]], head: int) -> list[int]:
    """Places after which a part ends: where no group is on both sides. Of several between two groups it is the latest, so
    that activation and pooling are with the layer before them; of those before the head the first.
    """
    others = [place for place, used in enumerate(found) if used - {head}]
    found = [used - {head} if place <= max(others, default=0) else used for place, used in enumerate(found)]
    cuts: list[int] = []
    for place in range(1, len(found) - 1):
        before, after = set().union(*found[: place + 1]), set().union(*found[place + 1 :])
        if before and before.isdisjoint(after) and len(_crossing(moving, place)) == 1:
            if not cuts or set().union(*found[cuts[-1] + 1 : place + 1]):
                cuts.append(place)
            elif after - {head}:
                cuts[-1] = place
    return cuts


def _crossing(moving: Sequence[fx.Node], place: int) -> list[fx.Node]:
    """The values that what follows needs of what there is up to a place."""
    later = set(moving[place + 1 :])
    return [node for node in moving[: place + 1] if not later.isdisjoint(node.users)]


def _piece(moving: Sequence[fx.Node], first: int, until: int) -> fx.Graph:
    """The operations after the place `first` up to `until`, with what is computed of parameters alone."""
    graph = fx.Graph()
    (given,) = _crossing(moving, first)
    copies = {given: graph.placeholder("given")}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:
            copies[node] = graph.node_copy(node, copied)
        return copies[node]

    for node in moving[first + 1 : until + 1]:
        copied(node)
    (result,) = _crossing(moving, until)
    graph.output(copied(result))
    return graph
