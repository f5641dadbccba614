"""The search over timesteps against brute force over all lists, and what it promises: seeds, cache, elitism."""

import itertools
import random
import subprocess
import sys

import numpy as np
import pytest

from domainbed_domainfusion.diffusion.timestep_evolution import crossover, mutation, search_timesteps

LIMIT, STEPS = 16, 4
UNIFORM = (15, 11, 7, 3)
LISTS = [tuple(reversed(each)) for each in itertools.combinations(range(LIMIT), STEPS)]


def staircase(curve: np.ndarray, timesteps: tuple[int, ...]) -> float:
    """The squared error of a curve that is held from each timestep down to the next, as a solver of order 1 does."""
    held = curve[[min((t for t in timesteps if t >= i), default=timesteps[0]) for i in range(LIMIT)]]
    return float(np.square(held - curve).sum())


def search(curve, **changed):
    arguments = {"generations": 30, "population": 12, "seed": 0, **changed}
    return search_timesteps(lambda timesteps: staircase(curve, timesteps), [UNIFORM], LIMIT, **arguments)


@pytest.mark.parametrize("bend", [0.5, 3.0, 6.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_finds_the_optimum_of_brute_force(bend, seed):
    """It scores a fifth of the 1,820 lists at most."""
    curve = np.linspace(0, 1, LIMIT) ** bend + 0.3 * np.sin(np.arange(LIMIT))
    scores = {timesteps: staircase(curve, timesteps) for timesteps in LISTS}
    found = search(curve, seed=seed)
    assert scores[found.best] == min(scores.values()) < scores[UNIFORM]
    assert len(found.scores) <= 30 * 12 < len(LISTS) / 5
    assert found.scores == {timesteps: scores[timesteps] for timesteps in found.scores}


def test_a_small_problem_is_searched_whole():
    """Random scores have no slope to follow. The search ends when no list is left."""
    generator = random.Random(0)
    scores = {tuple(reversed(each)): generator.random() for each in itertools.combinations(range(7), 3)}
    found = search_timesteps(scores.__getitem__, [(6, 4, 2)], 7, generations=40, population=6, seed=1)
    assert found.scores == scores and found.best == min(scores, key=scores.__getitem__)
    assert len(found.history) == 40


def test_each_list_is_valid_and_scored_once():
    calls = []
    random_score = random.Random(3)
    starts = [(999, 749, 499, 249), (751, 501, 251, 1), (999, 749, 499, 249)]
    found = search_timesteps(
        lambda timesteps: calls.append(timesteps) or random_score.random(), starts, 1000, 6, 10, seed=4
    )
    assert calls == list(found.scores) and len(set(calls)) == len(calls) == 60 and calls[:2] == starts[:2]
    for timesteps in calls:
        assert len(timesteps) == 4 and timesteps[0] < 1000 and timesteps[-1] >= 0
        assert list(timesteps) == sorted(set(timesteps), reverse=True)
    values = list(found.scores.values())
    assert found.history == [min(values[: 10 * generation]) for generation in range(1, 7)]
    assert found.scores[found.best] == min(values)


def test_the_seed_decides():
    curve = np.linspace(0, 1, LIMIT) ** 3
    found, again, other = (search(curve, generations=4, seed=seed) for seed in (7, 7, 8))
    assert list(found.scores.items()) == list(again.scores.items())
    assert list(found.scores) != list(other.scores)


@pytest.mark.parametrize("seed", range(5))
def test_it_never_ends_worse_than_a_start_and_a_tie_is_the_first_starts(seed):
    best_is_start = search_timesteps(
        lambda timesteps: float(timesteps != UNIFORM), [(14, 9, 4, 0), UNIFORM], LIMIT, 5, 6, seed
    )
    assert best_is_start.best == UNIFORM and best_is_start.history == [0.0] * 5
    assert search_timesteps(lambda timesteps: 1.0, [UNIFORM, (14, 9, 4, 0)], LIMIT, 5, 6, seed).best == UNIFORM


def test_children():
    generator = random.Random(0)
    mutants = {mutation((8, 5, 2), 11, generator) for _ in range(3000)}
    single = {(a, 5, 2) for a in (6, 7, 9, 10)} | {(8, b, 2) for b in (3, 4, 6, 7)} | {(8, 5, c) for c in (0, 1, 3, 4)}
    assert single <= mutants  # a timestep alone can reach every place between its neighbours
    assert any(child[0] != 8 and child[1] != 5 and child[2] != 2 for child in mutants)
    assert all(10 >= a > b > c >= 0 for a, b, c in mutants)
    children = {crossover((9, 5, 1), (8, 5, 2), generator) for _ in range(1000)}
    assert children == {tuple(reversed(each)) for each in itertools.combinations((1, 2, 5, 8, 9), 3)}


def test_it_needs_no_torch():
    code = "import sys, domainbed_domainfusion.diffusion.timestep_evolution; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
