"""DomainFusion (Huang et al., ECCV 2024): a classifier trained with a frozen latent diffusion model in the loop.

Read `DomainFusion.update` beside the paper's Algorithm 1: the comments give its line numbers. Lines 7 to 12 are
`generated.generation.Generation`. Algorithm 2 is `diffusion.distillation.LatentDistillation`.
"""

import math
import os
import warnings
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..diffusion.distillation import LatentDistillation
from ..diffusion.source import resolve_source, resolve_tiny_half
from ..digests import weights_digest
from ..generated.candidate_cache import CandidateCache
from ..generated.dataset import GenerateDataset, round_begins, uses_generated
from ..generated.device_pool import DevicePool, devices_of
from ..generated.gallery import Gallery
from ..generated.generation import Generation, Judge
from ..generated.identity import candidate_identity, run_identity, sources_of
from ..generated.saved_rounds import SavedRounds
from ..hosting import context, host
from ..hosting import hparams as table
from ..hosting.context import InSplit
from ..hosting.held_out_ldm import with_ldm_of_this_process
from ..hosting.ld_presets import with_ld_preset
from ..pixels import PixelRange
from ..resuming import switch
from ..resuming.own_state import RESUME_FOLDER
from ..stopwatch import Stopwatch
from .distillation_term import DistillationTerm, Term, gradient_ratio, without_distillation
from .domain_models import check_invariant_guidance, guided_model

Minibatches = list[tuple[Tensor, Tensor]]  # [(x (B, C, H, W), y (B,))], one for each training domain


