"""Continuing an interrupted training job: the same weights, minibatches, rows and model as without the interruption.

The host's train loop knows no resume, and it is not ours to change. A job that is started again runs the loop from step
0, and its loaders deliver the same minibatches. Up to the saved step, `update` and the evaluations return what the
`journal` holds, without computing (`replay`). Then the state of the algorithm is restored from a checkpoint.

`switch` is the environment variable that asks for it. `hooks` attaches to the host. `protected_run` is the order of
events; `checkpoints` are the files; `capture` and `restore` turn an algorithm into plain values and back;
`generators` holds the states of the random generators. `incomplete` finds the jobs of a sweep that can go on.
May import: `hosting` and the ground floor.
"""
