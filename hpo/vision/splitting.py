"""Cuts a network whose forward pass is only code into parts that run in order, where groups of its layers meet.

The pass is traced with torch.fx as a list of operations. Modules that lie within one group stay whole, so that the list
is short: mostly a call for each block. A cut is possible where all that follows needs only one of the values so far.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
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


Groups = Mapping[nn.Parameter, int]
"""The group of each parameter. Those of the highest that run early count with what they run with."""


def split(network: nn.Module, groups: Groups, last: nn.Module, wrapped: Iterable[Any]) -> list[Part]:
    """The parts: one for each group of parameters, as far as cuts are possible between groups, then what comes before
    the layer `last`, which ends the network.

    wrapped: functions that are not to be traced. Raises ValueError if the pass cannot be traced, is another in
    training, or ends otherwise.
    """
    graph = _traced(network.train(), groups, last, wrapped)
    if str(_traced(network.eval(), groups, last, wrapped)) != str(graph):
        raise ValueError("its forward pass is another in training")
    start, *nodes, _ = graph.nodes
    moving: list[fx.Node] = [start]
    for node in nodes:
        if not set(moving).isdisjoint(node.all_input_nodes):
            moving.append(node)
    called = [network.get_submodule(str(node.target)) if node.op == "call_module" else None for node in moving]
    end = called.index(last) if last in called else 0
    if not end or not all(isinstance(module, nn.Identity | nn.Dropout) for module in called[end + 1 :]):
        raise ValueError("its forward pass does not end in its classifier")
    used = [{groups[parameter] for parameter in _parameters(node, moving, network)} for node in moving[:end]]
    cuts = [0, *_cuts(moving[: end + 1], used, max(groups.values())), end - 1]
    return [Part(_piece(moving, first, until)) for first, until in pairwise(cuts)]


class _Tracer(fx.Tracer):
    """Traces into modules that have parameters of several groups, or the last layer; others stay whole."""

    def __init__(self, groups: Groups, last: nn.Module, wrapped: Iterable[Any]) -> None:
        super().__init__(autowrap_functions=tuple(wrapped))
        self.groups, self.last = groups, last

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        groups = {self.groups[parameter] for parameter in m.parameters()}
        return m is self.last or (len(groups) <= 1 and self.last not in m.modules())


def _traced(network: nn.Module, groups: Groups, last: nn.Module, wrapped: Iterable[Any]) -> fx.Graph:
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


def _parameters(node: fx.Node, moving: Sequence[fx.Node], network: nn.Module) -> Iterator[nn.Parameter]:
    """Those that an operation uses, directly or by what is computed of them alone."""
    if node.op == "call_module":
        yield from network.get_submodule(str(node.target)).parameters()
    elif node.op == "get_attr":
        found = attrgetter(str(node.target))(network)
        yield from [found] if isinstance(found, nn.Parameter) else []
    for each in node.all_input_nodes:
        if each not in moving:
            yield from _parameters(each, moving, network)


def _cuts(moving: Sequence[fx.Node], used: Sequence[set[int]], head: int) -> list[int]:
    """Places after which a part ends: where no group is on both sides. Of several between two groups it is the latest:
    activation and pooling are with the layer before them. Of those before the head it is the first.

    used: the groups that each operation uses.
    """
    last_of_others = max((place for place, groups in enumerate(used) if groups - {head}), default=0)
    used = [groups - {head} if place <= last_of_others else groups for place, groups in enumerate(used)]
    cuts: list[int] = []
    for place in range(1, len(used) - 1):
        before, after = set().union(*used[: place + 1]), set().union(*used[place + 1 :])
        if before and before.isdisjoint(after) and len(_crossing(moving, place)) == 1:
            if not cuts or set().union(*used[cuts[-1] + 1 : place + 1]):
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
