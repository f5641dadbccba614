"""The hparam `weight_average` with DomainBed's own algorithms."""

import json

#: Those that are built in unusual ways: modules that are built anew at each step (Fish), buffers that grow (GroupDRO)
#: and that `predict` reads (MTL), `train` and `eval` of their own (TRM), several networks (SagNet), counters (IRM).
NAMES = ("ERM", "IRM", "Fish", "GroupDRO", "MTL", "SagNet", "ARM", "TRM", "SelfReg")


def test_the_average_of_domainbeds_own_algorithms(attached):
    found = json.loads(attached.python("tests.upstream.averages", *NAMES).stdout.splitlines()[-1])
    for name, seen in found.items():
        assert seen["class"] == [name, True], name
        assert seen["same"] and seen["predicts"] and seen["moved"], (name, seen)
        assert seen["largest"] < 1e-6, (name, seen)
    assert tuple(found) == NAMES
