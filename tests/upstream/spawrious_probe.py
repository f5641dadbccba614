"""Added to the copy of DomainBed by test_spawrious: a DomainFusion that writes what it took from its dataset."""

from domainbed import algorithms, datasets

from domainbed_domainfusion.algorithms.domainfusion import DomainFusion
from domainbed_domainfusion.hosting import hparams

from .probes import write

datasets.SpawriousBenchmark.N_WORKERS = 0  # 64 loader workers would be started otherwise


class DatasetProbe(DomainFusion):
    def update(self, minibatches, unlabeled=None):
        values = super().update(minibatches, unlabeled)
        seen = {"prompts": self.generation.prompts}
        seen.update({name: getattr(self.pixel_range, name).flatten().tolist() for name in ("mean", "std")})
        write("dataset.json", seen)
        return values


hparams.TABLES["DatasetProbe"] = hparams.TABLES["DomainFusion"]
algorithms.DatasetProbe = DatasetProbe
