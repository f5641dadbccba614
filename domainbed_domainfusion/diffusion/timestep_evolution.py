"""A list of timesteps found by evolution, after AutoDiffusion's search over timesteps (Li et al., ICCV 2023).

The caller says how good a list is. The paper asks FID; `reference_distance` has a score that needs no FID.
The sizes and the shares below are ours.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Timesteps = tuple[int, ...]  # strictly falling, from 0 on

PARENTS = 4  # a generation's parents are the best quarter of the population, two or more
CROSSOVERS = 0.5  # share of the children that have two parents; the others are mutations of one
TRIES = 100  # draws of a child that must all be known lists before a generation ends early


@dataclass(frozen=True)
class Evolution:
    """What a search has found, and all that it has scored."""

    best: Timesteps
    scores: dict[Timesteps, float]  # of every list, in the order in which they were scored
    history: list[float]  # the lowest score after each generation


def search_timesteps(
    score: Callable[[Timesteps], float],
    starts: Sequence[Timesteps],
    limit: int,
    generations: int,
    population: int,
    seed: int,
) -> Evolution:
    """The list of the lowest score among those that the evolution meets. It is never worse than a start.

    Each generation scores at most `population` lists that were not scored before; the first one begins with the starts.
    So `score` is called at most generations x population times, and once for a list. The best lists of all generations
    are the parents of the next (elitism). A tie goes to the list that was scored first.

    score: list → its score, the lower the better, never NaN. starts: lists of one length K, 1 or more of them.
    limit: timesteps are below it; at least K. generations: 1 or more. population: as many as there are starts or more.
    """
    generator, scores, history = random.Random(seed), {}, []
    for timesteps in dict.fromkeys(starts):
        scores[timesteps] = score(timesteps)
    room = population - len(scores)
    for _ in range(generations):
        parents = sorted(scores, key=scores.__getitem__)[: max(2, population // PARENTS)]
        for timesteps in _children(parents, scores, room, limit, generator):
            scores[timesteps] = score(timesteps)
        history.append(min(scores.values()))
        room = population
    return Evolution(min(scores, key=scores.__getitem__), scores, history)


def crossover(one: Timesteps, other: Timesteps, generator: random.Random) -> Timesteps:
    """K different timesteps of both parents."""
    both = sorted({*one, *other})
    return tuple(sorted(generator.sample(both, len(one)), reverse=True))


def mutation(parent: Timesteps, limit: int, generator: random.Random) -> Timesteps:
    """Some timesteps, one or more, are drawn anew between their neighbours, from the largest to the smallest."""
    moved = {generator.randrange(len(parent))} | {i for i in range(len(parent)) if generator.random() < 0.5}
    child = [limit, *parent, -1]
    for i in sorted(moved):
        child[i + 1] = generator.randrange(child[i + 2] + 1, child[i])
    return tuple(child[1:-1])


def _children(
    parents: list[Timesteps], known: dict[Timesteps, float], count: int, limit: int, generator: random.Random
) -> list[Timesteps]:
    """At most `count` different lists that are not known. Fewer if the draws find no more of them."""
    children: dict[Timesteps, None] = {}
    for _ in range(count):
        for _ in range(TRIES):
            if len(parents) > 1 and generator.random() < CROSSOVERS:
                one, other = generator.sample(parents, 2)
                child = crossover(one, other, generator)
            else:
                child = mutation(generator.choice(parents), limit, generator)
            if child not in known and child not in children:
                children[child] = None
                break
    return list(children)