class DomainFusion(host.algorithms.ERM):
    """One step minimises  λ1·CE(raw) + λ2·LD(x, y, θ, φ) + λ3·CE(generated).

    The classifier θ, its optimizer and `predict` are ERM's. The diffusion model φ is loaded at the first step, and all
    algorithms in the process share it. state_dict, parameters, deepcopy and pickle hold neither φ nor the
    generate-dataset.

    Raises InputError for hparams out of range and for a diffusion model that cannot be used.
    """

    def __init__(self, input_shape: tuple, num_classes: int, num_domains: int, hparams: dict[str, Any]):
        table.check_values(hparams)
        hparams = with_ldm_of_this_process(with_ld_preset(hparams))
        super().__init__(input_shape, num_classes, num_domains, hparams)
        context.require_run()
        self.pixel_range = PixelRange.of(input_shape, context.current().dataset)
        self.class_names = context.prompt_names(hparams["class_names"], num_classes)
        self.total_steps = context.current().total_steps
        self.step = 0
        self.generation: Generation | None = None
        self.distillation: LatentDistillation | None = None
        self.ld_term: DistillationTerm | None = None
        self.generate_dataset: GenerateDataset | None = None
        self.uses_generated = uses_generated(hparams)
        self.uses_diffusion = self.uses_generated or hparams["lambda2"] > 0
        if self.uses_diffusion:
            ldm = resolve_source(hparams["ldm"], hparams["ldm_revision"], hparams["ldm_decoder"], hparams["scheduler"])
            if hparams["invariant_steps"]:
                check_invariant_guidance(ldm, hparams)
            if hparams["ld_encoder"]:
                resolve_tiny_half(hparams["ld_encoder"], ldm, "encoder")

    def update(self, minibatches: Minibatches, unlabeled: Any = None) -> dict[str, float]:
        """One step of Algorithm 1 on [(x, y)] per training domain, x: (B, C, H, W) after the host's transform.

        Returns the losses, the mean confidence and LD coefficient, the number of generated images, and the seconds of
        generation and of LD.
        """
        x, y = (torch.cat(parts) for parts in zip(*minibatches))

        with Stopwatch(x.device) as generation:
            n_generated, seconds_saved = self._refresh_if_due(x.device)  # lines 4 to 13
        x_gen, y_gen, rows = self._generated_minibatch(x, y)
        logits, logits_gen = self._classify(x, x_gen)

        with Stopwatch(x.device) as distillation:  # line 14
            if n_generated and self.hparams["ld_when"] == "generation":
                self.distill_round()
            on_raw = self.hparams["ld_when"] == "step" and self.hparams["ld_input"] == "raw"
            seen = (x, y, logits, None) if on_raw else (x_gen, y_gen, logits_gen, rows)
            ld_loss, ld_values = self._latent_distillation(*seen)
        raw_loss = F.cross_entropy(logits, y)  # line 15
        generated_loss = F.cross_entropy(logits_gen, y_gen)  # line 16
        loss = (
            self.hparams["lambda1"] * raw_loss
            + self.hparams["lambda2"] * ld_loss
            + self.hparams["lambda3"] * generated_loss
        )
        cross_entropy = self.hparams["lambda1"] * raw_loss + self.hparams["lambda3"] * generated_loss
        ratio = gradient_ratio(self.hparams["lambda2"] * ld_loss, cross_entropy, logits, logits_gen)

        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(self.step)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()  # line 17
        self.step += 1
        return {
            "loss": loss.item(),
            "raw_loss": raw_loss.item(),
            "generated_loss": generated_loss.item(),
            **ld_values,
            "ld_gradient_ratio": ratio,
            "generated_images": float(n_generated),
            "generation_seconds": generation.seconds + seconds_saved,
            "ld_seconds": distillation.seconds,
        }

    def confidence(self, x: Tensor, y: Tensor) -> Tensor:
        """p, the softmax probability of the true class, of images in φ's range. Call it in eval mode.

        x: (B, 3, S, S) in [-1, 1], y: (B,). Returns (B,) in [0, 1], on the CPU.
        """
        return self._new_judge().confidence_in(x, y)

    def _new_judge(self) -> Judge:
        return Judge.of(self, self.pixel_range)

    def learning_rate(self, step: int) -> float:
        """Half a cosine from `lr` to zero over the run's steps (S, 4.3), or `lr` with lr_schedule "constant"."""
        if self.hparams["lr_schedule"] == "constant":
            return self.hparams["lr"]
        return self.hparams["lr"] * 0.5 * (1 + math.cos(math.pi * min(1.0, step / self.total_steps)))

    def load_diffusion(self, device: torch.device) -> None:
        """Load φ, and build generation, Latent Distillation and the generate-dataset on it.

        With `invariant_steps` the second U-Net that guides generation is learned here.
        Raises InputError if the model cannot be used, or if the disk has no room for the run's generated images.
        """
        from ..diffusion.candidates import CandidateSampler  # here, because diffusers takes seconds to import
        from ..diffusion.prompted import PromptedModel

        devices = devices_of(self.hparams["generation_devices"], device) if self.uses_generated else []
        model = PromptedModel.load(self.hparams, self.class_names, device)
        unused = {} if self.uses_generated else {"invariant_steps": 0}  # minutes for what would generate nothing
        hparams = {**self.hparams, **unused}
        sampler = CandidateSampler.of(guided_model(model, hparams), hparams)
        self.distillation = LatentDistillation.of(model, self.hparams)
        pool = DevicePool(sampler, devices, self.hparams, self.class_names) if devices else None
        cache = self._candidate_cache(sampler)
        self.generation = Generation(sampler, self._new_judge(), self.hparams, cache, pool)
        self.ld_term = DistillationTerm(self.distillation, self.hparams, self.pixel_range, context.current().seed)
        self.generate_dataset = self._new_generate_dataset(self.generation)

    def _candidate_cache(self, sampler: Any) -> CandidateCache | None:
        """The cache that the hparam `candidate_cache` names, for the candidates of this sampler."""
        if self.hparams["candidate_cache"] is None or not self.uses_generated:
            return None
        identity = candidate_identity(self.hparams, sampler.ldm)
        return CandidateCache(self.hparams["candidate_cache"], sampler, identity)

    def _refresh_if_due(self, device: torch.device) -> tuple[int, float]:
        """Line 4: run a round of generation at the start of every Itv-th epoch.

        Returns the number of replaced images, and the original generation seconds of those that were read from disk.
        """
        if self.uses_diffusion and self.generation is None:
            self.load_diffusion(device)
        dataset, generation = self.generate_dataset, self.generation
        if dataset is None or generation is None or not self.uses_generated or not self.generates_at(self.step):
            return 0, 0.0
        self.eval()
        n_generated = dataset.refresh(self.step, generation, self.hparams["generation_batch"], generation.ahead)
        self.train()
        return n_generated, dataset.seconds_saved

    def distill_round(self) -> None:
        """Line 14 inside the generation loop: LD of every image that the round has made (ld_when "generation")."""
        if self.ld_term is None or self.generate_dataset is None:
            return
        self.eval()
        self.ld_term.of_round(self.generate_dataset, self._new_judge(), self.step)
        self.train()

    def generates_at(self, step: int) -> bool:
        """Whether a round begins at this step. Outside the host's train script: False, and one warning at step 0."""
        steps_per_epoch = context.current().steps_per_epoch
        if steps_per_epoch is None:
            if step == 0:
                warnings.warn(
                    f"{type(self).__name__} generates nothing here: outside the host's train script it knows neither "
                    "the training in-splits nor the length of an epoch.",
                    stacklevel=2,
                )
            return False
        return round_begins(step, steps_per_epoch, self.hparams)

    def _generated_minibatch(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """A minibatch of the generate-dataset with its rows. Before the first round: the raw minibatch (line 1)."""
        if self.generate_dataset is None or self.generate_dataset.rounds == 0:
            return x, y, None
        x_gen, y_gen, rows = self.generate_dataset.minibatch(self.step)
        return x_gen.to(x.device), y_gen.to(x.device), rows

    def _classify(self, x: Tensor, x_gen: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both minibatches in one forward pass, so that batch-norm statistics are over both."""
        if x_gen is x:
            logits = self.predict(x)
            return logits, logits
        return self.predict(torch.cat([x, x_gen])).split([len(x), len(x_gen)])

    def _latent_distillation(self, x: Tensor, y: Tensor, logits: Tensor, rows: Tensor | None) -> Term:
        """Algorithm 2 on a minibatch. rows: where its images lie in the generate-dataset; None for a raw minibatch."""
        confidence = logits.softmax(-1).gather(1, y[:, None])[:, 0]
        if self.ld_term is None or self.hparams["lambda2"] == 0:
            return without_distillation(confidence)
        if self.hparams["ld_when"] == "step":
            interval = self.hparams["ld_interval"]
            if self.step % interval:
                return confidence.new_zeros(()), {"confidence": confidence.mean().item()}
            ld_loss, values = self.ld_term.of_minibatch(x, y, confidence, self.step)
            return interval * ld_loss, values
        if rows is None:  # nothing has been generated yet
            return without_distillation(confidence)
        return self.ld_term.of_generated(rows, confidence)

    def _new_generate_dataset(self, generation: Generation, subfolder: str = "") -> GenerateDataset:
        """subfolder: of the job's folder, for its pictures and its saved rounds."""
        run = context.current()
        gallery = None
        if run.output_dir:
            confidence = self._new_judge().confidence_in
            gallery = Gallery(
                os.path.join(run.output_dir, subfolder), self.hparams["gallery"], self.class_names, confidence
            )
        dataset = GenerateDataset(
            run.in_splits,
            self.hparams["image_size"],
            self.pixel_range,
            seed=run.seed,
            budget=self.hparams["generation_budget"],
            candidates=generation.candidates,
            workers=getattr(run.dataset, "N_WORKERS", 0),
            balanced=self.hparams["class_balanced"],
            folder=run.output_dir,
            gallery=gallery,
            prompts=generation.prompts if generation.cache else None,
        )
        if self.uses_generated and run.output_dir and run.in_splits:
            dataset.saved = self._saved_rounds(run.output_dir, run.in_splits, dataset, generation, subfolder)
        if self.uses_generated and run.in_splits:
            dataset.check_space(sum(self.generates_at(step) for step in range(self.total_steps)))
        return dataset

    def _saved_rounds(
        self,
        output_dir: str,
        in_splits: list[InSplit],
        dataset: GenerateDataset,
        generation: Generation,
        subfolder: str,
    ) -> SavedRounds | None:
        """As save_generated says. A job with checkpoints needs its rounds on the disk as long as it trains."""
        keep, resumes = self.hparams["save_generated"], switch.minutes() is not None
        if keep == "none" and not resumes:
            return None
        device = next(self.parameters()).device
        sources = sources_of(in_splits, dataset.keys, self.class_names, generation.prompts)
        return SavedRounds(
            os.path.join(output_dir if keep != "none" else os.path.join(output_dir, RESUME_FOLDER), subfolder),
            run_identity(self.hparams, device),
            sources,
            keep if keep != "none" else "last",
            partial(weights_digest, self.network),
            spare=1 if resumes else 0,
        )

    def resume_state(self) -> dict[str, Any]:
        """Plain data of what `__getstate__` leaves out; see `resuming.own_state`."""
        if self.generate_dataset is None or self.ld_term is None:
            return {}
        return {"dataset": self.generate_dataset.resume_state(), "ld_term": self.ld_term.resume_state()}

    def load_resume_state(self, state: dict[str, Any]) -> None:
        """Take up `resume_state`'s data at the start of step `self.step`."""
        if not state:
            return
        self.load_diffusion(next(self.parameters()).device)
        assert self.generate_dataset is not None and self.ld_term is not None
        self.ld_term.load_resume_state(state["ld_term"])
        self.generate_dataset.load_resume_state(state["dataset"], self.step)

    def expensive_results(self) -> int:
        """The number of rounds: a checkpoint follows each."""
        return self.generate_dataset.rounds if self.generate_dataset is not None else 0

    def training_ended(self) -> None:
        """The job is done and will not be continued: delete what it kept for that beside its checkpoints."""
        if self.generate_dataset is not None and self.generate_dataset.saved is not None:
            self.generate_dataset.saved.delete_spare()

    def __getstate__(self) -> dict:
        """Copies and pickles hold the classifier, but neither φ nor the generate-dataset."""
        return {**self.__dict__, "generation": None, "distillation": None, "ld_term": None, "generate_dataset": None}
